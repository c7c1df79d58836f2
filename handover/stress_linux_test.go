package handover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// A successor is stopped, refused for its silence, and sleeps until another
// one has taken over. When it wakes up it must not take that one's ownership
// for its own.
func TestRefusedSuccessorWakesUpUnderTheNextOwner(t *testing.T) {
	for _, probation := range []string{"-1s", "1h"} {
		t.Run("probation "+probation, func(t *testing.T) {
			cfg := testConfig(t)
			_, addr := firstGeneration(t, cfg.Socket, "readytimeout 300ms")
			late := successor(t, cfg.Socket, addr, "step 200ms")
			late.signal(syscall.SIGSTOP)
			eventually(t, "ready timeout", func() bool {
				st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
				return err == nil && st.Phase == PhaseOwner
			})
			next := successor(t, cfg.Socket, addr, "probation "+probation)
			next.do("ready")
			late.signal(syscall.SIGCONT)
			if got := late.ask("ready"); !strings.HasPrefix(got, "error") {
				t.Errorf("the refused successor is ready: %s, in phase %s; the other is in phase %s: two owners",
					got, late.do("phase"), next.do("phase"))
			}
			want := "owner"
			if probation == "1h" {
				want = "probation"
			}
			if got := next.do("phase"); got != want {
				t.Errorf("the owner is in phase %s, want %s", got, want)
			}
			if got := late.do("phase"); got != "draining" {
				t.Errorf("the refused successor is in phase %s", got)
			}
		})
	}
}

// The owner was stopped while its successor said ready in time: it is the
// owner that slept, and so the successor is not refused for being late.
func TestOwnerSleepsPastTheReadyTimeout(t *testing.T) {
	n := 20
	if testing.Short() {
		n = 3
	}
	for i := range n {
		const timeout = 250 * time.Millisecond
		cfg := testConfig(t)
		o, addr := firstGeneration(t, cfg.Socket, fmt.Sprint("readytimeout ", timeout))
		s := successor(t, cfg.Socket, addr, "probation -1s")
		received := time.Now()
		o.signal(syscall.SIGSTOP)
		if time.Since(received) > timeout/2 {
			o.kill() // too slow to have been in time
			s.kill()
			continue
		}
		s.tell("ready")
		eventually(t, "the ready timeout", func() bool { return time.Since(received) > 2*timeout })
		o.signal(syscall.SIGCONT)
		if got := s.hear(); got != "ok" {
			t.Errorf("try %d: ready was said in time: %s", i, got)
		}
		o.kill()
		s.kill()
	}
}

// The predecessor leaves before its successor is ready, and that one is taken
// over in turn while it still waits for the predecessor's end: what it
// remembers of its own takeover must not end its standby.
func TestStandbyOutlivesTheEndOfTheOwnPredecessor(t *testing.T) {
	cfg := testConfig(t)
	cfg.StepTimeout = time.Second
	a, _, addr := owner(t, cfg)
	b := begin(t, cfg)
	var s greeter
	s.serve(t, b, listen(t, b, "app", "", ""))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "adoption", b.pred.adopted)
	ready(t, b)
	long := cfg
	long.Probation = time.Hour
	c := begin(t, long)
	s.serve(t, c, listen(t, c, "app", "", ""))
	ready(t, c)
	await(t, "end of the conversation with the predecessor", b.pred.over)
	if p := b.Phase(); p != PhaseStandby {
		t.Errorf("in the successor's probation the predecessor is %v (cause: %v), want standby", p, b.Cause())
	}
	if err := c.Close(); err != nil { // gives back
		t.Fatal(err)
	}
	if p := b.Phase(); p != PhaseOwner {
		t.Fatalf("after the rollback the predecessor is %v: nobody owns the sockets", p)
	}
	answers(t, addr, "2")
	b.Close()
	s.wait()
}

// A Unix path that only this generation has bound goes with it, also when the
// takeover comes to nothing.
func TestAddedPathsGoWithTheirGeneration(t *testing.T) {
	for name, until := range map[string]func(t *testing.T, g *Generation){
		"preparing": func(t *testing.T, g *Generation) {},
		"probation": func(t *testing.T, g *Generation) { ready(t, g) },
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			cfg.Probation = time.Hour
			dir := filepath.Dir(cfg.Socket)
			a := begin(t, cfg)
			listen(t, a, "old", "unix", filepath.Join(dir, "old"))
			ready(t, a)
			before := names(dir)
			b := begin(t, cfg)
			listen(t, b, "old", "", "")
			listen(t, b, "new", "unix", filepath.Join(dir, "new"))
			until(t, b)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			awaitPhase(t, a, PhaseOwner)
			if after := names(dir); after != before {
				t.Errorf("the directory had %s, and now has %s", before, after)
			}
		})
	}
}

