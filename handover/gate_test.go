package handover

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// fakeSocket blocks in wait until its deadline passes or something arrives.
type fakeSocket struct {
	mu       sync.Mutex
	deadline time.Time
	moved    chan struct{}
	arrivals chan int
}

func newFakeSocket() *fakeSocket {
	return &fakeSocket{moved: make(chan struct{}), arrivals: make(chan int, 16)}
}

func (s *fakeSocket) setDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	close(s.moved)
	s.moved = make(chan struct{})
	return nil
}

func (s *fakeSocket) wait() (int, error) {
	for {
		s.mu.Lock()
		deadline, moved := s.deadline, s.moved
		s.mu.Unlock()
		var expired <-chan time.Time
		if !deadline.IsZero() {
			if !time.Now().Before(deadline) {
				return 0, os.ErrDeadlineExceeded
			}
			expired = time.After(time.Until(deadline))
		}
		select {
		case n := <-s.arrivals:
			return n, nil
		case <-moved:
		case <-expired:
		}
	}
}

// pass is what Accept and ReadFrom do.
func (s *fakeSocket) pass(p *passage) (int, error) {
	for {
		if _, err := p.enter(); err != nil {
			return 0, err
		}
		n, err := s.wait()
		if !p.leave(err) {
			return n, err
		}
	}
}

func TestGatePausesAndResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(nil)
		s := newFakeSocket()
		p := g.newPassage(s.setDeadline)
		got := make(chan int)
		go func() {
			for {
				n, err := s.pass(p)
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					close(got)
					return
				}
				got <- n
			}
		}()
		s.arrivals <- 1
		synctest.Wait()
		select {
		case n := <-got:
			t.Fatalf("%d passed a gate that was never opened", n)
		default:
		}
		g.open()
		if n := <-got; n != 1 {
			t.Fatal(n)
		}
		for range 100 {
			synctest.Wait()
			if err := g.shut(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.arrivals <- 2
			synctest.Wait()
			select {
			case n := <-got:
				t.Fatalf("%d passed the shut gate", n)
			default:
			}
			g.open()
			if n := <-got; n != 2 {
				t.Fatal(n)
			}
		}
		g.end()
		<-got
		if _, err := p.enter(); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		g.open() // the end is final
		if _, err := p.enter(); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	})
}

// The application's deadline holds whether the gate is open, shut, or shut
// and opened again meanwhile.
func TestGateKeepsTheUsersDeadline(t *testing.T) {
	for name, play := range map[string]func(*gate){
		"open": func(g *gate) { g.open() },
		"shut": func(*gate) {},
		"paused": func(g *gate) {
			g.open()
			time.Sleep(time.Second)
			g.shut(context.Background())
			time.Sleep(time.Second)
			g.open()
		},
		"closed later": func(g *gate) {
			g.open()
			time.Sleep(time.Second)
			g.shut(context.Background())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(nil)
				s := newFakeSocket()
				p := g.newPassage(s.setDeadline)
				start := time.Now()
				p.setUserDeadline(start.Add(time.Minute))
				go play(g)
				_, err := s.pass(p)
				if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
					t.Fatalf("%v after %v", err, time.Since(start))
				}
				synctest.Wait()
				// Taken away, the same passage works on.
				p.setUserDeadline(time.Time{})
				g.open()
				s.arrivals <- 3
				if n, err := s.pass(p); n != 3 || err != nil {
					t.Fatal(n, err)
				}
			})
		})
	}
}

func TestGateClosesOnePassage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, open := range []bool{true, false} {
			g := newGate(nil)
			s := newFakeSocket()
			p := g.newPassage(s.setDeadline)
			if open {
				g.open()
			}
			done := make(chan error)
			go func() {
				_, err := s.pass(p)
				done <- err
			}()
			synctest.Wait()
			if !p.close() || p.close() {
				t.Fatal("close tells the first from the second wrongly")
			}
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
			if err := p.setUserDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
		}
	})
}

// A gate whose generation has lost the ownership word lets nobody through,
// though nobody has shut it yet.
func TestGateAsksTheOwnershipWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var owns atomic.Bool
		owns.Store(true)
		g := newGate(owns.Load)
		s := newFakeSocket()
		p := g.newPassage(s.setDeadline)
		g.open()
		s.arrivals <- 1
		if n, err := s.pass(p); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		owns.Store(false)
		s.arrivals <- 2
		passed := make(chan error, 1)
		go func() {
			_, err := s.pass(p)
			passed <- err
		}()
		synctest.Wait()
		select {
		case err := <-passed:
			t.Fatalf("passed: %v", err)
		default:
		}
		g.end()
		if err := <-passed; !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	})
}

// shut gives up when its context ends, and says so.
func TestGateShutIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(nil)
		p := g.newPassage(func(time.Time) error { return nil }) // deaf
		g.open()
		if _, err := p.enter(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.shut(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		g.open()
		if p.leave(nil) {
			t.Fatal("asked to enter again after a success")
		}
	})
}

