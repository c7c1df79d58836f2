// Command program is a web server that knows nothing of takeovers: it accepts
// from the socket that it inherits, says when it is ready as sd_notify(3) does,
// and drains on SIGTERM, with http.Server.Shutdown or with package server.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/server"
	"github.com/handoverd/handoverd/tests/bench/peer"
)

func main() {
	drain := flag.String("drain", "shutdown", "server or shutdown")
	flag.Parse()
	if err := run(*drain); err != nil {
		log.Fatal(err)
	}
}

// stopper is both kinds of server.
type stopper interface {
	peer.Acceptor
	Shutdown(context.Context) error
}

func run(drain string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	p := peer.New()
	f := os.NewFile(3, "listener") // SD_LISTEN_FDS_START, sd_listen_fds(3)
	ln, err := net.FileListener(f)
	if err != nil {
		return err
	}
	f.Close()
	var srv stopper = &http.Server{Handler: p.Handler()}
	if drain == "server" {
		srv = &server.Server{Server: http.Server{Handler: p.Handler()}}
	}
	failed := make(chan error, 1)
	go func() { failed <- peer.Serve(srv, ln) }()
	p.Tell("ready")
	if err := notify(); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	p.Tell("superseded")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

func notify() error {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("READY=1"))
	return err
}