// slowListen makes every bind wait in its Control function until release.
func slowListen(cfg *Config) (binding <-chan struct{}, release func()) {
	in, out := make(chan struct{}, 1), make(chan struct{})
	cfg.ListenConfig.Control = func(string, string, syscall.RawConn) error {
		in <- struct{}{}
		<-out
		return nil
	}
	return in, func() { close(out) }
}

// A generation is closed while a Listen binds: that one fails, and neither its
// socket nor its path nor what was inherited under the name stays.
func TestCloseDuringListen(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	dir := filepath.Dir(cfg.Socket)
	a := begin(t, cfg)
	listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	before := names(dir)
	slow := cfg
	binding, release := slowListen(&slow)
	b := begin(t, slow)
	failed := make(chan error, 1)
	go func() {
		_, err := b.Listen("app", "unix", filepath.Join(dir, "new"))
		failed <- err
	}()
	await(t, "bind", binding)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	release()
	if err := <-failed; err == nil {
		t.Error("Listen of a closed generation succeeded")
	}
	awaitPhase(t, a, PhaseOwner)
	if after := names(dir); after != before {
		t.Errorf("the directory had %s, and now has %s", before, after)
	}
	a.Close()
}

// A takeover begins while a Listen binds: that one fails without a trace.
func TestTakeoverDuringListen(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	dir := filepath.Dir(cfg.Socket)
	slow := cfg
	binding, release := slowListen(&slow)
	a := begin(t, slow)
	ready(t, a)
	before := names(dir)
	failed := make(chan error, 1)
	go func() {
		_, err := a.Listen("app", "unix", filepath.Join(dir, "new"))
		failed <- err
	}()
	await(t, "bind", binding)
	b := begin(t, cfg)
	release()
	if err := <-failed; err == nil {
		t.Error("Listen in mid-takeover succeeded")
	}
	if after := names(dir); after != before {
		t.Errorf("the directory had %s, and now has %s", before, after)
	}
	b.Close()
	a.Close()
}

// A Listen that fails costs none of the other adopted sockets.
func TestFailedListenKeepsWhatWasAdopted(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	g := begin(t, cfg)
	ready(t, g)
	adopt := func(name string) (addr string) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Adopt(name, f); err != nil {
			t.Fatal(err)
		}
		return ln.Addr().String()
	}
	first, second := adopt("first"), adopt("second")
	if _, err := g.Listen("first", "tcp", second); err == nil {
		t.Fatal("two listeners on one address")
	}
	for name, addr := range map[string]string{"first": first, "second": second} {
		if ln, err := g.Listen(name, "", ""); err != nil {
			t.Errorf("%s, adopted, after a Listen of first has failed: %v", name, err)
		} else if got := ln.Addr().String(); got != addr {
			t.Errorf("%s is bound to %s, want %s", name, got, addr)
		}
	}
}

// Stop while a takeover fails: whichever comes first, Stop ends.
func TestStopRacesAFailingTakeover(t *testing.T) {
	leak.Check(t)
	n := 300
	if testing.Short() {
		n = 60
	}
	for i := range n {
		cfg := testConfig(t)
		g := begin(t, cfg)
		ready(t, g)
		p := dialPeer(t, cfg)
		p.say(hello(intentTakeover))
		p.receiveAll()
		awaitStack(t, "the owner awaits ready", "(*takeover).awaitReady(")
		// Stop looks at the phase first, then the takeover ends: both wait in
		// this order for the goroutine that owns the state.
		release := holdRun(t, g)
		stopped := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			stopped <- g.Stop(ctx)
		}()
		awaitStack(t, "Stop in the queue", "(*Generation).Stop(", "(*Generation).do(")
		p.raw("rubbish")
		awaitStack(t, "the failed takeover in the queue", "(*takeover).failed(", "(*Generation).do(")
		release()
		if err := <-stopped; err != nil {
			t.Fatalf("try %d: Stop: %v, in phase %v", i, err, g.Phase())
		}
		within(t, 10*time.Second, "Close", func() { g.Close() })
		p.close()
		if left := names(filepath.Dir(cfg.Socket)); left != "" {
			t.Fatalf("try %d: left behind: %s", i, left)
		}
	}
}

