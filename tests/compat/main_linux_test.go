package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

func TestMain(m *testing.M) {
	if os.Getenv("COMPAT_TEST_CHILD") != "" {
		os.Exit(childMain())
	}
	leak.Main(m)
}

// patience only ends a hang.
const patience = 2 * v1.Patience

// directory is a fresh one with a short name: sun_path is short (unix(7)).
func directory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// currentConfig configures the present implementation such that only a hang
// ends a wait.
func currentConfig(socket string) handover.Config {
	return handover.Config{
		Socket: socket, Mode: handover.TakeOverOnly, Program: "app", Build: "current",
		Probation: time.Minute, ReadyTimeout: v1.Patience, AliveTimeout: v1.Patience, StepTimeout: v1.Patience,
	}
}

// frozenConfig configures a frozen peer alike.
func frozenConfig(socket string) v1.Config {
	return v1.Config{
		Socket: socket, Program: "app", Build: "v1", Moves: true,
		Probation: time.Minute, ReadyTimeout: v1.Patience, AliveEvery: v1.Patience / 10,
	}
}

// promise is a call under way.
type promise[T any] struct {
	done chan struct{}
	v    T
	err  error
}

func async[T any](f func() (T, error)) *promise[T] {
	p := &promise[T]{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.v, p.err = f()
	}()
	return p
}

func call(f func() error) *promise[struct{}] {
	return async(func() (struct{}, error) { return struct{}{}, f() })
}

func await(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing within %v", what, patience)
	}
}

// wait gives the result of a call that must succeed.
func (p *promise[T]) wait(t testing.TB) T {
	t.Helper()
	if err := p.fails(t); err != nil {
		t.Fatal(err)
	}
	return p.v
}

// fails gives the error of a call.
func (p *promise[T]) fails(t testing.TB) error {
	t.Helper()
	await(t, "the call", p.done)
	return p.err
}

// must is for steps that have to succeed.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// events are what a present generation tells.
type events struct {
	mu      sync.Mutex
	all     []handover.Event
	changed chan struct{} // closed at the next event
}

func watch(cfg *handover.Config) *events {
	e := &events{changed: make(chan struct{})}
	cfg.OnEvent = func(ev handover.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.all = append(e.all, ev)
		close(e.changed)
		e.changed = make(chan struct{})
	}
	return e
}

// await waits for an event, which may have been.
func (e *events) await(t testing.TB, what string, is func(handover.Event) bool) handover.Event {
	t.Helper()
	for i := 0; ; i++ {
		e.mu.Lock()
		changed := e.changed
		if i < len(e.all) {
			ev := e.all[i]
			e.mu.Unlock()
			if is(ev) {
				return ev
			}
			continue
		}
		e.mu.Unlock()
		i--
		await(t, what, changed)
	}
}

func (e *events) phase(t testing.TB, want handover.Phase) handover.Event {
	t.Helper()
	return e.await(t, want.String(), func(ev handover.Event) bool { return ev.Phase == want })
}

// server greets clients on behalf of a present generation: with its number, on
// each connection and for each packet.
type server struct {
	t       testing.TB
	g       *handover.Generation
	serving sync.WaitGroup
}

func (s *server) listen(name, network, address string) net.Listener {
	s.t.Helper()
	ln, err := s.g.Listen(name, network, address)
	must(s.t, err)
	s.serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					s.t.Errorf("accept: %v", err)
				}
				return
			}
			fmt.Fprint(c, s.g.Number())
			c.Close()
		}
	})
	return ln
}

func (s *server) listenPacket(name, network, address string) net.PacketConn {
	s.t.Helper()
	pc, err := s.g.ListenPacket(name, network, address)
	must(s.t, err)
	s.serving.Go(func() {
		buf := make([]byte, 64)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					s.t.Errorf("read: %v", err)
				}
				return
			}
			if from != nil { // a Unix socket without an address gets no answer
				pc.WriteTo(fmt.Append(nil, s.g.Number()), from)
			}
		}
	})
	return pc
}

// serve makes a server of a generation, which is closed when the test ends.
func serve(t testing.TB, g *handover.Generation) *server {
	s := &server{t: t, g: g}
	t.Cleanup(s.close)
	return s
}

func (s *server) close() {
	s.g.Close()
	s.serving.Wait()
}

