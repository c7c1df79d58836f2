package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// net/http ignores empty lines after the body of a POST, since old clients send
// one. Its successor has not seen the POST.
func TestEmptyLineAfterPostMoves(t *testing.T) {
	for _, tt := range []struct{ with, before, after string }{
		{"", "\r\n", ""},
		{"", "\r", "\n"},
		{"", "", "\r\n"},
		{"", "\r\nG", ""},
		{"\r\n", "", ""}, // in one piece with the body
		{"\r\nP", "", ""},
	} {
		g := newGenerations(t, nil)
		c := dialTCP(t, g.addr)
		c.send("%s", wholeRequest+tt.with)
		c.receive()
		eventually(t, "it is idle", func() bool { return g.srv.Counts().Idle == 1 })
		c.send("%s", tt.before)
		old := g.srv
		eventually(t, "the bytes are read", func() bool { return old.allRead(len(tt.before)) })
		stop := g.replace()
		wantReport(t, stop(), Report{Moved: 1})
		request := wholeRequest
		if strings.HasSuffix(tt.before, "G") {
			request = "ET / HTTP/1.1\r\nHost: test\r\n\r\n"
		} else {
			request = strings.TrimPrefix(request, strings.TrimSpace(tt.with))
		}
		c.send("%s", tt.after+request)
		resp, _ := c.receive()
		if from(t, resp, 2); resp.StatusCode != 200 {
			t.Errorf("%q: %s", tt, resp.Status)
		}
		c.Close()
	}
}

// net/http takes a line that an error cuts off for a whole one, and reads on.
func TestMoveIsTriedOnce(t *testing.T) {
	for _, cut := range []string{"GET /", "GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: test", "GET / HTTP/1.1\r\nHost: test\r\n\r"} {
		g := newGenerations(t, nil)
		c, ln := dialTCP(t, g.addr), g.last
		c.send("%s", cut)
		eventually(t, "the bytes are read", func() bool { return g.srv.allRead(len(cut)) })
		wantReport(t, g.replace()(), Report{Moved: 1})
		if n := ln.tries.Load(); n != 1 {
			t.Errorf("%q: moved %d times", cut, n)
		}
	}
}

// A handler that is so wrong as to move its connection twice, or from two
// goroutines, does not make two of it.
func TestStreamMovesOnce(t *testing.T) {
	ln := newMoverListener(listenTCP(t))
	ln.next = newMoverListener(nil)
	var (
		srv  *StreamServer
		done atomic.Int32
	)
	srv = newStream(func(ctx context.Context, c net.Conn) {
		<-srv.Draining()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if srv.Move(ctx, nil, nil) == nil {
					done.Add(1)
				}
			})
		}
		wg.Wait()
		if err := srv.Move(ctx, nil, nil); err != ErrNotMovable {
			t.Errorf("Move after Move: %v", err)
		}
	})
	serve(t, srv, ln)
	dialTCP(t, ln.Listener.Addr().String())
	eventually(t, "it is served", func() bool { return srv.Counts().Active == 1 })
	wantReport(t, srv.Stop(t.Context()), Report{Moved: 1})
	if n := len(ln.next.arrived); n != 1 || done.Load() != 1 {
		t.Errorf("moved %d times, %d arrived", done.Load(), n)
	}
	for range len(ln.next.arrived) {
		(<-ln.next.arrived).Close()
	}
}

// After an error Move can be called again.
func TestStreamMoveAfterAFailure(t *testing.T) {
	ln := newMoverListener(listenTCP(t))
	ln.next = newMoverListener(nil)
	ln.fails.Store(true)
	var srv *StreamServer
	srv = newStream(func(ctx context.Context, c net.Conn) {
		<-srv.Draining()
		if err := srv.Move(ctx, nil, nil); err != errOnPurpose {
			t.Errorf("Move: %v", err)
		}
		ln.fails.Store(false)
		if err := srv.Move(ctx, nil, nil); err != nil {
			t.Errorf("Move: %v", err)
		}
	})
	serve(t, srv, ln)
	dialTCP(t, ln.Listener.Addr().String())
	eventually(t, "it is served", func() bool { return srv.Counts().Active == 1 })
	wantReport(t, srv.Stop(t.Context()), Report{Moved: 1})
	(<-ln.next.arrived).Close()
}