// awaitStack polls until one goroutine has all the texts in its stack.
func awaitStack(t testing.TB, what string, texts ...string) {
	t.Helper()
	awaitStacks(t, 1, what, texts...)
}

// awaitStacks is awaitStack for n goroutines.
func awaitStacks(t testing.TB, n int, what string, texts ...string) {
	t.Helper()
	buf := make([]byte, 1<<20)
	eventually(t, what, func() bool {
		found := 0
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			missing := func(text string) bool { return !strings.Contains(g, text) }
			if !slices.ContainsFunc(texts, missing) {
				found++
			}
		}
		return found >= n
	})
}

// Ready, Stop and the early end of the predecessor, at once.
func TestReadyRacesStopAndTheOwnersEnd(t *testing.T) {
	if inOwnProcess(t) {
		return
	}
	leak.Check(t)
	n := 400
	if testing.Short() {
		n = 40
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		cfg := testConfig(t)
		if i%2 == 0 {
			cfg.Probation = time.Hour
		}
		cfg.StepTimeout = 2 * time.Second
		a := begin(t, cfg)
		listen(t, a, "app", "tcp", "127.0.0.1:0")
		ready(t, a)
		b := begin(t, cfg)
		listen(t, b, "app", "", "")
		acts := []func(){
			func() { a.Close() },
			func() { b.Ready(testContext(t)) },
			func() { b.Ready(testContext(t)) },
			func() { b.Stop(testContext(t)) },
			func() {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				b.Ready(ctx)
			},
			func() { Operator{Socket: cfg.Socket, Timeout: time.Second}.Commit(testContext(t)) },
		}
		rnd.Shuffle(len(acts), func(i, j int) { acts[i], acts[j] = acts[j], acts[i] })
		within(t, 20*time.Second, "all at once", func() {
			var wg sync.WaitGroup
			for _, act := range acts {
				wg.Go(act)
			}
			wg.Wait()
		})
		within(t, 20*time.Second, "Close", func() { b.Close(); a.Close() })
		if left := names(filepath.Dir(cfg.Socket)); left != "" {
			t.Fatalf("try %d: left behind: %s", i, left)
		}
	}
}

// An operator's question at the moment of a handover finds an owner.
func TestStatusNeverFailsDuringTakeovers(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	last := begin(t, cfg)
	listen(t, last, "app", "tcp", "127.0.0.1:0")
	ready(t, last)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := (Operator{Socket: cfg.Socket}).Status(testContext(t)); err != nil {
					t.Errorf("status: %v", err)
					return
				}
			}
		})
	}
	n := 200
	if testing.Short() {
		n = 40
	}
	for range n {
		next := begin(t, cfg)
		listen(t, next, "app", "", "")
		ready(t, next)
		last.Close()
		last = next
	}
	close(stop)
	wg.Wait()
	last.Close()
}

// everything calls every public method of g at random until stop is closed.
func everything(t testing.TB, g *Generation, seed uint64, stop <-chan struct{}, serving *sync.WaitGroup) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	dir := filepath.Dir(g.cfg.Socket)
	var lns []net.Listener
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprintf("%d-%d-%d", g.Number(), seed, i)
		switch rnd.IntN(16) {
		case 0:
			if ln, err := g.Listen(name, "tcp", "127.0.0.1:0"); err == nil {
				lns = append(lns, ln)
				serving.Go(func() {
					for {
						c, err := ln.Accept()
						if err != nil {
							return
						}
						c.Close()
					}
				})
			}
		case 1:
			if ln, err := g.Listen(name, "unix", filepath.Join(dir, name)); err == nil {
				lns = append(lns, ln)
			}
		case 2:
			if pc, err := g.ListenPacket(name, "udp", "127.0.0.1:0"); err == nil {
				pc.SetDeadline(time.Now())
				pc.ReadFrom(make([]byte, 1))
				pc.Close()
			}
		case 3:
			if len(lns) > 0 {
				lns[0].Close()
				lns = lns[1:]
			}
		case 4:
			g.State("note")
		case 5:
			g.OfferState("note", func(context.Context) ([]byte, error) { return []byte(name), nil })
		case 6:
			g.OfferState("note", nil)
		case 7:
			Operator{Socket: g.cfg.Socket, Timeout: 5 * time.Second}.Status(context.Background())
		case 8:
			g.Inherited()
			g.Sockets()
			g.Unclaimed()
		case 9:
			g.Phase()
			g.Cause()
			g.Number()
		case 10:
			if f, err := os.Open(os.DevNull); err == nil {
				g.Adopt(name, f)
			}
			if f, err := g.File(name); err == nil {
				f.Close()
			}
		case 11:
			Operator{Socket: g.cfg.Socket, Timeout: 5 * time.Second}.Commit(context.Background())
		case 12:
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(1000))*time.Microsecond)
			g.Ready(ctx)
			cancel()
		case 13:
			if len(lns) > 0 {
				lns[len(lns)-1].(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(time.Millisecond))
			}
		default:
			runtime.Gosched()
		}
	}
}

