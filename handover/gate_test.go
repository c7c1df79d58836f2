package handover

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
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