// Moving an idle connection comes before closing it.
func TestNoLingerAndMoves(t *testing.T) {
	const n = 50
	g := newGenerations(t, func(n int) *Server {
		srv := newServer(answerer(n))
		srv.Linger = -1
		return srv
	})
	for i := range n {
		c := dialTCP(t, g.addr)
		if i%2 == 0 {
			c.get("/")
		}
	}
	eventually(t, "all are known", func() bool { c := g.srv.Counts(); return c.Idle == n/2 && c.New == n/2 })
	wantReport(t, g.replace()(), Report{Moved: n})
}

// A client that always has its next request on the way moves all the same.
func TestSteadyPipelineMoves(t *testing.T) {
	g := newGenerations(t, func(n int) *Server {
		return newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Millisecond) // net/http finds the next request's first byte
			answerer(n).ServeHTTP(w, r)
		}))
	})
	c := dialTCP(t, g.addr)
	c.sendGet("/")
	var stop func() Report
	for i := 0; ; i++ {
		c.sendGet("/")
		resp, _ := c.receive()
		wantClose(t, resp, false)
		if resp.Header.Get("Generation") == "2" {
			break
		}
		if i == 20 {
			old := g.srv
			stop = g.replace()
			<-old.Draining()
		}
		if i == 1000 {
			t.Fatal("it has not moved")
		}
	}
	c.receive()
	wantReport(t, stop(), Report{Moved: 1})
}

// One whose pipeline is never empty is told to close in time, before it is
// killed.
func TestFullPipelineIsTold(t *testing.T) {
	// That it is killed proves something only if the server had time enough.
	for timeout := 2 * time.Second; ; timeout *= 4 {
		switch r := stopWithFullPipeline(t, timeout); {
		case r.Killed == 1 && timeout < 30*time.Second:
			t.Logf("with %v: %v", timeout, r)
			continue
		// Where the pipeline happens to run dry the connection moves after all.
		case r.Finished+r.Moved != 1 || r.Connections() != 1:
			t.Errorf("report %+v", r)
		}
		return
	}
}

func stopWithFullPipeline(t *testing.T, timeout time.Duration) Report {
	g := newGenerations(t, func(n int) *Server {
		srv := newServer(answerer(n))
		srv.StopTimeout = timeout
		return srv
	})
	c := dialTCP(t, g.addr)
	const head = "GET / HTTP/1.1\r\nHost: test\r\nPad: %s\r\n\r\n"
	request := fmt.Sprintf(head, repeat("x", 100-len(head)+len("%s")))
	go func() {
		many := repeat(request, 50)
		for {
			if _, err := io.WriteString(c, many); err != nil {
				return
			}
		}
	}()
	for range 100 {
		c.receive()
	}
	stop := g.replace()
	go io.Copy(io.Discard, c.br)
	report := stop()
	c.Close()
	return report
}

// The context of another server's connection says nothing of this one.
func TestContextOfAnotherServer(t *testing.T) {
	outer := newMoverListener(listenTCP(t))
	outer.next = newMoverListener(nil)
	gate, entered := make(chan struct{}), make(chan struct{})
	stream := newStream(nil)
	inner, ln := newServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-gate
	})), newPipeListener()
	ctxs := make(chan context.Context, 1)
	inner.ConnContext = func(context.Context, net.Conn) context.Context { return <-ctxs }
	stream.Handler = func(ctx context.Context, c net.Conn) {
		ctxs <- ctx
		ln.conns <- c
		<-ctx.Done()
	}
	serve(t, stream, outer)
	serve(t, inner, ln)
	c := dialTCP(t, outer.Listener.Addr().String())
	c.sendGet("/")
	<-entered
	stop1, stop2 := stopping(inner), stopping(stream)
	<-inner.Draining()
	<-stream.Draining()
	close(gate)
	resp, _ := c.receive()
	wantClose(t, resp, true)
	stop1()
	stream.Close()
	stop2()
}

// With HTTP/2 enabled net/http waits for the first bytes before it reckons.
func TestReadTimeoutOfMovedConnection(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		for _, body := range []time.Duration{8 * time.Second, 30 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				srv, ln := newServer(answerer(1)), newPipeListener()
				srv.ReadTimeout, srv.IdleTimeout = 10*time.Second, time.Hour
				srv.Protocols = new(http.Protocols)
				srv.Protocols.SetHTTP1(true)
				srv.Protocols.SetUnencryptedHTTP2(h2c)
				ln.wrap = func(c net.Conn) net.Conn { return &movedPipe{Conn: c} }
				served := serve(t, srv, ln)
				c := ln.dial(t)
				time.Sleep(time.Minute)
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					io.WriteString(c, wholeRequest[:len(wholeRequest)-1])
					time.Sleep(body)
					io.WriteString(c, wholeRequest[len(wholeRequest)-1:])
				}()
				resp, err := http.ReadResponse(c.br, nil)
				if got, want := err == nil && resp.StatusCode == 200, body < srv.ReadTimeout; got != want {
					t.Errorf("h2c %v, body after %v: answered %v, want %v", h2c, body, got, want)
				}
				c.Close()
				<-sent
				srv.Stop(t.Context())
				served()
			})
		}
	}
}

