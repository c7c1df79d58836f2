package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"time"

	"github.com/handoverd/handoverd/server"
)

// A line protocol on plain TCP: each line is answered in upper case. When the
// drain begins, a client that is between two lines is told goodbye.
func ExampleStreamServer() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	srv := &server.StreamServer{
		Handler: func(ctx context.Context, c net.Conn) {
			lines := bufio.NewScanner(c)
			for lines.Scan() {
				fmt.Fprintln(c, strings.ToUpper(lines.Text()))
			}
			if lines.Err() != nil { // the deadline set by OnDrain
				fmt.Fprintln(c, "421 going away")
			}
		},
		OnDrain:     func(c net.Conn) { c.SetReadDeadline(time.Now()) },
		StopTimeout: time.Minute,
		KillTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	answers := bufio.NewReader(c)
	fmt.Fprintln(c, "hello")
	line, _ := answers.ReadString('\n')
	fmt.Print(line)

	report := srv.Stop(context.Background())
	rest, _ := io.ReadAll(answers)
	fmt.Print(string(rest))
	fmt.Println(<-served)
	fmt.Println("finished:", report.Finished, "killed:", report.Killed)
	// Output:
	// HELLO
	// 421 going away
	// http: Server closed
	// finished: 1 killed: 0
}
