package scm_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/scm"
)

// The ways a context ends, each as a function that makes the context and one
// that ends it (deadlines end themselves).
var endings = []struct {
	name string
	make func() (context.Context, context.CancelFunc)
	end  func(cancel context.CancelFunc)
	err  error
}{
	{
		"cancel",
		func() (context.Context, context.CancelFunc) { return context.WithCancel(context.Background()) },
		func(cancel context.CancelFunc) { cancel() },
		context.Canceled,
	},
	{
		"deadline",
		func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), 20*time.Millisecond)
		},
		func(context.CancelFunc) {},
		context.DeadlineExceeded,
	},
	{
		"past deadline",
		func() (context.Context, context.CancelFunc) {
			return context.WithDeadline(context.Background(), time.Unix(1, 0))
		},
		func(context.CancelFunc) {},
		context.DeadlineExceeded,
	},
	{
		"cancelled before",
		func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return ctx, cancel
		},
		func(context.CancelFunc) {},
		context.Canceled,
	},
}

func checkEnding(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
	if deadline := want == context.DeadlineExceeded; errors.Is(err, os.ErrDeadlineExceeded) != deadline {
		t.Errorf("errors.Is(%v, os.ErrDeadlineExceeded) = %v", err, !deadline)
	}
}

func TestRecvContext(t *testing.T) {
	for _, end := range endings {
		t.Run(end.name, func(t *testing.T) {
			eachType(t, func(t *testing.T, a, b *scm.Conn) {
				w := newWitness(t)
				ctx, cancel := end.make()
				defer cancel()
				result := make(chan error, 1)
				go func() {
					_, _, err := b.Recv(ctx, make([]byte, 8), make([]int, 8))
					result <- err
				}()
				if end.name == "cancel" {
					awaitBlocked(t, "Recv")
				}
				end.end(cancel)
				checkEnding(t, <-result, end.err)

				// The next one is undisturbed and has lost nothing.
				send(t, a, "next", w.fds(t, 1)...)
				closeAll(t, recv(t, b, "next", 1))
				w.gone(t)
			})
		})
	}
}

// fill makes the socket's buffer full, so that a Send blocks.
func fill(t *testing.T, c *net.UnixConn) {
	t.Helper()
	withFD(t, c, func(fd int) error {
		for {
			_, err := unix.SendmsgN(fd, make([]byte, 4096), nil, nil, unix.MSG_DONTWAIT)
			if err == unix.EAGAIN {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}

func TestSendContext(t *testing.T) {
	for _, end := range endings {
		for _, st := range socketTypes {
			t.Run(end.name+"/"+st.name, func(t *testing.T) {
				ua, ub := unixPair(t, st.typ)
				fill(t, ua)
				a, b := newConn(t, ua), newConn(t, ub)
				w := newWitness(t)
				ctx, cancel := end.make()
				defer cancel()
				result := make(chan error, 1)
				fds := w.fds(t, 3)
				go func() { result <- a.Send(ctx, make([]byte, 64<<10), fds) }()
				if end.name == "cancel" {
					awaitBlocked(t, "Send")
				}
				end.end(cancel)
				checkEnding(t, <-result, end.err)
				w.gone(t) // none of it was sent

				// Nothing of it was written, so the connection is intact: a
				// fresh context sends as soon as there is room.
				go func() { result <- a.Send(context.Background(), []byte("next"), nil) }()
				p := make([]byte, 64<<10)
				for {
					n, _, err := b.Recv(context.Background(), p, nil)
					if err != nil {
						t.Fatal(err)
					}
					if bytes.HasSuffix(p[:n], []byte("next")) {
						break
					}
				}
				if err := <-result; err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// A stream that was cut in the middle of a message is of no use any more.
func TestBrokenStream(t *testing.T) {
	a, b := pair(t, unix.SOCK_STREAM)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- a.Send(ctx, make([]byte, 16<<20), nil) }()
	awaitBlocked(t, "Send")
	cancel()
	err := <-result
	checkEnding(t, err, context.Canceled)
	if !errors.Is(err, scm.ErrBroken) {
		t.Errorf("error = %v, want also ErrBroken", err)
	}

	fresh, stop := context.WithTimeout(context.Background(), time.Minute) // the buffer is full
	defer stop()
	err = a.Send(fresh, []byte("x"), nil)
	if !errors.Is(err, scm.ErrBroken) || errors.Is(err, context.Canceled) {
		t.Errorf("next Send = %v, want ErrBroken alone", err)
	}
	// The other direction does not suffer.
	send(t, b, "back")
	recv(t, a, "back", 0)
}

// O_NONBLOCK belongs to the open file description, so another holder of the
// socket can clear it. Contexts must work all the same.
func TestContextOnBlockingSocket(t *testing.T) {
	for _, st := range socketTypes {
		t.Run(st.name, func(t *testing.T) {
			ua, ub := unixPair(t, st.typ)
			fill(t, ua)
			for _, uc := range []*net.UnixConn{ua, ub} {
				withFD(t, uc, func(fd int) error { return unix.SetNonblock(fd, false) })
			}
			a := newConn(t, ua)
			newConn(t, ub)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			result := make(chan error, 2)
			go func() { result <- a.Send(ctx, []byte("x"), nil) }()
			go func() {
				_, _, err := a.Recv(ctx, make([]byte, 8), nil)
				result <- err
			}()
			awaitBlocked(t, "Send")
			awaitBlocked(t, "Recv")
			cancel()
			checkEnding(t, <-result, context.Canceled)
			checkEnding(t, <-result, context.Canceled)
		})
	}
}

// Waiting for another call to end is waiting as well.
func TestContextWhileSerialised(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		first := make(chan error, 1)
		go func() {
			_, _, err := b.Recv(context.Background(), make([]byte, 8), nil)
			first <- err
		}()
		awaitBlocked(t, "Recv")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		second := make(chan error, 1)
		go func() {
			_, _, err := b.Recv(ctx, make([]byte, 8), nil)
			second <- err
		}()
		awaitStack(t, "[select", "scm.(*gate).enter(")
		cancel()
		checkEnding(t, <-second, context.Canceled)
		send(t, a, "first")
		if err := <-first; err != nil {
			t.Fatalf("the first Recv was disturbed: %v", err)
		}
	})
}

func TestCloseInterrupts(t *testing.T) {
	for _, st := range socketTypes {
		t.Run(st.name, func(t *testing.T) {
			ua, ub := unixPair(t, st.typ)
			fill(t, ua)
			a := newConn(t, ua)
			newConn(t, ub)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()

			// One of each blocks in the poller, the others wait for their turn.
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if err := a.Send(ctx, []byte("x"), nil); !errors.Is(err, net.ErrClosed) {
						t.Errorf("Send = %v, want net.ErrClosed", err)
					}
				})
				wg.Go(func() {
					if _, _, err := a.Recv(ctx, make([]byte, 8), nil); !errors.Is(err, net.ErrClosed) {
						t.Errorf("Recv = %v, want net.ErrClosed", err)
					}
				})
			}
			awaitBlocked(t, "Send")
			awaitBlocked(t, "Recv")
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()

			if err := a.Send(ctx, []byte("x"), nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Send after Close = %v", err)
			}
			if _, err := a.PeerCred(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("PeerCred after Close = %v", err)
			}
			if err := a.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("second Close = %v", err)
			}
		})
	}
}

// A context that ends at about the time when the call returns must do nothing
// to the calls after it. Whichever is first, every outcome is allowed but one:
// that the call with the other context fails.
func TestLateCancel(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		var sender sync.WaitGroup
		p := make([]byte, 8)
		for i := range 3000 {
			ctx, cancel := context.WithCancel(context.Background())
			go cancel()
			if i%2 == 0 {
				send(t, a, "x")
			}
			_, _, err := b.Recv(ctx, p, nil)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if i%2 == 0 && err == nil {
				send(t, a, "x") // the message was taken, send another one
			} else if i%2 != 0 {
				sender.Go(func() {
					if err := a.Send(context.Background(), []byte("x"), nil); err != nil {
						t.Error(err)
					}
				})
			}
			next, stop := context.Background(), context.CancelFunc(func() {})
			if i%3 != 0 {
				next, stop = context.WithCancel(next)
			}
			if _, _, err := b.Recv(next, p, nil); err != nil {
				t.Fatalf("round %d: a context of an earlier call interrupted this one: %v", i, err)
			}
			stop()
			cancel()
			sender.Wait()
		}
	})
}

