package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A moverListener gives connections to the next one, as package handover's do
// between processes: through a duplicate of the descriptor.
type moverListener struct {
	net.Listener // nil: accepts nothing but what is moved here
	next         *moverListener
	fails        atomic.Bool   // MoveConn returns an error
	tries        atomic.Int32  // of MoveConn
	later        chan struct{} // not movable until then
	hold         chan struct{} // MoveConn waits for that, or for its context
	deaf         bool          // not for its context
	arrived      chan net.Conn
	once         sync.Once
	gone         chan struct{}
}

func newMoverListener(ln net.Listener) *moverListener {
	l := &moverListener{Listener: ln, arrived: make(chan net.Conn, 1000), gone: make(chan struct{})}
	if ln != nil {
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				l.arrived <- c
			}
		}()
	}
	return l
}

func (l *moverListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.arrived:
		return c, nil
	case <-l.gone:
	}
	select {
	case c := <-l.arrived: // nobody else has it
		return c, nil
	default:
		return nil, net.ErrClosed
	}
}

func (l *moverListener) Close() error {
	l.once.Do(func() { close(l.gone) })
	if l.Listener != nil {
		return l.Listener.Close()
	}
	return nil
}

func (l *moverListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *moverListener) Movable() bool {
	if l.later != nil {
		select {
		case <-l.later:
		default:
			return false
		}
	}
	return l.next != nil
}

var errOnPurpose = errors.New("on purpose")

func (l *moverListener) MoveConn(ctx context.Context, c net.Conn, unread, state []byte) error {
	l.tries.Add(1)
	if l.hold != nil {
		if l.deaf {
			ctx = context.Background()
		}
		select {
		case <-l.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if l.fails.Load() {
		return errOnPurpose
	}
	if m, ok := c.(*movedPipe); ok {
		c, unread = m.Conn, append(slices.Clip(unread), m.unread...)
	}
	f, err := c.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return err
	}
	defer f.Close()
	dup, err := net.FileConn(f)
	if err != nil {
		return err
	}
	l.next.arrived <- &movedPipe{dup, bytes.Clone(unread), bytes.Clone(state)}
	return nil
}

// A movedPipe is a connection that was moved.
type movedPipe struct {
	net.Conn
	unread, state []byte
}

func (m *movedPipe) Moved() (net.Conn, []byte, []byte) { return m.Conn, m.unread, m.state }

func (m *movedPipe) Read(b []byte) (int, error) {
	if len(m.unread) > 0 {
		n := copy(b, m.unread)
		m.unread = m.unread[n:]
		return n, nil
	}
	return m.Conn.Read(b)
}

// A line of servers, each of which moves to the next.
type generations struct {
	t    testing.TB
	addr string
	make func(n int) *Server
	last *moverListener
	srv  *Server
	n    int
}

// answerer tells who answers, and gives the body back.
func answerer(n int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Generation", strconv.Itoa(n))
		w.Header().Set("Id", r.Header.Get("Id"))
		w.Write(body)
	})
}

func newGenerations(t testing.TB, make func(n int) *Server) *generations {
	g := &generations{t: t, make: make, n: 1}
	if make == nil {
		g.make = func(n int) *Server { return newServer(answerer(n)) }
	}
	ln := listenTCP(t)
	g.addr = ln.Addr().String()
	g.last, g.srv = newMoverListener(ln), g.make(1)
	serve(t, g.srv, g.last)
	t.Cleanup(func() { g.srv.Close(); g.srv.Stop(context.Background()) })
	return g
}

// replace begins to stop the last server when the next one serves.
func (g *generations) replace() func() Report {
	next := newMoverListener(nil)
	old := g.srv
	g.n++
	g.srv = g.make(g.n)
	serve(g.t, g.srv, next)
	g.last.next = next
	g.last = next
	return stopping(old)
}

// from checks which generation has answered, and that it did not say close.
func from(t testing.TB, resp *http.Response, want int) {
	t.Helper()
	if got := resp.Header.Get("Generation"); got != strconv.Itoa(want) {
		t.Errorf("generation %s has answered, want %d", got, want)
	}
	wantClose(t, resp, false)
}

