package handover

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// echoing is first with an echo.
func echoing(t testing.TB, cfg Config, network, address string) (*Generation, *echo) {
	t.Helper()
	g := begin(t, cfg)
	e := serveEcho(g, listen(t, g, "app", network, address))
	ready(t, g)
	return g, e
}

// echoingNext is succeed with an echo.
func echoingNext(t testing.TB, cfg Config, g *Generation) (*Generation, *echo) {
	t.Helper()
	next := begin(t, cfg)
	e := serveEcho(next, listen(t, next, "app", "", ""))
	ready(t, next)
	await(t, "superseded", g.Superseded())
	return next, e
}

// callers are n clients that have been answered once.
func callers(t testing.TB, e *echo, n int) []*caller {
	t.Helper()
	all := make([]*caller, n)
	for i := range all {
		all[i] = call(t, e.ln)
		all[i].answeredBy(t, e.generation)
	}
	return all
}

func answeredBy(t testing.TB, all []*caller, generation uint64) {
	t.Helper()
	for _, c := range all {
		c.answeredBy(t, generation)
	}
}

// hangUp ends all connections, and waits until their servers have.
func (e *echo) hangUp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		c.Close()
	}
	for len(e.conns) > 0 {
		e.changed.Wait()
	}
}

// moveAsync is move for when something is to happen meanwhile.
func (e *echo) moveAsync() (wait func(testing.TB) (int, error)) {
	done := make(chan struct{})
	var moved int
	var stayed error
	go func() {
		defer close(done)
		moved, stayed = e.move()
	}()
	return func(t testing.TB) (int, error) {
		t.Helper()
		await(t, "end of the moves", done)
		return moved, stayed
	}
}

// awaitSent waits until n calls of MoveConn have been taken over.
func awaitSent(t testing.TB, n int) {
	t.Helper()
	awaitStacks(t, n, "MoveConn calls that are on their way", "(*listener).MoveConn(", "[chan receive")
}

// heldSuccessor is a successor in this process that has got the first batch and
// holds it, until release.
func heldSuccessor(t testing.TB, cfg Config, move func()) (g *Generation, e *echo, release func()) {
	t.Helper()
	g = begin(t, cfg)
	e = serveEcho(g, listen(t, g, "app", "", ""))
	ready(t, g)
	release = holdRun(t, g)
	move()
	awaitStack(t, "the batch at the successor", "(*predecessor).receive(", "(*Generation).do(")
	return g, e, release
}

// predecessorWith starts a child that serves an echo.
func predecessorWith(t testing.TB, cfg Config, before ...string) (*child, string) {
	t.Helper()
	o := startChild(t, cfg.Socket)
	o.do(before...)
	o.do("start")
	addr := o.do("echo app tcp 127.0.0.1:0")
	o.do("ready")
	return o, addr
}

func callTCP(t testing.TB, addr string, generation uint64) *caller {
	t.Helper()
	c, err := callAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.answeredBy(t, generation)
	return c
}

// The predecessor dies when it has sent a connection, and nobody could tell it
// that it was adopted: it is the successor's, with its state.
func TestPredecessorDiesOverAMove(t *testing.T) {
	cfg := testConfig(t)
	o, addr := predecessorWith(t, cfg, "step 1m")
	c := callTCP(t, addr, 1)
	_, _, release := heldSuccessor(t, cfg, func() {
		o.do("superseded")
		o.tell("move")
	})
	o.kill()
	release()
	c.answeredBy(t, 2)
}

// The predecessor has gone on with a connection, since the answer took too long,
// and has died then. The successor wakes up, finds it dead, and must not take
// what has been served elsewhere meanwhile.
func TestPredecessorDiesAfterItWentOn(t *testing.T) {
	cfg := testConfig(t)
	o, addr := predecessorWith(t, cfg, "step 200ms")
	c := callTCP(t, addr, 1)
	_, _, release := heldSuccessor(t, cfg, func() {
		o.do("superseded")
		o.tell("move")
	})
	if got := o.hear(); !strings.HasPrefix(got, "ok 0 connection not moved") {
		t.Fatal(got)
	}
	c.answeredBy(t, 1)
	o.kill()
	release()
	c.ends(t)
}