// Many passages, many pauses, for the race detector.
func TestGateUnderStress(t *testing.T) {
	g := newGate(nil)
	var wg sync.WaitGroup
	var shut atomic.Bool
	stop := make(chan struct{})
	for range 8 {
		s := newFakeSocket()
		p := g.newPassage(s.setDeadline)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case s.arrivals <- 1:
				}
			}
		})
		wg.Go(func() {
			for {
				if _, err := p.enter(); err != nil {
					return
				}
				if shut.Load() {
					t.Error("inside while shut")
				}
				_, err := s.wait()
				p.leave(err)
			}
		})
	}
	for range 2000 {
		g.open()
		if err := g.shut(context.Background()); err != nil {
			t.Error(err)
			break
		}
		shut.Store(true)
		shut.Store(false)
	}
	g.end()
	close(stop)
	wg.Wait()
}

// parcel is a connection that is told from others, and from a closed one.
type parcel struct {
	net.Conn
	number int
	closed atomic.Bool
}

func (p *parcel) Close() error { p.closed.Store(true); return nil }

// accepted is what came through a passage: a number, from either source, or
// the end.
type accepted struct {
	number int
	moved  bool
	err    error
}

// accept is what Accept does.
func (s *fakeSocket) accept(p *passage) accepted {
	for {
		c, err := p.enter()
		if c != nil {
			return accepted{number: c.(*parcel).number, moved: true}
		}
		if err != nil {
			return accepted{err: err}
		}
		n, err := s.wait()
		if !p.leave(err) {
			return accepted{number: n, err: err}
		}
	}
}

// accepts runs n loops of Accept.
func (s *fakeSocket) accepts(p *passage, n int) <-chan accepted {
	got := make(chan accepted)
	for range n {
		go func() {
			for {
				a := s.accept(p)
				got <- a
				if errors.Is(a.err, net.ErrClosed) {
					return
				}
			}
		}()
	}
	return got
}

func nothing(t *testing.T, got <-chan accepted) {
	t.Helper()
	synctest.Wait()
	select {
	case a := <-got:
		t.Fatalf("accepted too soon: %+v", a)
	default:
	}
}

// What arrives is accepted whatever the gate is, and what else there is only
// when it is open.
func TestGateGivesWhatArrives(t *testing.T) {
	for name, before := range map[string]func(*gate){
		"never open": func(*gate) {},
		"open":       func(g *gate) { g.open() },
		"shut":       func(g *gate) { g.open(); synctest.Wait(); g.shut(context.Background()) },
		"lost word":  func(g *gate) { g.owns = func() bool { return false }; g.open() },
	} {
		for _, callers := range []int{1, 3} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := newGate(nil)
					s := newFakeSocket()
					p := g.newPassage(s.setDeadline)
					got := s.accepts(p, callers)
					before(g)
					nothing(t, got)
					for i := range 20 {
						if !p.expect(1) {
							t.Fatal("not expected")
						}
						nothing(t, got)
						p.arrive(&parcel{number: i})
						if a := <-got; !a.moved || a.number != i {
							t.Fatalf("%+v, want %d", a, i)
						}
						nothing(t, got)
						if name == "open" {
							s.arrivals <- i
							if a := <-got; a.moved || a.number != i || a.err != nil {
								t.Fatalf("%+v, want %d from the socket", a, i)
							}
						}
					}
					g.end()
					for range callers {
						if a := <-got; !errors.Is(a.err, net.ErrClosed) {
							t.Fatalf("%+v", a)
						}
					}
				})
			})
		}
	}
}

// Several arrive while nobody asks: they come first, in order.
func TestGateKeepsTheOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(nil)
		s := newFakeSocket()
		p := g.newPassage(s.setDeadline)
		g.open()
		s.arrivals <- 100
		p.expect(3)
		for i := range 3 {
			p.arrive(&parcel{number: i})
		}
		got := s.accepts(p, 1)
		for i := range 3 {
			if a := <-got; !a.moved || a.number != i {
				t.Fatalf("%+v, want %d", a, i)
			}
		}
		if a := <-got; a.moved || a.number != 100 {
			t.Fatalf("%+v", a)
		}
		g.end()
		<-got
	})
}

// The end waits for what is expected, and then nothing can be any more.
func TestGateEndsAfterWhatIsExpected(t *testing.T) {
	for name, end := range map[string]func(*passage){
		"gate":    func(p *passage) { p.gate.end() },
		"passage": func(p *passage) { p.close() },
		"both":    func(p *passage) { p.gate.end(); p.close() },
	} {
		for _, open := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := newGate(nil)
					s := newFakeSocket()
					p := g.newPassage(s.setDeadline)
					if open {
						g.open()
					}
					got := s.accepts(p, 2)
					p.expect(3)
					synctest.Wait()
					end(p)
					nothing(t, got)
					if p.expect(1) {
						t.Fatal("more is expected after the end")
					}
					p.arrive(&parcel{number: 1})
					if a := <-got; !a.moved || a.number != 1 {
						t.Fatalf("%+v", a)
					}
					nothing(t, got)
					p.arrive(nil)
					nothing(t, got)
					p.arrive(&parcel{number: 2})
					for _, want := range []int{2, 0, 0} {
						if a := <-got; a.moved != (want > 0) || a.number != want || !a.moved && !errors.Is(a.err, net.ErrClosed) {
							t.Fatalf("%+v, want %d", a, want)
						}
					}
				})
			})
		}
	}
}