// The same for Send, and for one context that serves many calls before it ends.
func TestContextEndsBetweenCalls(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		for range 50 {
			ctx, cancel := context.WithCancel(context.Background())
			for range 3 {
				if err := a.Send(ctx, []byte("x"), nil); err != nil {
					t.Fatal(err)
				}
				// A context without an end in between must not be interrupted
				// by the one that is remembered.
				send(t, a, "y")
				if _, _, err := b.Recv(ctx, make([]byte, 1), nil); err != nil {
					t.Fatal(err)
				}
				recv(t, b, "y", 0)
			}
			cancel()
			if err := a.Send(ctx, []byte("x"), nil); !errors.Is(err, context.Canceled) {
				t.Fatalf("Send = %v", err)
			}
			if _, _, err := b.Recv(ctx, make([]byte, 1), nil); !errors.Is(err, context.Canceled) {
				t.Fatalf("Recv = %v", err)
			}
			send(t, a, "next")
			recv(t, b, "next", 0)
		}
	})
}

// The context that was remembered must not interrupt a call that has none.
func TestRememberedContextLeavesOthersAlone(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	ctx, cancel := context.WithCancel(context.Background())
	send(t, a, "x")
	if _, _, err := b.Recv(ctx, make([]byte, 8), nil); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, _, err := b.Recv(context.Background(), make([]byte, 8), nil)
		result <- err
	}()
	awaitBlocked(t, "Recv")
	cancel()
	send(t, a, "y")
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// countingContext counts who is registered with it. It never ends.
type countingContext struct {
	context.Context
	done          chan struct{}
	mu            sync.Mutex
	made, pending int
}

func (c *countingContext) Done() <-chan struct{} { return c.done }

func (c *countingContext) AfterFunc(f func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	c.pending++
	return sync.OnceValue(func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pending--
		return true
	})
}

func (c *countingContext) counts() (made, pending int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made, c.pending
}

// valueContext is a context whose values cannot be compared.
type valueContext struct {
	*countingContext
	_ []int
}

func TestRegistrationIsReusedAndReleased(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	counting := &countingContext{Context: context.Background(), done: make(chan struct{})}
	ctx := valueContext{countingContext: counting}
	round := func(ctx context.Context) {
		t.Helper()
		if err := a.Send(ctx, []byte("x"), nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Recv(ctx, make([]byte, 1), nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		round(ctx)
		round(context.Background())
	}
	if made, pending := counting.counts(); made != 2 || pending != 2 {
		t.Errorf("%d registrations, %d pending; want one for Send and one for Recv", made, pending)
	}

	// Another context takes its place.
	other, cancelOther := context.WithCancel(context.Background())
	defer cancelOther()
	round(other)
	if _, pending := counting.counts(); pending != 0 {
		t.Errorf("%d registrations left after another context", pending)
	}

	// So does Close.
	round(ctx)
	a.Close()
	b.Close()
	if _, pending := counting.counts(); pending != 0 {
		t.Errorf("%d registrations left after Close", pending)
	}
}