// The same with a successor that is stopped, and a predecessor that lives on.
func TestStoppedSuccessorWakesUpWithABatch(t *testing.T) {
	cfg := testConfig(t)
	cfg.moveTimeout = 300 * time.Millisecond
	old, e := echoing(t, cfg, "tcp", "127.0.0.1:0")
	const n = 300 // more than one batch
	needFDs(t, 3*n)
	all := callers(t, e, n)
	s := startChild(t, cfg.Socket)
	s.do("probation -1s", "start", "echo app tcp "+e.ln.Addr().String(), "ready")
	await(t, "superseded", old.Superseded())
	s.signal(syscall.SIGSTOP)
	moved, err := e.moveAsync()(t)
	if moved > 0 {
		t.Fatalf("%d moved to a stopped process", moved)
	}
	notMoved(t, err, "")
	answeredBy(t, all, 1)
	s.signal(syscall.SIGCONT)
	// When it has let go of its copies, closing ours ends the connections.
	answeredBy(t, all, 1)
	e.hangUp()
	for _, c := range all {
		c.ends(t)
	}
	serves := call(t, e.ln)
	serves.answeredBy(t, 2)
}

// The successor is killed while a batch is on its way, read or not.
func TestSuccessorIsKilledOverABatch(t *testing.T) {
	for name, stopped := range map[string]bool{"stopped": true, "running": false} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.StepTimeout = time.Minute
			old, e := echoing(t, cfg, "tcp", "127.0.0.1:0")
			const n = 100
			all := callers(t, e, n)
			s := startChild(t, cfg.Socket)
			s.do("probation -1s", "start", "echo app tcp "+e.ln.Addr().String(), "ready")
			await(t, "superseded", old.Superseded())
			if stopped {
				s.signal(syscall.SIGSTOP)
			}
			wait := e.moveAsync()
			if stopped {
				awaitSent(t, 1)
			}
			s.kill()
			moved, stayed := wait(t)
			if stopped && moved > 0 || moved+e.count() != n {
				t.Fatalf("%d of %d have moved, and %d are here", moved, n, e.count())
			}
			if stopped {
				notMoved(t, stayed, "")
			}
			// Those that had moved died with it; the others are served.
			var served, ended int
			for _, c := range all {
				if c.ask() == nil {
					served++
				} else {
					ended++
				}
			}
			if served != e.count() || ended != moved {
				t.Errorf("%d are served and %d ended; %d had moved", served, ended, moved)
			}
		})
	}
}

// A successor at its limit of descriptors says so, and goes on. Each connection
// is served by whoever is said to have it.
func TestMoveToASuccessorWithoutRoom(t *testing.T) {
	for _, room := range []int{0, 1, 2, 3, 5, 20} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			cfg := testConfig(t)
			cfg.StepTimeout = time.Minute
			old, e := echoing(t, cfg, "tcp", "127.0.0.1:0")
			const n = 60
			all := callers(t, e, n)
			s := startChild(t, cfg.Socket)
			s.do("probation -1s", "start", "echo app tcp "+e.ln.Addr().String(), "ready")
			await(t, "superseded", old.Superseded())
			eventually(t, "heartbeats over", func() bool { return s.do("phase") == "owner" })
			before := openFDs(t, s.cmd.Process.Pid)
			s.do(fmt.Sprint("room ", room))
			s.signal(syscall.SIGSTOP)
			wait := e.moveAsync()
			awaitStacks(t, n, "MoveConn calls", "(*listener).MoveConn(") // in two batches, then
			s.signal(syscall.SIGCONT)
			moved, stayed := wait(t)
			if moved > room || moved+e.count() != n {
				t.Errorf("%d of %d have moved, and %d are here", moved, n, e.count())
			}
			notMoved(t, stayed, "")
			if e.ln.Movable() {
				t.Error("it would go on trying")
			}
			s.do("room 1000")
			here := 0
			for _, c := range all {
				if err := c.ask(); err != nil {
					t.Fatal(err)
				}
				if c.last == 1 {
					here++
				}
			}
			if here != e.count() {
				t.Errorf("%d are served here, want %d", here, e.count())
			}
			eventually(t, "as many descriptors as before, and those that moved", func() bool {
				return openFDs(t, s.cmd.Process.Pid) == before+moved
			})
			serves := call(t, e.ln)
			serves.answeredBy(t, 2)
		})
	}
}