// The application's deadline holds while the end waits, and without turning in
// circles until then.
func TestGateKeepsTheUsersDeadlineAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(nil)
		s := newFakeSocket()
		p := g.newPassage(s.setDeadline)
		g.open()
		start := time.Now()
		p.setUserDeadline(start.Add(time.Minute))
		p.expect(1)
		g.end()
		a := s.accept(p)
		if !errors.Is(a.err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Fatalf("%+v after %v", a, time.Since(start))
		}
		p.arrive(&parcel{number: 1})
		if a := s.accept(p); !a.moved {
			t.Fatalf("%+v", a)
		}
		if a := s.accept(p); !errors.Is(a.err, net.ErrClosed) {
			t.Fatalf("%+v", a)
		}
	})
}

// A caller that was interrupted for what arrived, and for a pause that failed,
// gets it when the gate opens again, though it is slow to notice.
func TestGateOpensForWhatHasArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(nil)
		s := newFakeSocket()
		p := g.newPassage(s.setDeadline)
		g.open()
		if c, err := p.enter(); c != nil || err != nil { // begins to accept
			t.Fatal(c, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.shut(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		p.expect(1)
		p.arrive(&parcel{number: 1})
		g.open()
		_, err := s.wait() // only now it looks at its deadline
		if !errors.Is(err, os.ErrDeadlineExceeded) || !p.leave(err) {
			t.Fatal(err)
		}
		if a := s.accept(p); !a.moved || a.number != 1 {
			t.Fatalf("%+v", a)
		}
		got := s.accepts(p, 1)
		nothing(t, got) // the deadline is the user's again
		g.end()
		<-got
	})
}

// The application moves its deadline while a caller is being interrupted.
func TestGateKeepsTheUsersDeadlineWhileSomethingArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(nil)
		s := newFakeSocket()
		p := g.newPassage(s.setDeadline)
		g.open()
		if c, err := p.enter(); c != nil || err != nil {
			t.Fatal(c, err)
		}
		p.expect(1)
		p.arrive(&parcel{number: 1})
		start := time.Now()
		p.setUserDeadline(start.Add(time.Hour))
		if _, err := s.wait(); !errors.Is(err, os.ErrDeadlineExceeded) || !p.leave(err) {
			t.Fatal("not interrupted", err)
		}
		if a := s.accept(p); !a.moved {
			t.Fatalf("%+v", a)
		}
		if a := s.accept(p); !errors.Is(a.err, os.ErrDeadlineExceeded) || time.Since(start) != time.Hour {
			t.Fatalf("%+v after %v", a, time.Since(start))
		}
	})
}

func TestGateClosesWhatNobodyAskedFor(t *testing.T) {
	g := newGate(nil)
	p := g.newPassage(func(time.Time) error { return nil })
	q := g.newPassage(func(time.Time) error { return nil })
	var all []*parcel
	for i, way := range []*passage{p, p, q} {
		all = append(all, &parcel{number: i})
		way.expect(1)
		way.arrive(all[i])
	}
	if c, err := p.enter(); c != all[0] || err != nil {
		t.Fatal(c, err)
	}
	p.close()
	g.end()
	g.closeArrived()
	for i, c := range all {
		if c.closed.Load() != (i > 0) {
			t.Errorf("%d is closed: %v", i, c.closed.Load())
		}
	}
	if _, err := p.enter(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// Everything at once, with real time, for the race detector: each parcel comes
// out once, and nothing passes a shut gate.
func TestGateWithArrivalsUnderStress(t *testing.T) {
	g := newGate(nil)
	s := newFakeSocket()
	p := g.newPassage(s.setDeadline)
	const callers, parcels = 4, 5000
	var wg, arriving sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case s.arrivals <- i:
			}
		}
	})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			switch i % 3 {
			case 0:
				p.setUserDeadline(time.Now().Add(time.Hour))
			case 1:
				p.setUserDeadline(time.Now())
			case 2:
				p.setUserDeadline(time.Time{})
			}
			runtime.Gosched()
		}
	})
	seen := make([]atomic.Int32, parcels)
	for range callers {
		wg.Go(func() {
			for {
				a := s.accept(p)
				if a.moved {
					seen[a.number].Add(1)
				}
				if errors.Is(a.err, net.ErrClosed) {
					return
				}
			}
		})
	}
	for half := range 2 {
		arriving.Go(func() {
			for i := half; i < parcels; i += 2 {
				if !p.expect(2) {
					t.Error("not expected")
				}
				runtime.Gosched()
				p.arrive(nil)
				p.arrive(&parcel{number: i})
			}
		})
	}
	pausing := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-pausing:
				return
			default:
			}
			g.open()
			if err := g.shut(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	arriving.Wait()
	close(pausing)
	g.end()
	close(stop)
	wg.Wait()
	for i := range seen {
		if n := seen[i].Load(); n != 1 {
			t.Errorf("parcel %d came out %d times", i, n)
		}
	}
}