// A stream server may give more along than net/http reads at once, and a
// handler that has hijacked the connection may not use its Read.
func TestUnreadBytesAndFastPath(t *testing.T) {
	data := repeat("0123456789", 1000)
	got := make(chan string, 1)
	srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		var b strings.Builder
		io.CopyN(&b, rw, int64(rw.Reader.Buffered()))
		io.Copy(&b, c)
		got <- b.String()
	})), newMoverListener(nil)
	serve(t, srv, ln)
	near := listenTCP(t)
	c := dialTCP(t, near.Addr().String())
	far, err := near.Accept()
	if err != nil {
		t.Fatal(err)
	}
	const head = "GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n"
	ln.arrived <- &movedPipe{Conn: far, unread: []byte(head + data)}
	c.send("%s", data)
	c.Conn.(*net.TCPConn).CloseWrite()
	if s := <-got; s != data+data {
		t.Errorf("%d bytes, want %d", len(s), 2*len(data))
	}
	srv.Stop(t.Context())
}

// Who has hijacked a connection may read it from several goroutines, also what
// came along with it.
func TestUnreadBytesAreReadBySeveral(t *testing.T) {
	data := repeat("0123456789", 10_000)
	sum := make(chan int, 1)
	srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		var (
			n  atomic.Int64
			wg sync.WaitGroup
		)
		n.Add(int64(rw.Reader.Buffered()))
		together := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				<-together
				for b := make([]byte, 7); ; {
					k, err := c.Read(b)
					if n.Add(int64(k)); err != nil {
						return
					}
				}
			})
		}
		close(together)
		wg.Wait()
		sum <- int(n.Load())
	})), newMoverListener(nil)
	serve(t, srv, ln)
	near := listenTCP(t)
	c := dialTCP(t, near.Addr().String())
	far, err := near.Accept()
	if err != nil {
		t.Fatal(err)
	}
	const head = "GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n"
	ln.arrived <- &movedPipe{Conn: far, unread: []byte(head + data)}
	c.send("%s", data)
	c.Conn.(*net.TCPConn).CloseWrite()
	if got := <-sum; got != 2*len(data) {
		t.Errorf("%d bytes, want %d", got, 2*len(data))
	}
	srv.Stop(t.Context())
}

// An idle connection whose move is cut off has lost nothing.
func TestMoveThatIsCutOffIsClosed(t *testing.T) {
	g := newGenerations(t, nil)
	c := dialTCP(t, g.addr)
	c.get("/")
	ln, old := g.last, g.srv
	eventually(t, "it waits for a request", func() bool { return old.resting() == 1 })
	ln.hold = make(chan struct{})
	stop := g.replace()
	eventually(t, "the move has begun", func() bool { return ln.tries.Load() == 1 })
	ended, end := context.WithCancel(t.Context())
	end()
	old.Stop(ended)
	wantReport(t, stop(), Report{Closed: 1})
}

// A move that never ends does not keep Stop, nor Close.
func TestMoveThatNeverEnds(t *testing.T) {
	for _, closes := range []bool{false, true} {
		g := newGenerations(t, func(n int) *Server {
			srv := newServer(answerer(n))
			srv.KillTimeout = 50 * time.Millisecond
			return srv
		})
		c := dialTCP(t, g.addr)
		c.get("/")
		ln, old := g.last, g.srv
		eventually(t, "it waits for a request", func() bool { return old.resting() == 1 })
		ln.hold, ln.deaf = make(chan struct{}), true
		stop := g.replace()
		eventually(t, "the move has begun", func() bool { return ln.tries.Load() == 1 })
		ended, end := context.WithCancel(t.Context())
		end()
		if closes {
			old.Close()
		} else {
			old.Stop(ended)
		}
		wantReport(t, stop(), Report{Closed: 1})
		close(ln.hold)
		eventually(t, "the move has failed", func() bool { return old.Counts().Open() == 0 })
		c.wantEOF()
	}
}