func TestIdleAndSilentConnectionsMove(t *testing.T) {
	g := newGenerations(t, nil)
	idle, silent := dialTCP(t, g.addr), dialTCP(t, g.addr)
	resp, _ := idle.get("/")
	from(t, resp, 1)
	eventually(t, "both are known", func() bool { c := g.srv.Counts(); return c.Idle == 1 && c.New == 1 })
	for n := 2; n <= 5; n++ {
		wantReport(t, g.replace()(), Report{Moved: 2})
		if n%2 == 0 { // moved while it is new to its server, and while it is not
			resp, _ = idle.get("/")
			from(t, resp, n)
		}
	}
	resp, _ = silent.get("/")
	from(t, resp, 5)
	resp, _ = idle.get("/")
	from(t, resp, 5)
}

// A request that is being answered is finished, says nothing of a close, and
// its connection moves then.
func TestActiveConnectionMovesAfterItsAnswer(t *testing.T) {
	for _, unread := range []bool{false, true} {
		gate := newGate()
		g := newGenerations(t, func(n int) *Server {
			mux := http.NewServeMux()
			mux.Handle("/", answerer(n))
			mux.Handle("/wait", gate)
			return newServer(mux)
		})
		c := dialTCP(t, g.addr)
		c.sendGet("/wait")
		<-gate.entered
		stop := g.replace()
		old := g.n - 1
		if unread { // arrives while the first one is still being answered
			c.sendGet("/")
		}
		close(gate.open)
		resp, _ := c.receive()
		wantClose(t, resp, false)
		if !unread {
			wantReport(t, stop(), Report{Moved: 1})
			c.sendGet("/")
			old = g.n
		}
		resp, _ = c.receive()
		if unread && resp.Header.Get("Generation") == "2" {
			old = 2 // it was still in the socket
		}
		from(t, resp, old)
		wantReport(t, stop(), Report{Moved: 1})
		resp, _ = c.get("/")
		from(t, resp, 2)
	}
}

const wholeRequest = "POST /x HTTP/1.1\r\nHost: test\r\nId: 7\r\nContent-Length: 4\r\n\r\nbody"

// A request that is cut in two by the move, at each of its bytes, on a new, a
// used and a moved connection: answered once, by the server that gets the end of its
// head.
func TestRequestCutInTwoByAMove(t *testing.T) {
	headLen := strings.Index(wholeRequest, "body")
	for _, h2c := range []bool{false, true} {
		for _, kind := range []string{"new", "used", "moved"} {
			for at := range len(wholeRequest) {
				g := newGenerations(t, func(n int) *Server {
					srv := newServer(answerer(n))
					if h2c { // looks at the first bytes for itself
						srv.Protocols = new(http.Protocols)
						srv.Protocols.SetHTTP1(true)
						srv.Protocols.SetUnencryptedHTTP2(true)
					}
					return srv
				})
				c := dialTCP(t, g.addr)
				if kind == "used" {
					c.send(wholeRequest)
					c.receive()
				}
				eventually(t, "the connection waits", func() bool { return g.srv.resting() == 1 })
				if kind == "moved" {
					wantReport(t, g.replace()(), Report{Moved: 1})
					eventually(t, "the connection waits", func() bool { return g.srv.resting() == 1 })
				}
				old := g.srv
				c.send("%s", wholeRequest[:at])
				eventually(t, "the bytes are read", func() bool { return old.allRead(at) })
				stop := g.replace()
				want := g.n
				if at < headLen {
					wantReport(t, stop(), Report{Moved: 1})
				} else {
					want--
				}
				c.send("%s", wholeRequest[at:])
				resp, body := c.receive()
				if from(t, resp, want); body != "body" || resp.Header.Get("Id") != "7" {
					t.Errorf("answer %q %q", body, resp.Header.Get("Id"))
				}
				wantReport(t, stop(), Report{Moved: 1})
				resp, _ = c.get("/")
				from(t, resp, g.n)
				if t.Failed() {
					t.Fatalf("%s connection, h2c %v, cut at %d", kind, h2c, at)
				}
				c.Close()
				g.srv.Stop(t.Context())
			}
		}
	}
}

// allRead reports whether n bytes of a request have been read on the one
// connection there is.
func (s *Server) allRead(n int) bool {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	for e := range s.reg.entries {
		st, _ := e.load()
		return !hasUnread(e.raw) && (n == 0 || st == http.StateActive || e.got.Load())
	}
	return false
}

