// Command plain is a web server that takes over nothing: it listens, if asked
// to beside another one (SO_REUSEPORT, socket(7)), and drains on SIGTERM with
// http.Server.Shutdown.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/tests/bench/peer"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	reuse := flag.Bool("reuseport", false, "listen beside others")
	flag.Parse()
	if err := run(*listen, *reuse); err != nil {
		log.Fatal(err)
	}
}

func run(address string, reuse bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	p := peer.New()
	var lc net.ListenConfig
	if reuse {
		lc.Control = reusePort
	}
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: p.Handler()}
	failed := make(chan error, 1)
	go func() { failed <- peer.Serve(srv, ln) }()
	p.Tell("ready")
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

func reusePort(_, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	if e != nil {
		return e
	}
	return err
}