// A mover may become one later.
func TestMovableComesLater(t *testing.T) {
	g := newGenerations(t, nil)
	c := dialTCP(t, g.addr)
	c.get("/")
	ln, old := g.last, g.srv
	eventually(t, "it waits for a request", func() bool { return old.resting() == 1 })
	ln.later = make(chan struct{})
	stop := g.replace()
	eventually(t, "all have been asked to move", func() bool { return old.reg.hasPoked() })
	if old.resting() != 1 {
		t.Error("it does not wait any more")
	}
	close(ln.later)
	old.reg.sweep(old.reg.plan)
	wantReport(t, stop(), Report{Moved: 1})
}

// hasPoked reports whether every connection has had its turn.
func (r *registry) hasPoked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phase.Load() == draining && !r.poking
}

// Connections that wait for their turn to move are not taken for silent ones,
// however long that takes.
func TestConnectionsThatWaitForTheirTurnAreNotClosed(t *testing.T) {
	const n = 60
	turns := int32(moveAtOnce(n))
	g := newGenerations(t, func(n int) *Server {
		srv := newServer(answerer(n))
		srv.Linger = -1
		return srv
	})
	conns := make([]*client, n)
	for i := range conns {
		conns[i] = dialTCP(t, g.addr)
		if i%2 == 0 {
			conns[i].get("/")
		}
	}
	ln, old := g.last, g.srv
	eventually(t, "all wait for requests", func() bool { return old.resting() == n })
	ln.hold = make(chan struct{})
	stop := g.replace()
	eventually(t, "the first ones move", func() bool { return ln.tries.Load() == turns })
	old.reg.age(time.Hour)
	if got := old.Counts().Open(); got != n {
		t.Errorf("%d of %d are open", got, n)
	}
	close(ln.hold)
	report := stop()
	report.Duration = 0 // an hour, and what it has taken
	wantReport(t, report, Report{Moved: n})
	for _, c := range conns {
		resp, _ := c.get("/")
		from(t, resp, 2)
	}
}

// age makes a drain that has begun older, and has what is over its time closed.
func (r *registry) age(by time.Duration) {
	r.mu.Lock()
	r.began -= by
	r.mu.Unlock()
	r.sweep(r.plan)
}

// That a reader does not come back from its interrupted read at once, since the
// machine is busy, does not speak against its connection. That nobody takes it
// does.
func TestInterruptedConnectionIsNotClosed(t *testing.T) {
	ln := listenTCP(t)
	dialTCP(t, ln.Addr().String())
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l := newMoverListener(nil)
	l.next = newMoverListener(nil)
	var r registry
	w, _ := (&listener{Listener: l, reg: &r}).wrap(far)
	e := r.lookup(w)
	r.setState(e, w, http.StateIdle)
	e.got.Store(false)
	e.pass.waiting.Store(inRead)
	done := stopping(stopFunc(func(ctx context.Context) Report {
		return r.stop(ctx, func() plan { return makePlan(0, 0, -1) })
	}))
	eventually(t, "it is interrupted", func() bool { return e.pass.waiting.Load() == interrupted })
	closed := func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return e.outcome != finished
	}
	if r.age(time.Hour); closed() {
		t.Error("closed when its reader has not come back")
	}
	e.endRead(far)
	e.yield()
	if r.age(time.Hour); closed() {
		t.Error("closed before its move was tried")
	}
	e.pass.stays.Store(true)
	if r.age(time.Hour); !closed() {
		t.Error("not closed when its move has failed")
	}
	eventually(t, "it is closed", func() bool { return isClosed(far) })
	r.remove(e)
	report := done()
	report.Duration = 0
	wantReport(t, report, Report{Closed: 1})
}

// Whoever interrupts connections belongs to the drain, which does not end before.
func TestStopWaitsForWhoInterrupts(t *testing.T) {
	l := newMoverListener(nil)
	l.next = newMoverListener(nil)
	ln := listenTCP(t)
	var (
		r       registry
		entries []*entry
	)
	held := moveAtOnce(1)
	for range held + 1 {
		dialTCP(t, ln.Addr().String())
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		w, _ := (&listener{Listener: l, reg: &r}).wrap(far)
		e := r.lookup(w)
		e.pass.waiting.Store(inRead)
		entries = append(entries, e)
	}
	done := stopping(stopFunc(func(ctx context.Context) Report {
		return r.stop(ctx, func() plan { return makePlan(0, 0, 0) })
	}))
	eventually(t, "no turn is left", func() bool { return len(r.turnsNow()) == held })
	for _, e := range entries { // gone, but their turns are not over
		r.remove(e)
	}
	if r.stopIfQuiet() {
		t.Error("it is over, and a goroutine waits for a turn")
	}
	for _, e := range entries {
		if e.endRead(e.raw) {
			e.yield()
		}
	}
	report := done()
	wantReport(t, report, Report{Finished: held + 1})
	if r.poking {
		t.Error("it is over, and connections are interrupted")
	}
}