func dial(t testing.TB, network, address string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, address, patience)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// hears asserts who greets on a connection.
func hears(t testing.TB, c net.Conn, generation uint64) {
	t.Helper()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != fmt.Sprint(generation) {
		t.Fatalf("greeted with %q, %v, not by generation %d", got, err, generation)
	}
}

// greeted asserts which present generation serves an address.
func greeted(t testing.TB, network, address string, generation uint64) {
	t.Helper()
	hears(t, dial(t, network, address), generation)
}

// greetsFrozen has a frozen generation greet the next connection.
func greetsFrozen(t testing.TB, s *v1.Set, name string) {
	t.Helper()
	c, err := s.Accept(name)
	must(t, err)
	fmt.Fprint(c, s.Number)
	c.Close()
}

// servesFrozen asserts that a frozen generation serves.
func servesFrozen(t testing.TB, s *v1.Set, name string) {
	t.Helper()
	c := dial(t, s.Get(name).Network, s.Get(name).Address)
	greetsFrozen(t, s, name)
	hears(t, c, s.Number)
}

// acceptsNothing asserts that a frozen generation does not own what it holds.
func acceptsNothing(t testing.TB, s *v1.Set, name string) {
	t.Helper()
	if c, err := s.Accept(name); !errors.Is(err, v1.ErrNotOwner) {
		t.Fatalf("accept without ownership: %v, %v", c, err)
	}
}

// wordIs asserts where ownership is.
func wordIs(t testing.TB, w *v1.Word, want v1.Ownership) {
	t.Helper()
	if got := w.Load(); got != want {
		t.Fatalf("the ownership word says %v, want %v", got, want)
	}
}

// isEmpty asserts that a directory has nothing left in it.
func isEmpty(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// frozenOwner starts a frozen generation 1 with a TCP listener, "app".
func frozenOwner(t testing.TB, cfg v1.Config) *v1.Owner {
	t.Helper()
	o, err := v1.Start(cfg)
	must(t, err)
	t.Cleanup(o.Close)
	must(t, o.Listen("app", "tcp", "127.0.0.1:0"))
	return o
}

// currentOwner starts a present generation 1 with a TCP listener, "app".
func currentOwner(t testing.TB, cfg handover.Config) (*server, net.Addr) {
	t.Helper()
	cfg.Mode = handover.StartOnly
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	s := serve(t, g)
	ln := s.listen("app", "tcp", "127.0.0.1:0")
	must(t, g.Ready(t.Context()))
	return s, ln.Addr()
}

// start has a present successor take over from a frozen owner, up to the last
// received.
func start(t testing.TB, o *v1.Owner, cfg handover.Config) (*v1.Handover, *server) {
	t.Helper()
	starting := async(func() (*handover.Generation, error) { return handover.Start(t.Context(), cfg) })
	h := hand(t, o)
	return h, serve(t, starting.wait(t))
}

// hand has a frozen owner hand over to whoever comes next.
func hand(t testing.TB, o *v1.Owner) *v1.Handover {
	t.Helper()
	c, hello, err := o.AcceptControl()
	must(t, err)
	h, err := o.HandOver(c, hello)
	must(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

// grant has a present successor, that has taken "app" over, be ready and own it.
func grant(t testing.TB, h *v1.Handover, s *server) {
	t.Helper()
	ready := call(func() error { return s.g.Ready(context.WithoutCancel(t.Context())) })
	must(t, h.AwaitReady())
	must(t, h.Grant())
	ready.wait(t)
}

// probation is start and grant, with "app".
func probation(t testing.TB, o *v1.Owner, cfg handover.Config) (*v1.Handover, *server) {
	t.Helper()
	h, s := start(t, o, cfg)
	s.listen("app", "", "")
	grant(t, h, s)
	return h, s
}

// takeOver has a frozen successor receive everything.
func takeOver(t testing.TB, cfg v1.Config) *v1.Successor {
	t.Helper()
	s, err := v1.TakeOver(cfg)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// inProbation is takeOver and ready.
func inProbation(t testing.TB, cfg v1.Config) *v1.Successor {
	t.Helper()
	s := takeOver(t, cfg)
	settled, err := s.Ready()
	must(t, err)
	if settled {
		t.Fatal("settled, though probation was asked for")
	}
	return s
}

// dup duplicates a descriptor.
func dup(t testing.TB, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	return n
}

// lack skips a test that needs something this machine does not have; in CI
// that is a failure.
func lack(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func controlPath(t testing.TB) string { return filepath.Join(directory(t), "app.sock") }
