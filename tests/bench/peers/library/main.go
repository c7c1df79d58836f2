// Command library is a web server in the way of this project: packages handover
// and server, or with -drain shutdown handover and http.Server.Shutdown. With
// -drain none it is a bare http.Server that takes over nothing, in the same binary.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
	"github.com/handoverd/handoverd/tests/bench/peer"
)

var (
	socket    = flag.String("socket", "", "control socket")
	listen    = flag.String("listen", "127.0.0.1:0", "address of the first generation")
	drain     = flag.String("drain", "server", "server, shutdown or none")
	probation = flag.Duration("probation", 0, "of this generation")
)

func main() {
	flag.Parse()
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// stopper is a web server as this program needs it.
type stopper interface {
	peer.Acceptor
	stop(ctx context.Context) (moved int, report any)
}

type ours struct{ *server.Server }

func (s ours) stop(ctx context.Context) (int, any) {
	r := s.Stop(ctx)
	return r.Moved, r
}

type theirs struct{ *http.Server }

func (s theirs) stop(ctx context.Context) (int, any) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return 0, s.Shutdown(ctx)
}

func newServer(h http.Handler) stopper {
	if *drain == "shutdown" {
		return theirs{&http.Server{Handler: h}}
	}
	return ours{&server.Server{Server: http.Server{Handler: h}, StopTimeout: 10 * time.Second}}
}

func run(ctx context.Context) error {
	p := peer.New()
	if *drain == "none" {
		ln, err := net.Listen("tcp", *listen)
		if err != nil {
			return err
		}
		return peer.Serve(&http.Server{Handler: p.Handler()}, ln)
	}
	gen, err := handover.Start(ctx, handover.Config{Socket: *socket, Probation: *probation})
	if err != nil {
		return err
	}
	defer gen.Close()
	ln, err := gen.Listen("web", "tcp", *listen)
	if err != nil {
		return err
	}
	srv := newServer(p.Handler())
	go peer.Serve(srv, ln)
	ready := time.Now()
	if err := gen.Ready(ctx); err != nil {
		return err
	}
	owner := time.Now()
	p.TellAt(ready, "ready")
	p.TellAt(owner, "owner")
	<-gen.Superseded()
	p.Tell("superseded")
	moved, report := srv.stop(ctx)
	p.Tell("stopped", moved)
	gen.Drained(report)
	return nil
}
