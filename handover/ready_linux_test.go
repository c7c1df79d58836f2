package handover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// peer speaks the protocol frame by frame, so that a test can stop at each.
type peer struct {
	t testing.TB
	*link
}

func dialPeer(t testing.TB, cfg Config) *peer {
	t.Helper()
	conn, err := scm.Dial(testContext(t), "unixpacket", cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t, newLink(conn, scm.MaxFDs)}
	t.Cleanup(p.close)
	return p
}

func (p *peer) say(f any, fds ...int) {
	p.t.Helper()
	if err := p.send(testContext(p.t), f, fds...); err != nil {
		p.t.Fatalf("send %T: %v", f, err)
	}
}

func (p *peer) raw(s string) {
	p.t.Helper()
	if err := p.conn.Send(testContext(p.t), []byte(s), nil); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

// next receives one frame, and closes what came with it.
func (p *peer) next() any {
	p.t.Helper()
	f, fds, err := p.recv(testContext(p.t))
	closeAll(fds)
	if err != nil {
		return err
	}
	return f
}

func (p *peer) refusal() *frameRefuse {
	p.t.Helper()
	f, ok := p.next().(*frameRefuse)
	if !ok {
		p.t.Fatalf("%T instead of a refusal", f)
	}
	return f
}

func hello(intent string) frameHello {
	return frameHello{Type: typeHello, Protocols: []int{1}, Intent: intent, Program: "test", Probation: millis(time.Hour)}
}

// receiveAll answers every batch properly.
func (p *peer) receiveAll() *frameWelcome {
	p.t.Helper()
	f := p.next()
	w, ok := f.(*frameWelcome)
	if !ok {
		p.t.Fatalf("%T %v instead of welcome", f, f)
	}
	for got := 0; got < w.Count; {
		f, fds, err := p.recv(testContext(p.t))
		if err != nil {
			p.t.Fatal(err)
		}
		s := f.(*frameSockets)
		r := frameReceived{Type: typeReceived, First: s.First}
		for _, fd := range fds {
			info, err := inspect(fd)
			if err != nil {
				p.t.Fatal(err)
			}
			r.Cookies = append(r.Cookies, info.cookie)
		}
		closeAll(fds)
		p.say(r)
		got += len(fds)
	}
	return w
}

// owner is a ready generation with one listener and a server behind it.
func owner(t testing.TB, cfg Config) (*Generation, *greeter, string) {
	t.Helper()
	g := begin(t, cfg)
	s := &greeter{}
	ln := listen(t, g, "app", "tcp", "127.0.0.1:0")
	s.serve(t, g, ln)
	ready(t, g)
	return g, s, ln.Addr().String()
}

func answers(t testing.TB, addr, want string) {
	t.Helper()
	if got := greeting(t, tcpAddr(addr)); got != want {
		t.Fatalf("generation %s answers, want %s", got, want)
	}
}

type tcpAddr string

func (tcpAddr) Network() string  { return "tcp" }
func (a tcpAddr) String() string { return string(a) }

func awaitPhase(t testing.TB, g *Generation, want Phase) {
	t.Helper()
	eventually(t, want.String(), func() bool { return g.Phase() == want })
}

func TestLateReadyIsRefused(t *testing.T) {
	cfg := testConfig(t)
	cfg.ReadyTimeout = 50 * time.Millisecond
	g, _, addr := owner(t, cfg)
	p := dialPeer(t, cfg)
	p.say(hello(intentTakeover))
	p.receiveAll()
	if r := p.refusal(); r.Code != CodeTimeout {
		t.Fatal(r)
	}
	p.send(testContext(t), frameSimple{Type: typeReady})
	if f := p.next(); !gone(errOf(f)) {
		t.Fatalf("after a late ready: %v", f)
	}
	answers(t, addr, "1")
	awaitPhase(t, g, PhaseOwner)
	b := begin(t, cfg)
	listen(t, b, "app", "", "")
	ready(t, b)
}

func errOf(f any) error {
	err, _ := f.(error)
	return err
}

func TestSecondSuccessorIsBusy(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = time.Hour
	_, _, addr := owner(t, cfg)
	first := begin(t, cfg)
	var s greeter
	s.serve(t, first, listen(t, first, "app", "", ""))
	busy := func() {
		t.Helper()
		_, err := Start(testContext(t), cfg)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Code != CodeBusy || !refused.Code.Temporary() {
			t.Fatal(err)
		}
	}
	busy()
	ready(t, first)
	busy() // in probation, too
	answers(t, addr, "2")
	if err := (Operator{Socket: cfg.Socket}).Commit(testContext(t)); err != nil {
		t.Fatal(err)
	}
	third := begin(t, cfg)
	listen(t, third, "app", "", "")
	ready(t, third)
	third.Close() // gives back
	answers(t, addr, "2")
	first.Close()
}

func TestTakeoverOfAnOwnerThatIsNotReady(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	listen(t, a, "app", "tcp", "127.0.0.1:0")
	_, err := Start(testContext(t), cfg)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != CodeNotReady {
		t.Fatal(err)
	}
	ready(t, a)
	b := begin(t, cfg)
	ready(t, b)
}

func TestStartOnlyAndTakeOverOnly(t *testing.T) {
	cfg := testConfig(t)
	take := cfg
	take.Mode = TakeOverOnly
	if _, err := Start(testContext(t), take); !errors.Is(err, ErrNoOwner) {
		t.Fatal(err)
	}
	a := begin(t, cfg)
	ready(t, a)
	fresh := cfg
	fresh.Mode = StartOnly
	if _, err := Start(testContext(t), fresh); !errors.Is(err, ErrOwned) {
		t.Fatal(err)
	}
	b := begin(t, take)
	ready(t, b)
}

func TestRevision(t *testing.T) {
	cfg := testConfig(t)
	cfg.Revision = 7
	a := begin(t, cfg)
	ready(t, a)
	old := cfg
	old.Revision = 6
	_, err := Start(testContext(t), old)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != CodeRevision {
		t.Fatal(err)
	}
	old.Force = true
	b := begin(t, old)
	ready(t, b)
}

func TestProtocolNegotiation(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	ready(t, a)
	future := cfg
	future.protocols = []int{3, 2}
	_, err := Start(testContext(t), future)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != CodeVersion {
		t.Fatal(err)
	}
	// A newer successor that still speaks version 1, with fields and a type
	// of intent that this version does not know.
	p := dialPeer(t, cfg)
	p.raw(`{"type":"hello","protocols":[9,1],"intent":"takeover","colour":{"name":"green"}}`)
	if w := p.receiveAll(); w.Protocol != 1 {
		t.Fatal(w)
	}
	p.close()
	awaitPhase(t, a, PhaseOwner)
	b := begin(t, cfg)
	ready(t, b)
}

// The owner is told to stop while a successor prepares: that one is the only
// one left, and gets everything when it is ready.
func TestStopOfTheOwnerInMidTakeover(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = time.Hour
	a, _, addr := owner(t, cfg)
	b := begin(t, cfg)
	var s greeter
	s.serve(t, b, listen(t, b, "app", "", ""))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() { got <- greeting(t, tcpAddr(addr)) }() // waits in the queue
	ready(t, b)
	if b.Phase() != PhaseOwner {
		t.Fatal(b.Phase())
	}
	if g := <-got; g != "2" {
		t.Fatal(g)
	}
	b.Close()
}

// The same when the successor is in probation: it becomes final.
func TestStopOfThePredecessorInProbation(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = time.Hour
	a, _, addr := owner(t, cfg)
	b := begin(t, cfg)
	var s greeter
	s.serve(t, b, listen(t, b, "app", "", ""))
	ready(t, b)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	awaitPhase(t, b, PhaseOwner)
	answers(t, addr, "2")
	b.Close()
}

// A successor that is told to stop in probation gives the sockets back.
func TestStopInProbationGivesBack(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = time.Hour
	a, _, addr := owner(t, cfg)
	for i := range 3 {
		b := begin(t, cfg)
		var s greeter
		s.serve(t, b, listen(t, b, "app", "", ""))
		ready(t, b)
		answers(t, addr, []string{"2", "3", "4"}[i])
		if err := b.Stop(testContext(t)); err != nil {
			t.Fatal(err)
		}
		await(t, "superseded", b.Superseded())
		if !errors.Is(b.Cause(), ErrRolledBack) {
			t.Fatal(b.Cause())
		}
		answers(t, addr, "1")
		b.Close()
		s.wait()
	}
	awaitPhase(t, a, PhaseOwner)
}

func TestOperator(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = time.Hour
	op := Operator{Socket: cfg.Socket}
	if _, err := op.Status(testContext(t)); !errors.Is(err, ErrNoOwner) {
		t.Fatal(err)
	}
	a, _, addr := owner(t, cfg)
	if err := op.Commit(testContext(t)); err != nil {
		t.Fatalf("commit of the committed: %v", err)
	}
	var refused *RefusedError
	if err := op.Rollback(testContext(t)); !errors.As(err, &refused) || refused.Code != CodeState {
		t.Fatal(err)
	}
	b := begin(t, cfg)
	var s greeter
	s.serve(t, b, listen(t, b, "app", "", ""))
	st, err := op.Status(testContext(t))
	if err != nil || st.Phase != PhaseHanding || st.Generation != 1 || st.Successor == nil || st.Successor.Generation != 2 {
		t.Fatalf("%+v %v", st, err)
	}
	ready(t, b)
	st, err = op.Status(testContext(t))
	if err != nil || st.Phase != PhaseProbation || st.Generation != 2 || st.Probation <= 0 {
		t.Fatalf("%+v %v", st, err)
	}
	if err := op.Rollback(testContext(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "superseded", b.Superseded())
	answers(t, addr, "1")
	awaitPhase(t, a, PhaseOwner)
	b.Close()

	c := begin(t, cfg)
	s.serve(t, c, listen(t, c, "app", "", ""))
	ready(t, c)
	if err := op.Commit(testContext(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "superseded", a.Superseded())
	answers(t, addr, "3")
	// The predecessor is seen while it drains, and its end is seen, too.
	eventually(t, "draining generation in the status", func() bool {
		st, err := op.Status(testContext(t))
		return err == nil && len(st.Draining) == 1 && st.Draining[0].Generation == 1
	})
	a.Drained(map[string]int{"finished": 42})
	a.Close()
	eventually(t, "end of the drain", func() bool {
		st, err := op.Status(testContext(t))
		return err == nil && len(st.Draining) == 0
	})
	go func() {
		<-c.Superseded()
		c.Drained("done")
	}()
	report, err := op.Stop(testContext(t), nil)
	if err != nil || string(report) != `"done"` {
		t.Fatalf("%s %v", report, err)
	}
	if !errors.Is(c.Cause(), ErrStopRequested) {
		t.Fatal(c.Cause())
	}
	c.Close()
}

// A generation that drains stays visible when its successor is superseded:
// it looks for the new owner.
func TestDrainIsReportedToWhoeverOwns(t *testing.T) {
	cfg := testConfig(t)
	var mu sync.Mutex
	var reports []string
	cfg.OnEvent = func(e Event) {
		if e.Peer != nil && e.Peer.Phase == PhaseDone {
			mu.Lock()
			reports = append(reports, string(e.Peer.Report))
			mu.Unlock()
		}
	}
	op := Operator{Socket: cfg.Socket}
	var all []*Generation
	for range 4 {
		g := begin(t, cfg)
		listen(t, g, "app", "tcp", "127.0.0.1:0")
		ready(t, g)
		all = append(all, g)
	}
	eventually(t, "three draining generations in the status", func() bool {
		st, err := op.Status(testContext(t))
		return err == nil && st.Generation == 4 && len(st.Draining) == 3
	})
	for i, g := range all[:3] {
		g.Drained(i + 1)
		g.Close()
	}
	eventually(t, "three reports", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(reports) == 3
	})
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(reports)
	if got := strings.Join(reports, " "); got != "1 2 3" {
		t.Fatal(got)
	}
}

// ctx ends at each step of a takeover: it fails at once, and the owner serves.
func TestContextEndsAtEachStep(t *testing.T) {
	cfg := testConfig(t)
	a, _, addr := owner(t, cfg)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Start(ended, cfg); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// A fake owner that is silent at a chosen step.
	for step, play := range map[string]func(*peer){
		"welcome": func(p *peer) { p.next() },
		"sockets": func(p *peer) {
			p.next()
			p.say(welcome(3))
		},
	} {
		t.Run(step, func(t *testing.T) {
			fake := testConfig(t)
			ln := fakeOwner(t, fake)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				_, err := Start(ctx, fake)
				done <- err
			}()
			play(ln())
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		})
	}
	// Ready, when ctx is over already.
	b := begin(t, cfg)
	listen(t, b, "app", "", "")
	if err := b.Ready(ended); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	answers(t, addr, "1")
	b.Close()
	awaitPhase(t, a, PhaseOwner)
	c := begin(t, cfg)
	var s greeter
	s.serve(t, c, listen(t, c, "app", "", ""))
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	cancel() // after success: of no consequence
	answers(t, addr, fmt.Sprint(c.Number()))
	c.Close()
}

func welcome(count int) frameWelcome {
	return frameWelcome{
		Type: typeWelcome, Protocol: 1, Generation: 1, Next: 2, Count: count,
		ReadyTimeout: millis(time.Minute), AliveEvery: millis(time.Second),
	}
}

// fakeOwner listens at the control path, and gives each peer that connects.
func fakeOwner(t testing.TB, cfg Config) func() *peer {
	t.Helper()
	ln, _, err := bindControl(testContext(t), cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return func() *peer {
		t.Helper()
		ln.SetDeadline(time.Now().Add(20 * time.Second))
		c, err := ln.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := scm.NewConn(c)
		if err != nil {
			t.Fatal(err)
		}
		p := &peer{t, newLink(conn, scm.MaxFDs)}
		t.Cleanup(p.close)
		return p
	}
}