// resting is how many connections wait, in a read that may be interrupted, for
// a request or the rest of one.
func (s *Server) resting() int {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	n := 0
	for e := range s.reg.entries {
		if e.pass.waiting.Load() == inRead {
			n++
		}
	}
	return n
}

// keepsOne reports whether there is one connection, which could not be moved.
func (s *Server) keepsOne() bool {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	for e := range s.reg.entries {
		return e.pass.stays.Load()
	}
	return false
}

// Requests that come in one piece with others are answered in order, each once.
// The connection moves when none is left.
func TestPipelinedRequestsAcrossAMove(t *testing.T) {
	for _, tt := range []struct{ first, rest string }{
		{repeat(wholeRequest, 3), ""},
		{repeat(wholeRequest, 3) + wholeRequest[:3], wholeRequest[3:]},
		{repeat(wholeRequest, 3) + wholeRequest[:5], wholeRequest[5:]},
		{repeat(wholeRequest, 3) + wholeRequest[:40], wholeRequest[40:]},
		{repeat(wholeRequest, 3) + wholeRequest[:len(wholeRequest)-2], wholeRequest[len(wholeRequest)-2:]},
		{repeat(wholeRequest, 200), wholeRequest}, // more than net/http's buffer
	} {
		gate := newGate()
		g := newGenerations(t, func(n int) *Server {
			return newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n == 1 && r.URL.Path == "/wait" {
					gate.entered <- struct{}{}
					<-gate.open
				}
				answerer(n).ServeHTTP(w, r)
			}))
		})
		c := dialTCP(t, g.addr)
		sent := make(chan struct{})
		go func() { // the server does not read while it waits
			defer close(sent)
			io.WriteString(c, "GET /wait HTTP/1.1\r\nHost: test\r\n\r\n"+tt.first)
		}()
		<-gate.entered
		stop := g.replace()
		close(gate.open)
		<-sent
		c.send("%s", tt.rest)
		want := 1 + strings.Count(tt.first+tt.rest, "POST")
		last := "1"
		for i := range want {
			resp, body := c.receive()
			wantClose(t, resp, false)
			if i > 0 && (body != "body" || resp.Header.Get("Id") != "7") {
				t.Fatalf("answer %d of %d: %q", i, want, body)
			}
			if got := resp.Header.Get("Generation"); got < last {
				t.Errorf("answered by %s after %s", got, last)
			} else {
				last = got
			}
		}
		wantReport(t, stop(), Report{Moved: 1})
		resp, _ := c.get("/")
		from(t, resp, 2)
	}
}

// A connection that nobody takes is served here, and drained as if there were
// no successor.
func TestConnectionThatCannotMoveLingers(t *testing.T) {
	g := newGenerations(t, nil)
	c := dialTCP(t, g.addr)
	c.get("/")
	eventually(t, "it is idle", func() bool { return g.srv.Counts().Idle == 1 })
	g.last.fails.Store(true)
	old := g.srv
	stop := g.replace()
	eventually(t, "the move has failed", old.keepsOne)
	resp, _ := c.get("/")
	if got := resp.Header.Get("Generation"); got != "1" {
		t.Errorf("generation %s has answered", got)
	}
	wantClose(t, resp, true)
	c.wantEOF()
	wantReport(t, stop(), Report{Finished: 1})
}

// The deadline that net/http has set survives a move that fails.
func TestDeadlineSurvivesAFailedMove(t *testing.T) {
	// It must not be over before the move is tried.
	for timeout := 300 * time.Millisecond; ; timeout *= 4 {
		g := newGenerations(t, func(n int) *Server {
			srv := newServer(answerer(n))
			srv.IdleTimeout, srv.StopTimeout, srv.Linger = timeout, time.Hour, time.Hour
			return srv
		})
		c := dialTCP(t, g.addr)
		c.get("/")
		g.last.fails.Store(true)
		ln := g.last
		report := g.replace()()
		c.wantEOF()
		if ln.tries.Load() == 0 && timeout < time.Minute {
			continue
		}
		wantReport(t, report, Report{Finished: 1})
		return
	}
}

// A move that takes for ever ends when the stop timeout does.
func TestStopTimeoutBoundsMoves(t *testing.T) {
	g := newGenerations(t, func(n int) *Server {
		srv := newServer(answerer(n))
		srv.StopTimeout = 100 * time.Millisecond
		return srv
	})
	c := dialTCP(t, g.addr)
	c.get("/")
	g.last.hold = make(chan struct{})
	report := g.replace()()
	if report.Remaining != 0 || report.Stuck != 0 || report.Moved != 0 || report.Connections() != 1 {
		t.Errorf("report %+v", report)
	}
	c.wantEOF()
}