func (r *registry) turnsNow() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.turns
}

type stopFunc func(context.Context) Report

func (f stopFunc) Stop(ctx context.Context) Report { return f(ctx) }

// A close that is called off does not take back that the connection has moved.
func TestSpareAfterMove(t *testing.T) {
	var r registry
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	e := &entry{raw: far}
	r.add(e)
	r.phase.Store(draining)
	r.mu.Lock()
	e.outcome, r.closing = closed, 1
	r.mu.Unlock()
	r.left(e)
	r.spare(e)
	if e.outcome != moved {
		t.Errorf("outcome %v", e.outcome)
	}
}

// With full duplex net/http may read in the background when the next request
// begins; it panics then, by itself.
func TestFullDuplexUnreadBody(t *testing.T) {
	g := newGenerations(t, func(n int) *Server {
		srv := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			w.Write([]byte("x"))
		}))
		srv.ErrorLog = discardLog
		return srv
	})
	for range 200 {
		c := dialTCP(t, g.addr)
		c.send("%s", wholeRequest+wholeRequest+"G")
		io.Copy(io.Discard, c.br)
		c.Close()
	}
}

// Close and Stop with little time, during moves: each connection is accounted
// for, and is in one place only.
func TestCloseDuringMoves(t *testing.T) {
	const n = 40
	for i := range 20 {
		g := newGenerations(t, nil)
		conns := make([]*client, n)
		for j := range conns {
			conns[j] = dialTCP(t, g.addr)
			if j%2 == 0 {
				conns[j].get("/")
			}
		}
		old := g.srv
		// Until its reader waits, an idle connection may have another request.
		eventually(t, "all wait for requests", func() bool { return old.resting() == n })
		stop := g.replace()
		<-old.Draining()
		time.Sleep(time.Duration(i*50) * time.Microsecond) // any moment is as good
		if i%2 == 0 {
			old.Close()
		} else {
			old.SetKeepAlivesEnabled(false)
			time.Sleep(time.Millisecond)
			old.Close()
		}
		r := stop()
		if r.Connections() != n || r.Killed != 0 || r.Remaining+r.Stuck != 0 {
			t.Errorf("report %+v", r)
		}
		alive := 0
		for _, c := range conns {
			io.WriteString(c, wholeRequest)
			resp, err := http.ReadResponse(c.br, nil)
			if err == nil {
				alive++
				from(t, resp, 2)
			}
		}
		if alive != r.Moved {
			t.Errorf("%d are alive, report %+v", alive, r)
		}
		g.srv.Close()
	}
}

