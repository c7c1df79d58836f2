// Command websocket is a WebSocket server that replaces itself. It answers each
// message. When a successor has taken over it says 1001, going away, between two
// messages, and the client reconnects to the successor and goes on:
//
//	go run ./examples/websocket &
//	npx wscat -c ws://localhost:8083
//	go run ./examples/websocket      # in another terminal: the first one ends
//
// A WebSocket message has no status that would tell whether it was dealt with,
// so the program makes a rule of its own: what has not been answered when 1001
// comes was not taken. The client repeats that and nothing else, and nothing is
// done twice.
package main

import (
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

	"github.com/coder/websocket"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

func main() {
	socket := flag.String("socket", "/tmp/websocket.sock", "control socket")
	listen := flag.String("listen", "127.0.0.1:8083", "address of the first generation")
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
	ln, err := gen.Listen("websocket", "tcp", address) // inherited under that name, or bound now
	if err != nil {
		return err
	}
	e := &echo{generation: gen.Number()}
	e.server = server.Server{
		Server:      http.Server{Handler: e},
		StopTimeout: time.Minute,
	}
	go e.server.Serve(ln) // Accept waits until the socket is ours
	if err := gen.Ready(ctx); err != nil {
		return fmt.Errorf("own the socket: %w", err) // the predecessor serves on
	}
	log.Printf("generation %d serves %v", gen.Number(), ln.Addr())
	<-gen.Superseded() // a successor owns the socket for good, or SIGTERM came
	report := e.server.Stop(context.Background())
	gen.Drained(report)
	log.Printf("generation %d: %v: %d messages answered, %v", gen.Number(), gen.Cause(), e.answered.Load(), report)
	return nil
}

type echo struct {
	server     server.Server
	generation uint64
	answered   atomic.Int64
}

// ServeHTTP is one WebSocket, in this generation. It alone answers and says
// goodbye, so that no message falls between the two.
func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer c.CloseNow()
	ctx, cancel := context.WithCancel(r.Context())
	messages := make(chan []byte)
	go read(ctx, c, messages)
	defer func() {
		cancel()
		for range messages { // until read has returned
		}
	}()
	for {
		select {
		case m, ok := <-messages:
			if !ok { // the client has left
				return
			}
			if e.answer(ctx, c, m) != nil {
				return
			}
		// Not OnHijackedDrain, which could come before the handshake is over,
		// and not at all to a connection that is upgraded during the drain.
		case <-e.server.Draining():
			c.Close(websocket.StatusGoingAway, "this process ends") // and waits for the client to do so, too
			return
		}
	}
}

// read passes messages on until the connection or ctx ends.
func read(ctx context.Context, c *websocket.Conn, messages chan<- []byte) {
	defer close(messages)
	for {
		_, m, err := c.Read(ctx)
		if err != nil {
			return
		}
		select {
		case messages <- m:
		case <-ctx.Done():
			return
		}
	}
}

func (e *echo) answer(ctx context.Context, c *websocket.Conn, m []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := c.Write(ctx, websocket.MessageText, fmt.Appendf(nil, "generation %d: %s", e.generation, m))
	if err == nil {
		e.answered.Add(1)
	}
	return err
}
