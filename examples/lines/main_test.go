//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/examples/internal/generations"
)

func TestMain(m *testing.M) { generations.Main(m, main) }

// A client keeps its one connection, and knows what each answer must be.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader

	sum, lines int64         // of what has been answered
	newest     int64         // generation that has answered
	by         map[int64]int // answers of each
}

func dial(t *testing.T, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, conn: conn, in: bufio.NewReader(conn), by: map[int64]int{}}
}

// send writes a piece of the stream, in one segment if it fits.
func (c *client) send(text string) bool {
	c.conn.SetDeadline(time.Now().Add(generations.Patience))
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Errorf("after %d answers: %v", c.lines, err)
		return false
	}
	return true
}

// hear reads the answer to n.
func (c *client) hear(n int64) bool {
	text, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Errorf("after %d answers of generations %v: %v", c.lines, c.by, err)
		return false
	}
	var sum, lines, by int64
	if _, err := fmt.Sscanf(text, "sum %d of %d, generation %d\n", &sum, &lines, &by); err != nil {
		c.t.Errorf("answer %q: %v", text, err)
		return false
	}
	c.sum, c.lines = c.sum+n, c.lines+1
	if sum != c.sum || lines != c.lines || by < c.newest {
		c.t.Errorf("answer %q, want sum %d of %d, of generation %d or later", text, c.sum, c.lines, c.newest)
		return false
	}
	c.by[by]++
	c.newest = by
	return true
}

// exchange sends five lines at once, of which the last comes in two pieces,
// and reads the five answers.
func (c *client) exchange() bool {
	n := c.lines
	text := fmt.Sprintf("%d\n%d\n%d\n%d\n1234", n, n+1, n+2, n+3)
	ok := c.send(text) && c.send("5\n")
	for _, n := range []int64{n, n + 1, n + 2, n + 3, 12345} {
		ok = ok && c.hear(n)
	}
	return ok
}

// chat exchanges lines until a generation has answered.
func (c *client) chat(until int64) {
	for c.t.Context().Err() == nil && c.newest < until && c.exchange() {
	}
}

const takeovers = 10

// One connection is served by eleven processes. At every other takeover it is
// in the middle of a line, whose end is sent when the old process has ended; at
// the others lines come all the time.
func TestOneConnectionOutlivesTenProcesses(t *testing.T) {
	s := generations.New(t)
	old := s.Next()
	c := dial(t, s.Address)
	if !c.exchange() {
		t.FailNow()
	}
	for g := int64(2); g <= takeovers+1; g++ {
		var next *generations.Process
		var log string
		if g%2 == 0 {
			c.send("1\n2\n3\n40")
			next, log = s.Next(), old.Wait()
			c.send("04\n5\n")
			for _, n := range []int64{1, 2, 3, 4004, 5} {
				if !c.hear(n) {
					t.FailNow()
				}
			}
		} else {
			var done sync.WaitGroup
			t.Cleanup(done.Wait)
			done.Go(func() { c.chat(g) })
			next, log = s.Next(), old.Wait()
			done.Wait()
		}
		if !strings.Contains(log, ": 1 moved, 0 finished, 0 closed idle, 0 killed") {
			t.Errorf("generation %d did not move its one connection:\n%s", g-1, log)
		}
		if c.newest != g || t.Failed() {
			t.Fatalf("answers of generations %v, want up to %d", c.by, g)
		}
		old = next
	}
	if len(c.by) != takeovers+1 {
		t.Errorf("answers of generations %v, want each from 1 to %d", c.by, takeovers+1)
	}
	t.Logf("%d answers on one connection, by generation: %v", c.lines, c.by)

	// Nobody is there to take it at the end.
	log := old.Stop()
	if rest, err := io.ReadAll(c.in); string(rest) != "bye\n" || err != nil {
		t.Errorf("the last words are %q, %v, want bye", rest, err)
	}
	if !strings.Contains(log, "stop requested: ") {
		t.Errorf("the last generation was stopped, and says\n%s", log)
	}
}

// Fifty connections at once send lines during all of five takeovers.
func TestFiftyConnectionsAreMoved(t *testing.T) {
	const connections, last = 50, 6
	s := generations.New(t)
	old := s.Next()
	clients := make([]*client, connections)
	for i := range clients {
		clients[i] = dial(t, s.Address)
	}
	for g := int64(1); g <= last; g++ {
		var done sync.WaitGroup
		t.Cleanup(done.Wait)
		for _, c := range clients {
			done.Go(func() { c.chat(g) })
		}
		if g > 1 {
			next := s.Next()
			log := old.Wait()
			if want := fmt.Sprintf(": %d moved, 0 finished, 0 closed idle, 0 killed", connections); !strings.Contains(log, want) {
				t.Errorf("generation %d did not move all connections:\n%s", g-1, log)
			}
			old = next
		}
		done.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	var answers int64
	for _, c := range clients {
		answers += c.lines
		if len(c.by) != last {
			t.Errorf("a connection has answers of generations %v, want each from 1 to %d", c.by, last)
		}
	}
	t.Logf("%d answers on %d connections by %d generations", answers, connections, last)
	old.Stop()
}

// The next successor comes while connections are still on their way to the last.
func TestConnectionsFollowAChainOfTakeovers(t *testing.T) {
	const connections, last = 50, 6
	s := generations.New(t)
	processes := []*generations.Process{s.Next()}
	var done sync.WaitGroup
	t.Cleanup(done.Wait)
	for range connections {
		c := dial(t, s.Address)
		done.Go(func() { c.chat(last) })
	}
	for len(processes) < last {
		processes = append(processes, s.Next())
	}
	done.Wait()
	for i, p := range processes[:last-1] {
		if log := p.Wait(); !strings.Contains(log, " moved, 0 finished, 0 closed idle, 0 killed") {
			t.Errorf("generation %d did not move all its connections:\n%s", i+1, log)
		}
	}
	processes[last-1].Stop()
}
