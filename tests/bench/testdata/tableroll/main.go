// Command tableroll is a web server that is replaced by an independent process,
// by package tableroll, written as that package's example is.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/ngrok-oss/tableroll/v2"

	"github.com/handoverd/handoverd/tests/bench/peer"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	dir := flag.String("dir", "", "coordination directory")
	flag.Parse()
	if err := run(*listen, *dir); err != nil {
		log.Fatal(err)
	}
}

func run(address, dir string) error {
	ctx := context.Background()
	p := peer.New()
	upg, err := tableroll.New(ctx, dir)
	if err != nil {
		return err
	}
	ln, err := upg.Fds.Listen(ctx, "web", nil, "tcp", address)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: p.Handler()}
	go peer.Serve(srv, ln)
	p.Tell("ready")
	if err := upg.Ready(); err != nil {
		return err
	}
	<-upg.UpgradeComplete()
	p.Tell("superseded")
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}
