package handover

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// mover is what a listener of this package can besides accepting.
type mover interface {
	net.Listener
	Movable() bool
	MoveConn(ctx context.Context, c net.Conn, unread, state []byte) error
}

// echo serves a protocol with a memory, and moves its connections when it is
// told to. It answers each line with that line, its generation, and the number
// of lines that the connection has had so far. So a client sees whether
// anything was lost, or served twice.
type echo struct {
	generation uint64
	ln         mover
	serving    sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond
	want    int // how often all were asked to move
	conns   map[*echoConn]struct{}
	deaf    bool // accepts no more
	moved   int
	stayed  error // why the last one did that did
}

// echoConn is one connection. Its goroutine owns what is not guarded.
type echoConn struct {
	net.Conn
	unread []byte
	lines  int
	asked  int // the last request to move that failed; guarded by echo.mu
}

func serveEcho(g *Generation, ln net.Listener) *echo {
	e := &echo{generation: g.Number(), ln: ln.(mover), conns: map[*echoConn]struct{}{}}
	e.changed.L = &e.mu
	e.serving.Go(e.accept)
	return e
}

func (e *echo) accept() {
	for {
		c, err := e.ln.Accept()
		if errors.Is(err, syscall.EMFILE) {
			time.Sleep(time.Millisecond) // between two tries
			continue
		}
		if err != nil {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.deaf = true
			return
		}
		ec := &echoConn{Conn: c}
		if m, ok := c.(*movedConn); ok {
			var state []byte
			ec.Conn, ec.unread, state = m.Moved()
			if ec.lines, err = strconv.Atoi(string(state)); err != nil {
				panic(err)
			}
		}
		e.mu.Lock()
		e.conns[ec] = struct{}{}
		e.mu.Unlock()
		e.serving.Go(func() { e.serve(ec) })
	}
}

func (e *echo) serve(c *echoConn) {
	defer func() {
		c.Close()
		e.mu.Lock()
		delete(e.conns, c)
		e.changed.Broadcast()
		e.mu.Unlock()
	}()
	buf := make([]byte, 512)
	for {
		for {
			line, rest, ok := bytes.Cut(c.unread, []byte("\n"))
			if !ok {
				break
			}
			c.unread = rest
			c.lines++
			if _, err := fmt.Fprintf(c, "%s %d %d\n", line, e.generation, c.lines); err != nil {
				return
			}
		}
		if e.leave(c) {
			return
		}
		n, err := c.Read(buf)
		c.unread = append(c.unread, buf[:n]...)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// leave moves c, if that was asked for.
func (e *echo) leave(c *echoConn) bool {
	e.mu.Lock()
	c.SetReadDeadline(time.Time{})
	want := e.want
	stay := c.asked == want
	e.mu.Unlock()
	if stay {
		return false
	}
	err := e.ln.MoveConn(context.Background(), c.Conn, c.unread, []byte(strconv.Itoa(c.lines)))
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		e.moved++
		return true
	}
	e.stayed, c.asked = err, want
	e.changed.Broadcast()
	return false
}

// ask asks all connections to move.
func (e *echo) ask() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.want++
	for c := range e.conns {
		c.SetReadDeadline(longAgo)
	}
}

// move asks all connections to move and waits until each has, or has stayed.
func (e *echo) move() (moved int, stayed error) {
	e.ask()
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.undecidedLocked() {
		e.changed.Wait()
	}
	return e.moved, e.stayed
}

func (e *echo) undecidedLocked() bool {
	for c := range e.conns {
		if c.asked < e.want {
			return true
		}
	}
	return false
}

func (e *echo) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// empty moves all connections, again and again, until none is left and none can
// come any more. It tells how many tries failed.
func (e *echo) empty() (stayed int) {
	for !e.isEmpty() {
		e.move()
		if n := e.count(); n > 0 {
			stayed += n
		}
		time.Sleep(time.Millisecond) // between two tries
	}
	return stayed
}

func (e *echo) isEmpty() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns) == 0 && e.deaf
}

// caller is a client of an echo on one connection, and remembers what it said.
type caller struct {
	net.Conn
	r    *bufio.Reader
	tag  int
	said int
	last uint64 // the generation that answered
}

func call(t testing.TB, ln net.Listener) *caller {
	t.Helper()
	c, err := callAddr(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func callAddr(network, address string) (*caller, error) {
	c, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &caller{Conn: c, r: bufio.NewReader(c), tag: rand.IntN(1 << 30)}, nil
}

// say writes n lines, not always in one piece.
func (c *caller) say(n int) error {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d.%d\n", c.tag, c.said+i)
	}
	text := b.String()
	for len(text) > 0 {
		cut := len(text)
		if rand.IntN(2) == 0 {
			cut = 1 + rand.IntN(len(text))
		}
		if _, err := c.Write([]byte(text[:cut])); err != nil {
			return err
		}
		text = text[cut:]
	}
	return nil
}

// hear reads the answers to n lines.
func (c *caller) hear(n int) error {
	for range n {
		c.SetReadDeadline(time.Now().Add(60 * time.Second))
		got, err := c.r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("line %d: %w", c.said, err)
		}
		var tag, line, lines int
		var generation uint64
		if _, err := fmt.Sscanf(got, "%d.%d %d %d\n", &tag, &line, &generation, &lines); err != nil {
			return fmt.Errorf("answer %q: %w", got, err)
		}
		if tag != c.tag || line != c.said || lines != c.said+1 || generation < c.last {
			return fmt.Errorf("connection %d, after line %d by generation %d: answer %q", c.tag, c.said, c.last, got)
		}
		c.said++
		c.last = generation
	}
	return nil
}

func (c *caller) ask() error { return errors.Join(c.say(1), c.hear(1)) }

// answeredBy asserts that a connection works, and who serves it.
func (c *caller) answeredBy(t testing.TB, generation uint64) {
	t.Helper()
	if err := c.ask(); err != nil {
		t.Fatal(err)
	}
	if c.last != generation {
		t.Fatalf("connection %d is served by generation %d, want %d", c.tag, c.last, generation)
	}
}

// ends asserts that nobody holds the server's end of a connection.
func (c *caller) ends(t testing.TB) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := c.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("somebody still holds the connection: %q, %v", b, err)
	}
}
