// Command http is a web server that replaces itself: run it a second time, from
// anywhere, and the second takes over from the first without a failed request.
//
//	go run ./examples/http &
//	curl localhost:8080
//	go run ./examples/http      # the first one drains and ends
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

func main() {
	socket := flag.String("socket", "/tmp/example.sock", "control socket")
	listen := flag.String("listen", "127.0.0.1:8080", "address of the first generation")
	flag.Parse()
	if err := run(context.Background(), *socket, *listen); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, socket, address string) error {
	gen, err := handover.Start(ctx, handover.Config{Socket: socket}) // takes over, or starts generation 1
	if err != nil {
		return err
	}
	defer gen.Close()
	ln, err := gen.Listen("http", "tcp", address) // inherited under that name, or bound now
	if err != nil {
		return err
	}
	srv := &server.Server{
		Server: http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "generation %d\n", gen.Number())
		})},
		StopTimeout: time.Minute,
	}
	go srv.Serve(ln) // Accept waits until the socket is ours
	if err := gen.Ready(ctx); err != nil {
		return err // the predecessor serves on
	}
	<-gen.Superseded()              // a successor owns the socket for good
	gen.Drained(srv.Stop(ctx))      // finish what is in work, tell how it went
	log.Print("end: ", gen.Cause()) // superseded, stopped, or rolled back
	return nil
}