// The conversation survives that, and when there is room again, so does the
// next batch.
func TestAdoptWithoutRoom(t *testing.T) {
	if inOwnProcess(t) {
		return
	}
	leak.Check(t)
	cfg := testConfig(t)
	cfg.StepTimeout = 20 * time.Second
	g, ln := first(t, cfg, "tcp", "127.0.0.1:0")
	var fds []int
	for range 8 {
		_, s := connect(t, ln)
		fds = append(fds, fdOf(t, s))
	}
	p := reporter(t, cfg, g)
	awaitSimple(p, typeOK)
	for room := range uint64(len(fds)) {
		before := takeStock(t)
		if err := limitDescriptors(room); err != nil {
			t.Fatal(err)
		}
		p.gives("app", fds...)
		a := awaitFrame[*frameAdopted](p)
		if err := limitDescriptors(1000); err != nil {
			t.Fatal(err)
		}
		if len(a.Cookies) > 0 || a.Stop == "" {
			t.Errorf("with room for %d of %d: %+v", room, len(fds), a)
		}
		before.unchanged(t)
	}
	p.gives("app", fds...)
	if a := awaitFrame[*frameAdopted](p); len(a.Cookies) != len(fds) || a.Stop != "" {
		t.Errorf("with room for all: %+v", a)
	}
	for range fds {
		acceptMoved(t, ln)
	}
}

// Connections go from one that has drained for long to whoever owns now, and
// not to those between.
func TestMoveSkipsGenerations(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	last, e := echoing(t, cfg, "tcp", "127.0.0.1:0")
	all := callers(t, e, 50)
	var echoes []*echo
	for range 3 {
		next, ne := echoingNext(t, cfg, last)
		echoes = append(echoes, ne)
		last = next
	}
	if moved, stayed := e.moveAsync()(t); moved != len(all) {
		t.Fatalf("%d moved, %v", moved, stayed)
	}
	answeredBy(t, all, last.Number())
	for i, n := range []int{0, 0, len(all)} {
		if got := echoes[i].count(); got != n {
			t.Errorf("generation %d serves %d, want %d", echoes[i].generation, got, n)
		}
	}
}

// A batch is with a successor that is superseded before it can take it: it goes
// on to the next one.
func TestMoveToASuccessorThatIsSuperseded(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	cfg.StepTimeout = 20 * time.Second
	old, e := echoing(t, cfg, "tcp", "127.0.0.1:0")
	all := callers(t, e, 20)
	h := inherit(t, cfg, old)
	wait := e.moveAsync()
	f := h.connections()
	// Played by hand: it hands its control socket on by listening no more, and
	// the next one is there.
	next, hi := (*peer)(nil), (*frameHello)(nil)
	h.close()
	next, hi = h.redialed()
	if hi.Generation != 1 || !hi.Moves {
		t.Errorf("%+v", hi)
	}
	if err := h.send(testContext(t), adopted(f.cookies()...)); err == nil {
		t.Error("the first one could still adopt")
	}
	closeAll(f.fds)
	next.say(simple(typeOK))
	var got []int
	for len(got) < len(all) {
		f := next.connections()
		next.say(adopted(f.cookies()...))
		got = append(got, f.fds...)
	}
	if moved, stayed := wait(t); moved != len(all) {
		t.Errorf("%d moved, %v", moved, stayed)
	}
	closeAll(got)
	for _, c := range all {
		c.ends(t)
	}
}

// crowd is clients that talk on connections of theirs until they are told to
// stop, and look at every answer.
type crowd struct {
	wg    sync.WaitGroup
	over  atomic.Bool
	lines atomic.Int64
	mu    sync.Mutex
	errs  []error
}

func gather(n int, addr string, seed uint64) *crowd {
	c := &crowd{}
	for i := range n {
		c.wg.Go(func() {
			if err := c.talk(addr, rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.errs = append(c.errs, err)
			}
		})
	}
	return c
}

func (c *crowd) talk(addr string, rnd *rand.Rand) error {
	for !c.over.Load() {
		one, err := callAddr("tcp", addr)
		if err != nil {
			return err
		}
		for lines := 1 + rnd.IntN(3000); lines > 0 && !c.over.Load(); {
			n := 1 + rnd.IntN(3)
			if err := one.say(n); err != nil {
				one.Close()
				return err
			}
			if err := one.hear(n); err != nil {
				one.Close()
				return err
			}
			lines -= n
			c.lines.Add(int64(n))
		}
		one.Close()
	}
	return nil
}

// failed tells, from any goroutine, whether somebody has.
func (c *crowd) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.errs) > 0
}

func (c *crowd) stop(t testing.TB) {
	t.Helper()
	c.over.Store(true)
	within(t, 90*time.Second, "end of the clients", c.wg.Wait)
	for _, err := range c.errs[:min(len(c.errs), 5)] {
		t.Error(err)
	}
}