// Neither TLS nor HTTP/2 can move.
func TestHTTP2AndTLSStay(t *testing.T) {
	for _, e := range []*entry{{opaque: true}, {}} {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		l := newMoverListener(nil)
		l.next = l
		var reg registry
		reg.mu.Lock()
		reg.initLocked()
		reg.mu.Unlock()
		w, _ := (&listener{Listener: l, reg: &reg, opaque: e.opaque}).wrap(far)
		if got := reg.lookup(w); got.movable() {
			t.Errorf("opaque %v, %T may move", e.opaque, far)
		}
	}
	ln := listenTCP(t)
	dialTCP(t, ln.Addr().String())
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	l := newMoverListener(nil)
	l.next = l
	var reg registry
	w, _ := (&listener{Listener: l, reg: &reg}).wrap(far)
	e := reg.lookup(w)
	if !e.movable() {
		t.Error("a plain connection may not move")
	}
	e.muxed.Store(true)
	if e.movable() {
		t.Error("an HTTP/2 connection may move")
	}
}

// Between two requests net/http does in this order what the passport relies on.
// If this fails with a new Go, read the passport's comment, net/http's
// (*conn).serve, and think again.
func TestOrderBetweenTwoRequests(t *testing.T) {
	want := []string{"idle", "deadline", "read 4096", "deadline", "deadline", "active"}
	for name, tt := range map[string]struct {
		send []string
		want []string
	}{
		"one after the other": {[]string{wholeRequest, wholeRequest}, want},
		"GET after GET":       {[]string{"GET / HTTP/1.1\r\nHost: t\r\n\r\n", wholeRequest}, want},
		// Without a read of all but three bytes nothing may move.
		"pipelined whole":    {[]string{wholeRequest + wholeRequest}, []string{"idle", "deadline", "deadline", "deadline", "active"}},
		"pipelined 2 bytes":  {[]string{wholeRequest + wholeRequest[:2], wholeRequest[2:]}, []string{"idle", "deadline", "read 4094", "deadline", "deadline", "active"}},
		"pipelined 20 bytes": {[]string{wholeRequest + wholeRequest[:20], wholeRequest[20:]}, []string{"idle", "deadline", "deadline", "read", "deadline", "active"}},
		// The line has been consumed, so that the read is of full size.
		"pipelined, a line": {[]string{wholeRequest + wholeRequest[:18], wholeRequest[18:]}, []string{"idle", "deadline", "deadline", "read", "deadline", "active"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var (
				mu     sync.Mutex
				events []string
			)
			note := func(s string) {
				mu.Lock()
				defer mu.Unlock()
				events = append(events, s)
			}
			ln := newPipeListener()
			ln.wrap = func(c net.Conn) net.Conn { return &noting{c, note} }
			srv := &http.Server{
				Handler: answerer(1), ReadHeaderTimeout: time.Minute,
				ConnState: func(_ net.Conn, st http.ConnState) { note(st.String()) },
			}
			served := serve(t, srv, ln)
			c := ln.dial(t)
			c.send("%s", tt.send[0])
			c.receive()
			synctest.Wait()
			if len(tt.send) > 1 {
				c.send("%s", tt.send[1])
			}
			c.receive()
			synctest.Wait()
			srv.Close()
			served()
			mu.Lock()
			defer mu.Unlock()
			from := slices.Index(events, "idle")
			got := events[from:]
			got = got[:slices.Index(got, "active")+1]
			for i := range got {
				if i < len(tt.want) && tt.want[i] == "read" && strings.HasPrefix(got[i], "read ") {
					got[i] = "read"
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%s: %v, want %v", name, got, tt.want)
			}
		})
	}
}

// A noting connection tells what is done with it.
type noting struct {
	net.Conn
	note func(string)
}

func (c *noting) Read(b []byte) (int, error) {
	c.note(fmt.Sprint("read ", len(b)))
	return c.Conn.Read(b)
}

func (c *noting) SetReadDeadline(t time.Time) error {
	c.note("deadline")
	return c.Conn.SetReadDeadline(t)
}

// A connection that was moved here is idle, not new: it has the time that idle
// ones have, and its request has all of its own.
func TestTimeoutsOfMovedConnections(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		read, header, idleLimit time.Duration
		wait                    time.Duration // until the first byte
		head                    time.Duration // then until the end of the head
		body                    time.Duration // then until the end of the body
		answered                bool
	}{
		{"none", 0, 0, 0, 24 * time.Hour, time.Hour, time.Hour, true},
		{"idle for longer than a head may take", 0, time.Second, time.Hour, time.Minute, 0, time.Minute, true},
		{"idle for longer than a request may take", time.Second, 0, time.Hour, time.Minute, 0, 0, true},
		{"the body takes its time", 10 * time.Second, 0, time.Hour, time.Minute, 4 * time.Second, 4 * time.Second, true},
		{"idle for too long", 0, 0, time.Second, 2 * time.Second, 0, 0, false},
		{"idle for too long, by the read timeout", time.Second, 0, 0, 2 * time.Second, 0, 0, false},
		{"the head takes too long", 0, time.Second, time.Hour, time.Minute, 2 * time.Second, 0, false},
		{"the request takes too long", 10 * time.Second, 0, time.Hour, time.Minute, 8 * time.Second, 4 * time.Second, false},
	} {
		for _, unread := range []string{"", wholeRequest[:3]} {
			synctest.Test(t, func(t *testing.T) {
				srv, ln := newServer(answerer(1)), newPipeListener()
				srv.ErrorLog = discardLog
				srv.ReadTimeout, srv.ReadHeaderTimeout, srv.IdleTimeout = tt.read, tt.header, tt.idleLimit
				ln.wrap = func(c net.Conn) net.Conn { return &movedPipe{Conn: c, unread: []byte(unread)} }
				served := serve(t, srv, ln)
				c := ln.dial(t)
				if unread == "" {
					time.Sleep(tt.wait)
				} else if tt.wait > tt.idleLimit {
					tt.answered = tt.answered || tt.head+tt.body == 0
				}
				sent := make(chan struct{})
				go func() { // net/http answers a slow head with an error
					defer close(sent)
					io.WriteString(c, wholeRequest[len(unread):len(unread)+1])
					time.Sleep(tt.head)
					io.WriteString(c, wholeRequest[len(unread)+1:len(wholeRequest)-1])
					time.Sleep(tt.body)
					io.WriteString(c, wholeRequest[len(wholeRequest)-1:])
				}()
				resp, err := http.ReadResponse(c.br, nil)
				if got := err == nil && resp.StatusCode == 200; got != tt.answered {
					t.Errorf("%s, %d bytes unread: answered %v, want %v", tt.name, len(unread), got, tt.answered)
				}
				c.Close()
				<-sent
				srv.Stop(t.Context())
				served()
			})
		}
	}
}

