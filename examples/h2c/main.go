// Command h2c serves HTTP/2 without TLS, as behind a proxy or inside a mesh,
// and replaces itself without failing a stream. It answers each line of a
// request's body at once, while the body is still coming. So a request may be
// as short or as long as its client likes:
//
//	go run ./examples/h2c &
//	curl --http2-prior-knowledge -NT - localhost:8082
//
// Type a line, run it a second time in another terminal, and type another line:
// this stream is answered by the process in which it began. To each new curl
// the second answers. When the first curl ends (control-D), the first process
// does.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

func main() {
	socket := flag.String("socket", "/tmp/h2c.sock", "control socket")
	listen := flag.String("listen", "127.0.0.1:8082", "address of the first generation")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, *socket, *listen); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, socket, address string) error {
	gen, err := handover.Start(ctx, handover.Config{Socket: socket}) // takes over, or starts generation 1
	if err != nil {
		return err
	}
	defer gen.Close()
	defer context.AfterFunc(ctx, func() { gen.Stop(context.Background()) })()
	ln, err := gen.Listen("h2c", "tcp", address) // inherited under that name, or bound now
	if err != nil {
		return err
	}
	e := &echo{generation: gen.Number()}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &server.Server{
		Server:      http.Server{Handler: e, Protocols: protocols},
		StopTimeout: time.Minute, // for the streams that are open; then they are reset
	}
	go srv.Serve(ln) // Accept waits until the socket is ours
	if err := gen.Ready(ctx); err != nil {
		return fmt.Errorf("own the socket: %w", err) // the predecessor serves on
	}
	log.Printf("generation %d serves %v", gen.Number(), ln.Addr())
	<-gen.Superseded() // a successor owns the socket for good, or SIGTERM came
	// Each connection gets a GOAWAY that refuses nothing: its client opens
	// streams elsewhere from then on. Only when the client has seen it, the
	// one follows that names the last stream. All streams up to that finish.
	report := srv.Stop(context.Background())
	gen.Drained(report)
	log.Printf("generation %d: %v: %d streams answered, %v", gen.Number(), gen.Cause(), e.answered.Load(), report)
	return nil
}

type echo struct {
	generation uint64
	answered   atomic.Int64
}

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	if r.ProtoMajor == 1 {
		control.EnableFullDuplex() // HTTP/2 needs no permission to answer before the body has ended
	}
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		fmt.Fprintf(w, "generation %d: %s\n", e.generation, lines.Text())
		if control.Flush() != nil { // the client has left
			return
		}
	}
	if lines.Err() == nil {
		e.answered.Add(1)
	}
}