// Whatever a request is like, it is answered once, and then its connection moves
// or ends, and is accounted for.
func TestOddRequestsAndMoves(t *testing.T) {
	const host = "Host: test\r\n"
	for name, tt := range map[string]struct {
		first  string // before the drain
		status int
		moves  bool
		rest   string // after its answer
	}{
		"OPTIONS *":        {"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", 200, true, ""},
		"HTTP/1.0":         {"GET / HTTP/1.0\r\n\r\n", 200, false, ""},
		"HTTP/1.0 stays":   {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, true, ""},
		"only LF":          {"GET / HTTP/1.1\nHost: test\n\n", 200, true, ""},
		"LF, body":         {"POST / HTTP/1.1\nHost: test\nContent-Length: 4\n\nbody", 200, true, ""},
		"chunked":          {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: T\r\n\r\n4\r\nbody\r\n0\r\nT: x\r\n\r\n", 200, true, ""},
		"long head":        {"GET / HTTP/1.1\r\n" + host + "Pad: " + repeat("x", 6000) + "\r\n\r\n", 200, true, ""},
		"too long head":    {"GET / HTTP/1.1\r\n" + host + "Pad: " + repeat("x", 20000) + "\r\n\r\n", 431, false, ""},
		"continue":         {"POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody", 100, true, ""},
		"expects too much": {"POST / HTTP/1.1\r\n" + host + "Expect: more\r\nContent-Length: 4\r\n\r\nbody", 417, false, ""},
		"panic":            {"GET /panic HTTP/1.1\r\n" + host + "\r\n", 0, false, ""},
		"too long body":    {"POST /max HTTP/1.1\r\n" + host + "Content-Length: 40\r\n\r\n" + repeat("x", 40), 413, false, ""},
		"unread body":      {"POST /unread HTTP/1.1\r\n" + host + "Content-Length: 4000\r\n\r\n" + repeat("x", 4000), 200, true, ""},
		"no reuse":         {"GET / HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 200, false, ""},
		"deadlines":        {"GET /deadlines HTTP/1.1\r\n" + host + "\r\n", 200, true, ""},
		"notify":           {"GET /notify HTTP/1.1\r\n" + host + "\r\n", 200, true, ""},
		"hijack":           {"GET /hijack HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: own\r\n\r\n", 101, false, ""},
		"malformed":        {"GET\r\n\r\n", 400, false, ""},
	} {
		for _, during := range []bool{false, true} {
			t.Run(fmt.Sprint(name, during), func(t *testing.T) {
				g := newGenerations(t, func(n int) *Server {
					mux := http.NewServeMux()
					mux.Handle("/", answerer(n))
					mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic("on purpose") })
					mux.HandleFunc("/max", func(w http.ResponseWriter, r *http.Request) {
						if _, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 10)); err != nil {
							w.WriteHeader(413)
						}
					})
					mux.HandleFunc("/unread", func(w http.ResponseWriter, r *http.Request) {})
					mux.HandleFunc("/deadlines", func(w http.ResponseWriter, r *http.Request) {
						rc := http.NewResponseController(w)
						rc.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
						rc.SetWriteDeadline(time.Now().Add(time.Hour))
					})
					mux.HandleFunc("/notify", func(w http.ResponseWriter, r *http.Request) {
						select {
						//lint:ignore SA1019 that is what is tested
						case <-w.(http.CloseNotifier).CloseNotify():
						case <-r.Context().Done():
						case <-time.After(20 * time.Millisecond):
						}
					})
					mux.HandleFunc("/hijack", func(w http.ResponseWriter, r *http.Request) {
						c, _, _ := http.NewResponseController(w).Hijack()
						defer c.Close()
						io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n")
						var wg sync.WaitGroup
						for range 2 { // two may read
							wg.Go(func() { io.Copy(io.Discard, struct{ io.Reader }{c}) })
						}
						wg.Wait()
					})
					srv := newServer(mux)
					srv.ErrorLog = discardLog
					srv.MaxHeaderBytes = 8192
					return srv
				})
				if during && strings.HasPrefix(tt.first, "OPTIONS *") {
					t.Skip("net/http answers that without our handler, and so says nothing of a close")
				}
				c := dialTCP(t, g.addr)
				eventually(t, "it is known", func() bool { return g.srv.Counts().New == 1 })
				ln := g.last
				if during { // its move fails at first
					ln.fails.Store(true)
				}
				old := g.srv
				var stop func() Report
				if during {
					stop = g.replace()
					eventually(t, "the move has failed", old.keepsOne)
				}
				c.send("%s", tt.first)
				resp, err := http.ReadResponse(c.br, &http.Request{Method: tt.first[:max(0, strings.IndexByte(tt.first, ' '))]})
				if err == nil && resp.StatusCode == 100 {
					resp, err = http.ReadResponse(c.br, nil)
					if resp.StatusCode == 200 {
						resp.StatusCode = 100
					}
				}
				switch {
				case tt.status == 0 && err != nil:
				case err != nil || resp.StatusCode != tt.status:
					t.Fatalf("answer %v, %v", resp, err)
				case tt.status != 101:
					io.Copy(io.Discard, resp.Body)
				}
				if stop == nil {
					if tt.moves {
						eventually(t, "it is idle", func() bool { return old.Counts().Idle == 1 })
					}
					stop = g.replace()
				}
				if tt.status == 101 {
					for range 100 {
						c.send("more")
					}
					c.Conn.(*net.TCPConn).CloseWrite()
				}
				r := stop()
				if during || !tt.moves {
					if r.Moved != 0 || r.Killed+r.Closed+r.Remaining+r.Stuck != 0 {
						t.Errorf("report %+v", r)
					}
					c.wantEOF()
					return
				}
				wantReport(t, r, Report{Moved: 1})
				resp, _ = c.get("/")
				from(t, resp, 2)
			})
		}
	}
}
