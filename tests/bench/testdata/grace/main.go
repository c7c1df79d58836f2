// Command grace is a web server that replaces itself by a child, by package
// gracehttp, which drains by package httpdown. Both know nothing of modules.
package main

import (
	"crypto/tls"
	"flag"
	"log"
	"net/http"

	"github.com/facebookgo/grace/gracehttp"

	"github.com/handoverd/handoverd/tests/bench/peer"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Parse()
	p := peer.New()
	srv := &http.Server{Addr: *listen, Handler: p.Handler()}
	if cert, key, ok := peer.Certificate(); ok {
		c, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			log.Fatal(err)
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{c}, NextProtos: []string{"h2", "http/1.1"}}
	}
	p.Tell("started")
	if err := gracehttp.Serve(srv); err != nil {
		log.Fatal(err)
	}
}
