// Command tableflip is a web server that replaces itself by a child, by package
// tableflip, written as that package's example is.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"

	"github.com/handoverd/handoverd/tests/bench/peer"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Parse()
	if err := run(*listen); err != nil {
		log.Fatal(err)
	}
}

func run(address string) error {
	p := peer.New()
	upg, err := tableflip.New(tableflip.Options{})
	if err != nil {
		return err
	}
	defer upg.Stop()
	go upgradeOnHangup(upg)
	ln, err := upg.Listen("tcp", address)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: p.Handler()}
	go peer.Serve(srv, ln)
	p.Tell("ready")
	if err := upg.Ready(); err != nil {
		return err
	}
	<-upg.Exit()
	p.Tell("superseded")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

func upgradeOnHangup(upg *tableflip.Upgrader) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	for range c {
		if err := upg.Upgrade(); err != nil {
			log.Print("upgrade: ", err)
		}
	}
}