// A chain of takeovers, commits, rollbacks, stops and closes at random, while
// everything is called from everywhere: nothing hangs, panics or leaks, and in
// the end there is exactly one owner.
func TestChainUnderStress(t *testing.T) {
	if inOwnProcess(t) {
		return
	}
	leak.Check(t)
	rounds := 60
	if testing.Short() {
		rounds = 25
	}
	cfg := testConfig(t)
	cfg.StepTimeout, cfg.ReadyTimeout, cfg.AliveTimeout = 10*time.Second, 10*time.Second, 10*time.Second
	cfg.Probation = time.Hour
	rnd := rand.New(rand.NewPCG(3, 4))
	stop := make(chan struct{})
	var callers, serving sync.WaitGroup
	call := func(g *Generation) {
		for i := range 2 {
			callers.Go(func() { everything(t, g, uint64(i), stop, &serving) })
		}
	}
	first := begin(t, cfg)
	listen(t, first, "app", "tcp", "127.0.0.1:0")
	ready(t, first)
	call(first)
	owner := first
	for range rounds {
		within(t, 60*time.Second, "one round", func() {
			var next *Generation
			for next == nil {
				g, err := Start(context.Background(), cfg)
				var refused *RefusedError
				switch {
				case err == nil:
					next = g
				case errors.As(err, &refused) && refused.Code.Temporary():
					time.Sleep(time.Millisecond) // as the code says: try again
				case owner.Phase() == PhaseDone:
				default:
					t.Errorf("start: %v", err)
					return
				}
			}
			call(next)
			switch rnd.IntN(6) {
			case 0: // gives up before ready
				next.Close()
				return
			case 1: // the owner leaves early
				var wg sync.WaitGroup
				wg.Go(func() { owner.Close() })
				wg.Go(func() { next.Ready(context.Background()) })
				wg.Wait()
			default:
				next.Ready(context.Background())
			}
			switch rnd.IntN(4) {
			case 0: // gives back, if it still can
				next.Stop(context.Background())
			case 1: // both want to go
				var wg sync.WaitGroup
				wg.Go(func() { owner.Stop(context.Background()) })
				wg.Go(func() { next.Stop(context.Background()) })
				wg.Wait()
			default:
				Operator{Socket: cfg.Socket}.Commit(context.Background())
			}
			within(t, 20*time.Second, "exactly one owner, or none", func() {
				for {
					a, b := owner.Phase(), next.Phase()
					if a == PhaseOwner && (b == PhaseDraining || b == PhaseDone) {
						next.Close()
						return
					}
					if (a == PhaseDraining || a == PhaseDone) && (b == PhaseOwner || b == PhaseDraining || b == PhaseDone) {
						owner.Close()
						owner = next
						return
					}
					time.Sleep(time.Millisecond)
				}
			})
		})
		if t.Failed() {
			break
		}
		if p := owner.Phase(); p == PhaseDraining || p == PhaseDone {
			owner.Close() // a clean stop: the next start is a first one
			owner = begin(t, cfg)
			if owner.Number() != 1 {
				t.Fatalf("generation %d after a clean stop", owner.Number())
			}
			ready(t, owner)
			call(owner)
		}
	}
	if st, err := (Operator{Socket: cfg.Socket}).Status(testContext(t)); err != nil || st.Generation != owner.Number() {
		t.Errorf("in the end: %+v, %v", st, err)
	}
	close(stop)
	within(t, 30*time.Second, "the callers", callers.Wait)
	within(t, 30*time.Second, "Close", func() { owner.Close() })
	within(t, 30*time.Second, "the servers", serving.Wait)
	if left := names(filepath.Dir(cfg.Socket)); left != "" {
		t.Errorf("left behind: %s", left)
	}
}