// Clients that send in odd pieces, and many at once, while one server after
// the other takes over.
func TestMovesUnderOddLoad(t *testing.T) {
	const clients = 24
	replacements := 30
	if testing.Short() {
		replacements = 5
	}
	g := newGenerations(t, nil)
	var (
		wg   sync.WaitGroup
		done = make(chan struct{})
		n    atomic.Int64
	)
	conns := make([]*client, clients)
	for i := range conns {
		conns[i] = dialTCP(t, g.addr)
	}
	eventually(t, "all are known", func() bool { return g.srv.Counts().Open() == clients })
	for i, c := range conns {
		wg.Go(func() {
			defer c.Close()
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for id := 0; ; {
				select {
				case <-done:
					return
				default:
				}
				var b strings.Builder
				together := 1 + rng.IntN(3)
				for j := range together {
					body := strings.Repeat("b", rng.IntN(2)*rng.IntN(6000))
					fmt.Fprintf(&b, "POST / HTTP/1.1\r\nHost: test\r\nId: %d-%d\r\nContent-Length: %d\r\n\r\n%s", i, id+j, len(body), body)
				}
				text := b.String()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				sent := make(chan error, 1)
				go func() {
					for len(text) > 0 {
						cut := min(len(text), 1+rng.IntN(3000))
						if rng.IntN(4) == 0 {
							cut = min(len(text), 1+rng.IntN(60))
							time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond) // a slow client
						}
						if _, err := io.WriteString(c, text[:cut]); err != nil {
							sent <- err
							return
						}
						text = text[cut:]
					}
					sent <- nil
				}()
				for j := range together {
					resp, err := http.ReadResponse(c.br, nil)
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
					}
					if err != nil {
						t.Errorf("client %d, request %d: %v", i, id+j, err)
						<-sent
						return
					}
					if got, want := resp.Header.Get("Id"), fmt.Sprintf("%d-%d", i, id+j); got != want || resp.Close {
						t.Errorf("answer to %q, want %q; close %v", got, want, resp.Close)
					}
					n.Add(1)
				}
				if err := <-sent; err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				id += together
			}
		})
	}
	sum := Report{}
	for range replacements {
		from := n.Load()
		eventually(t, "requests are answered", func() bool { return t.Failed() || n.Load() > from+clients })
		r := g.replace()()
		sum.Moved += r.Moved
		if r.Moved != clients || r.Connections() != clients {
			t.Errorf("report %+v", r)
		}
	}
	close(done)
	wg.Wait()
	t.Logf("%d requests, %d moves in %d replacements", n.Load(), sum.Moved, replacements)
}

