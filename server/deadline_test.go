package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// A dated conn counts what is done to its read deadline.
type datedConn struct {
	net.Conn
	sets int
	err  error
}

func (c *datedConn) SetReadDeadline(time.Time) error {
	c.sets++
	return c.err
}

// A deadline is not taken away where there is none.
func TestDeadlineThatIsGoneAlready(t *testing.T) {
	none, later := time.Time{}, time.Now().Add(time.Hour)
	for _, st := range []http.ConnState{http.StateIdle, http.StateActive} {
		for _, frugal := range []bool{true, false} {
			c := new(datedConn)
			e := &entry{raw: c}
			e.pass.frugal = frugal
			e.state.Store(pack(st, 0))
			for i, step := range []struct {
				to   time.Time
				err  error
				want int // calls so far
			}{
				{none, nil, 1}, {none, nil, 1}, {later, nil, 2}, {later, nil, 3}, {none, errors.New("out of order"), 4}, {none, nil, 5}, {none, nil, 5},
			} {
				c.err = step.err
				if err := e.setReadDeadline(c, step.to); !errors.Is(err, step.err) {
					t.Errorf("%v, frugal %v, step %d: %v, want %v", st, frugal, i, err, step.err)
				}
				if !frugal {
					step.want = i + 1
				}
				if c.sets != step.want {
					t.Errorf("%v, frugal %v, step %d: %d calls, want %d", st, frugal, i, c.sets, step.want)
				}
			}
		}
	}
}

// Whoever else may hold the connection can set deadlines unseen.
func TestWhoeverElseSetsDeadlines(t *testing.T) {
	tcp := listenTCP(t)
	for _, tt := range []struct {
		name string
		srv  *Server
		ln   net.Listener
		want bool
	}{
		{"nobody", &Server{}, tcp, true},
		{"nobody, and connections may move", &Server{}, stayListener{tcp}, true},
		{"ConnState", &Server{Server: http.Server{ConnState: func(net.Conn, http.ConnState) {}}}, tcp, false},
		{"ConnContext", &Server{Server: http.Server{ConnContext: func(ctx context.Context, _ net.Conn) context.Context { return ctx }}}, tcp, false},
		{"OnHijackedDrain", &Server{OnHijackedDrain: func(net.Conn) {}}, tcp, false},
		{"the listener", &Server{}, struct{ net.Listener }{tcp}, false},
	} {
		if got := tt.srv.alone(tt.ln); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// A handler's deadline, however it was set, ends with its request.
func TestDeadlineOfAHandlerEndsWithIt(t *testing.T) {
	const short = time.Second // longer than a request takes on a busy machine
	deadlines := make(chan time.Time, 1)
	ln := listenTCP(t)
	srv := &Server{Server: http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/short" {
			deadline := time.Now().Add(short)
			if err := http.NewResponseController(w).SetReadDeadline(deadline); err != nil {
				t.Error(err)
			}
			deadlines <- deadline
		}
	})}}
	served := serve(t, srv, ln)
	defer served()
	defer srv.Close()
	c := dialTCP(t, ln.Addr().String())
	for _, path := range []string{"/", "/short", "/short", "/", "/"} {
		c.get(path)
		select {
		case deadline := <-deadlines: // what is waited for is that it passes
			<-time.After(time.Until(deadline))
		default:
		}
	}
}

// A hijacker's deadlines work, all of them.
func TestDeadlinesOfAHijacker(t *testing.T) {
	ln := listenTCP(t)
	srv := &Server{Server: http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		b := make([]byte, 1)
		for range 2 {
			c.SetDeadline(time.Unix(1, 0))
			if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read with a deadline that is over: %v", err)
			}
			if _, err := c.Write(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("write with a deadline that is over: %v", err)
			}
			c.SetDeadline(time.Time{})
			c.Write([]byte("?"))
			if _, err := c.Read(b); err != nil || b[0] != '!' {
				t.Errorf("read without a deadline: %q, %v", b, err)
			}
		}
	})}}
	served := serve(t, srv, ln)
	defer served()
	defer srv.Close()
	c := dialTCP(t, ln.Addr().String())
	c.sendGet("/")
	for range 2 {
		if b, err := c.br.ReadByte(); err != nil || b != '?' {
			t.Fatalf("got %q, %v", b, err)
		}
		c.send("!")
	}
	c.wantEOF()
}

// Requests are counted wherever they lie in memory.
func TestRunningCountsAll(t *testing.T) {
	var c running
	all := make([]*http.Request, 1000)
	used := map[*atomic.Int64]bool{}
	for i := range all {
		all[i] = new(http.Request)
		used[c.of(all[i])] = true
		c.of(all[i]).Add(1)
	}
	if n := c.total(); n != int64(len(all)) {
		t.Errorf("%d count, want %d", n, len(all))
	}
	if len(used) < len(c)/2 {
		t.Errorf("%d counters of %d are used", len(used), len(c))
	}
	for _, r := range all {
		c.of(r).Add(-1)
	}
	if n := c.total(); n != 0 {
		t.Errorf("%d count in the end", n)
	}
}