// Many takeovers in a row, each of which moves all connections, while every
// client talks on its own: no line is lost, answered twice, or by the wrong one.
func TestMovesUnderStress(t *testing.T) {
	if inOwnProcess(t) {
		return
	}
	leak.Check(t)
	rounds, clients := 120, 60
	if testing.Short() {
		rounds = 25
	}
	cfg := testConfig(t)
	cfg.StepTimeout, cfg.AliveTimeout = 30*time.Second, 30*time.Second
	g, e := echoing(t, cfg, "tcp", "127.0.0.1:0")
	crowd := gather(clients, e.ln.Addr().String(), 11)
	var draining sync.WaitGroup
	var moved, stayed atomic.Int64
	began := time.Now()
	for i := range rounds {
		if crowd.failed() {
			break
		}
		next := cfg
		if i%3 == 0 {
			next.Probation = 3 * time.Millisecond
		}
		ng, ne := echoingNext(t, next, g)
		old, oldEcho := g, e
		draining.Go(func() {
			stayed.Add(int64(oldEcho.empty()))
			old.Drained(nil)
			old.Close()
			oldEcho.serving.Wait()
			moved.Add(int64(oldEcho.moved))
			if oldEcho.stayed != nil {
				t.Logf("generation %d: %v", oldEcho.generation, oldEcho.stayed)
			}
		})
		g, e = ng, ne
	}
	took := time.Since(began)
	crowd.stop(t)
	within(t, 90*time.Second, "end of the drains", draining.Wait)
	within(t, 90*time.Second, "Close", func() { g.Close() })
	e.hangUp()
	e.serving.Wait()
	t.Logf("%d takeovers in %v, %d connections moved, %d tries to move one failed, %d lines", rounds, took, moved.Load(), stayed.Load(), crowd.lines.Load())
	if moved.Load() < int64(rounds) {
		t.Errorf("only %d connections moved", moved.Load())
	}
}

// The same between processes. A predecessor that has moved its last connection
// ends, or is killed.
func TestMovesBetweenProcessesUnderStress(t *testing.T) {
	rounds, clients := 24, 40
	if testing.Short() {
		rounds = 6
	}
	cfg := testConfig(t)
	last, addr := predecessorWith(t, cfg)
	crowd := gather(clients, addr, 12)
	var draining sync.WaitGroup
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range rounds {
		if crowd.failed() {
			break
		}
		next := startChild(t, cfg.Socket)
		next.do([]string{"probation -1s", "probation 3ms"}[i%2], "start", "echo app tcp "+addr, "ready")
		eventually(t, "owner", func() bool { return next.do("phase") == "owner" })
		old, kill := last, rnd.IntN(2) == 0
		draining.Go(func() {
			old.do("superseded", "empty")
			if !kill {
				old.do("close")
			}
			old.kill()
		})
		last = next
	}
	crowd.stop(t)
	within(t, 90*time.Second, "end of the drains", draining.Wait)
	t.Logf("%d takeovers, %d lines", rounds, crowd.lines.Load())
}

// BenchmarkMoveBetweenProcesses moves connections from this process to another
// one; their clients are in a third.
func BenchmarkMoveBetweenProcesses(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			needFDs(b, n+2000)
			var whole time.Duration
			for b.Loop() {
				cfg := testConfig(b)
				cfg.StepTimeout = time.Minute
				old, from := first(b, cfg, "tcp", "127.0.0.1:0")
				clients := startChild(b, cfg.Socket)
				clients.tell(fmt.Sprintf("dial %d %s", n, from.Addr()))
				servers := make([]net.Conn, n)
				for i := range servers {
					c, err := from.Accept()
					if err != nil {
						b.Fatal(err)
					}
					servers[i] = c
				}
				if got := clients.hear(); got != "ok" {
					b.Fatal(got)
				}
				s := startChild(b, cfg.Socket)
				s.do("probation -1s", fmt.Sprint("room ", n+1000), "start", "echo app tcp "+from.Addr().String(), "ready")
				await(b, "superseded", old.Superseded())
				var all sync.WaitGroup
				began := time.Now()
				for _, c := range servers {
					all.Go(func() {
						if err := from.MoveConn(context.Background(), c, nil, []byte("0")); err != nil {
							b.Error(err)
						}
						c.Close()
					})
				}
				all.Wait()
				whole += time.Since(began)
				eventually(b, "all of them there", func() bool { return s.do("conns") == fmt.Sprint(n) })
				old.Close()
				s.kill()
				clients.kill()
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(whole.Microseconds())/float64(b.N)/1000, "ms")
			b.ReportMetric(float64(whole.Microseconds())/float64(b.N)/float64(n), "us/connection")
		})
	}
}
