// Command lines adds up numbers: a protocol of lines on TCP whose connections
// outlive the process. Each line is a number, and the answer says the sum of
// all that came over this connection:
//
//	go run ./examples/lines &
//	nc localhost 8081
//	2
//	sum 2 of 1, generation 1
//
// Leave nc where it is, and in another terminal run it once more:
//
//	go run ./examples/lines
//
// The first one ends three seconds later, when the second is past its probation.
// nc has not noticed: type 3, and generation 2 answers that the sum is 5.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

func main() {
	socket := flag.String("socket", "/tmp/lines.sock", "control socket")
	listen := flag.String("listen", "127.0.0.1:8081", "address of the first generation")
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
	ln, err := gen.Listen("lines", "tcp", address) // inherited under that name, or bound now
	if err != nil {
		return err
	}
	a := &adder{generation: gen.Number()}
	a.server = server.StreamServer{
		Handler: a.serve,
		// Most handlers wait in a Read, for hours if need be. This wakes them.
		OnDrain:     func(c net.Conn) { c.SetReadDeadline(time.Unix(1, 0)) },
		StopTimeout: time.Minute,
	}
	go a.server.Serve(ln) // Accept waits until the socket is ours, and gives moved connections like new ones
	if err := gen.Ready(ctx); err != nil {
		return fmt.Errorf("own the socket: %w", err) // the predecessor serves on
	}
	log.Printf("generation %d serves %v", gen.Number(), ln.Addr())
	<-gen.Superseded()                            // a successor owns the socket for good, or SIGTERM came
	report := a.server.Stop(context.Background()) // returns when every connection has moved or ended
	gen.Drained(report)
	log.Printf("generation %d: %v: %v", gen.Number(), gen.Cause(), report)
	return nil
}

// A session is what a connection consists of besides its socket. Another build
// of this program may read it, so fields are only ever added.
type session struct {
	Sum   int64 `json:"sum"`
	Lines int64 `json:"lines"`
}

type adder struct {
	server     server.StreamServer
	generation uint64
}

// serve is one connection, in this generation.
func (a *adder) serve(ctx context.Context, c net.Conn) {
	var s session
	if state, moved := server.MovedState(ctx); moved {
		if err := json.Unmarshal(state, &s); err != nil {
			fmt.Fprintln(c, "error: your session is lost:", err)
			return
		}
	}
	in := bufio.NewReader(c) // no line is longer than its 4,096 bytes
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, os.ErrDeadlineExceeded) { // OnDrain
			a.part(ctx, c, line, s)
			return
		}
		if err != nil { // the client has left, or its line is too long
			return
		}
		if _, err := fmt.Fprintln(c, a.answer(&s, string(line))); err != nil {
			return
		}
	}
}

// part gives a connection to the successor, between two lines. All whole lines
// that were read have been answered. begun is what has arrived of one more: the
// successor reads that first, and then the rest. What this process has not read
// is in the socket, and goes along with it.
func (a *adder) part(ctx context.Context, c net.Conn, begun []byte, s session) {
	state, err := json.Marshal(s)
	if err == nil {
		err = a.server.Move(ctx, begun, state)
	}
	if err == nil {
		return // the successor's: not a word more
	}
	if !errors.Is(err, server.ErrNotMovable) { // that one is usual: after SIGTERM there is nobody
		log.Printf("%v ends here: %v", c.RemoteAddr(), err)
	}
	fmt.Fprintln(c, "bye")
}

func (a *adder) answer(s *session, line string) string {
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return "error: not a number"
	}
	s.Sum, s.Lines = s.Sum+n, s.Lines+1
	return fmt.Sprintf("sum %d of %d, generation %d", s.Sum, s.Lines, a.generation)
}