// A line protocol with a state moves from server to server in the middle of a line.
func TestStreamMoves(t *testing.T) {
	ln := newMoverListener(listenTCP(t))
	addr := ln.Listener.Addr().String()
	make := func(n int) *StreamServer {
		var srv *StreamServer
		srv = newStream(func(ctx context.Context, c net.Conn) {
			sum := 0
			if state, ok := MovedState(ctx); ok {
				if err := json.Unmarshal(state, &sum); err != nil {
					t.Error(err)
				}
			} else if n > 1 {
				t.Error("a connection that was not moved")
			}
			var line []byte
			buf := [7]byte{}
			for {
				k, err := c.Read(buf[:])
				line = append(line, buf[:k]...)
				for i := bytes.IndexByte(line, '\n'); i >= 0; i = bytes.IndexByte(line, '\n') {
					v, _ := strconv.Atoi(string(line[:i]))
					sum += v
					line = line[i+1:]
					fmt.Fprintf(c, "%d %d\n", n, sum)
				}
				if err == nil {
					continue
				}
				state, _ := json.Marshal(sum)
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					if err := srv.Move(ctx, line, state); err != nil && (n < 10 || err != ErrNotMovable) {
						t.Errorf("Move: %v", err)
					}
				}
				return
			}
		})
		return srv
	}
	srv := make(1)
	serve(t, srv, ln)
	c := dialTCP(t, addr)
	c.send("1")
	for n := 2; n <= 10; n++ {
		eventually(t, "it is served", func() bool { return srv.Counts().Active == 1 })
		next, nextLn := make(n), newMoverListener(nil)
		serve(t, next, nextLn)
		ln.next = nextLn
		report := srv.Stop(t.Context())
		wantReport(t, report, Report{Moved: 1})
		srv, ln = next, nextLn
		c.send("\n1\n1")
		for i := range 2 {
			if got, _ := c.br.ReadString('\n'); got != fmt.Sprintf("%d %d\n", n, 2*(n-2)+1+i) {
				t.Fatalf("answer %q", got)
			}
		}
	}
	c.Close()
	srv.Stop(t.Context())
}

func TestStreamMoveThatCannotBe(t *testing.T) {
	var srv *StreamServer
	got := make(chan error, 3)
	srv = newStream(func(ctx context.Context, c net.Conn) {
		got <- srv.Move(ctx, nil, nil)
		<-srv.Draining()
		got <- srv.Move(ctx, nil, nil)
		got <- srv.Move(context.Background(), nil, nil)
		_, moved := MovedState(ctx)
		if moved {
			t.Error("moved")
		}
	})
	ln := newMoverListener(listenTCP(t))
	serve(t, srv, ln)
	dialTCP(t, ln.Listener.Addr().String())
	if err := <-got; err != ErrNotMovable {
		t.Errorf("before the drain: %v", err)
	}
	srv.Stop(t.Context())
	if err := <-got; err != ErrNotMovable {
		t.Errorf("without a successor: %v", err)
	}
	if err := <-got; err == nil || err == ErrNotMovable {
		t.Errorf("with a strange context: %v", err)
	}
	if _, ok := MovedState(context.Background()); ok {
		t.Error("a strange context is of a moved connection")
	}
}
