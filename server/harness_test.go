package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// A pipeListener accepts connections that exist only in memory, so that a test
// bubble can have its own time.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	gone  chan struct{}
	wrap  func(net.Conn) net.Conn
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), gone: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.gone:
		return nil, &net.OpError{Op: "accept", Net: "pipe", Err: net.ErrClosed}
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.gone) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// dial returns the client's end of a connection that has been accepted.
func (l *pipeListener) dial(t testing.TB) *client {
	t.Helper()
	near, far := net.Pipe()
	if l.wrap != nil {
		far = l.wrap(far)
	}
	select {
	case l.conns <- far:
	case <-l.gone:
		t.Fatal("dial: listener closed")
	}
	return newClient(t, near)
}

// A client speaks HTTP/1.1 by hand and never sends anything twice.
type client struct {
	t testing.TB
	net.Conn
	br *bufio.Reader
}

func newClient(t testing.TB, c net.Conn) *client {
	t.Cleanup(func() { c.Close() })
	return &client{t, c, bufio.NewReader(c)}
}

func dialTCP(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, c)
}

func (c *client) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *client) sendGet(path string) {
	c.t.Helper()
	c.send("GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path)
}

// receive reads one response with its whole body.
func (c *client) receive() (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("receive body: %v", err)
	}
	return resp, string(body)
}

func (c *client) get(path string) (*http.Response, string) {
	c.t.Helper()
	c.sendGet(path)
	return c.receive()
}

// wantEOF fails unless the server has closed the connection and sent nothing.
func (c *client) wantEOF() {
	c.t.Helper()
	if b, err := c.br.ReadByte(); err == nil {
		c.t.Fatalf("got byte %q, want the end of the connection", b)
	}
}

// serve runs srv.Serve(ln) and returns a function that gives its error.
func serve(t testing.TB, srv interface{ Serve(net.Listener) error }, ln net.Listener) func() error {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- srv.Serve(ln) }()
	return sync.OnceValue(func() error { return <-result })
}

// stopping runs srv.Stop and returns a function that gives its report.
func stopping(srv interface{ Stop(context.Context) Report }) func() Report {
	result := make(chan Report, 1)
	go func() { result <- srv.Stop(context.Background()) }()
	return sync.OnceValue(func() Report { return <-result })
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.URL.Path) }

// A gate holds handlers until it is opened, and says when one is there.
type gate struct{ entered, open chan struct{} }

func newGate() *gate { return &gate{make(chan struct{}, 1000), make(chan struct{})} }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.entered <- struct{}{}
	<-g.open
	hello(w, r)
}

// wantReport compares all but the duration, and that too if it is not zero.
func wantReport(t testing.TB, got, want Report) {
	t.Helper()
	if want.Duration == 0 {
		want.Duration = got.Duration
	}
	if got != want {
		t.Errorf("report\n got %+v\nwant %+v", got, want)
	}
}

func wantClose(t testing.TB, resp *http.Response, want bool) {
	t.Helper()
	if resp.Close != want {
		t.Errorf("response says Connection: close = %v, want %v", resp.Close, want)
	}
}

// eventually waits for what another goroutine, or the kernel, is about to do.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func repeat(s string, n int) string { return strings.Repeat(s, n) }

// discardLog is for tests in which net/http complains with reason.
var discardLog = log.New(io.Discard, "", 0)

// A lockedBuilder is a log to read while it is written.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuilder) logger() *log.Logger { return log.New(l, "", 0) }

// wrap is what a listener does with what it has accepted.
func wrap(r *registry, raw net.Conn, opaque bool) (net.Conn, bool) {
	return (&listener{reg: r, opaque: opaque}).wrap(raw)
}
