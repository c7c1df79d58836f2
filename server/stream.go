package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"time"
)

// A StreamServer serves a protocol that is not HTTP, with the same drain: it
// knows of a connection only that its handler runs.
type StreamServer struct {
	// Handler serves one connection. It may close it, and it is closed when
	// Handler returns. As in net/http, a panic ends that connection alone
	// and is logged, if it is not http.ErrAbortHandler. Neither the connection nor ctx is touched when the
	// drain begins: what is going on may go on. A handler learns of the
	// drain from Draining, or OnDrain interrupts it. ctx ends when the
	// connection is killed.
	Handler func(ctx context.Context, c net.Conn)

	// StopTimeout is how long Stop waits for handlers to return. Zero means
	// one minute, less than zero that it does not wait.
	StopTimeout time.Duration

	// KillTimeout is how long Stop waits, once it has closed all that is
	// left, for that to happen. Zero means one minute, less than zero that
	// it does not wait.
	KillTimeout time.Duration

	// OnDrain is called, if it is not nil, for each open connection when the
	// drain begins, each time in a goroutine of its own. A handler that
	// waits in a Read for the next command is woken by a deadline:
	//
	//	OnDrain: func(c net.Conn) { c.SetReadDeadline(time.Now()) }
	OnDrain func(c net.Conn)

	// Logger is told of panics in Handler and of failures to accept. Nil is
	// silent.
	Logger *slog.Logger

	reg registry
}

var errNoHandler = errors.New("server: StreamServer without a Handler")

// Serve accepts connections on ln and serves each in a goroutine, until Stop or
// Close is called. It returns what Server.Serve returns, and closes ln when it
// does.
func (s *StreamServer) Serve(ln net.Listener) error {
	l := &listener{Listener: ln, reg: &s.reg}
	defer ln.Close()
	if s.Handler == nil {
		return errNoHandler
	}
	if !s.reg.addListener(l) {
		return ErrServerClosed
	}
	defer s.reg.removeListener(l)
	for delay := time.Duration(0); ; {
		c, err := ln.Accept()
		if isTemporary(err) {
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.log("accept failed, trying again", "error", err, "delay", delay)
			s.pause(delay)
			continue
		}
		if err != nil {
			return l.acceptError(err)
		}
		delay = 0
		ctx, cancel := context.WithCancel(context.Background())
		e := &entry{raw: c, cancel: cancel}
		e.pass.mover, _ = ln.(Mover)
		ctx = context.WithValue(ctx, entryKey{}, e)
		e.state.Store(pack(http.StateActive, 0))
		if !s.reg.add(e) {
			cancel()
			c.Close()
			continue
		}
		go s.handle(ctx, e)
	}
}

// isTemporary reports whether Accept may work again after a while, for instance
// when descriptors have run out.
func isTemporary(err error) bool {
	var ne interface{ Temporary() bool }
	return err != nil && errors.As(err, &ne) && ne.Temporary()
}

func (s *StreamServer) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.reg.drainBegan():
	}
}

func (s *StreamServer) handle(ctx context.Context, e *entry) {
	defer s.reg.remove(e)
	defer e.cancel()
	defer e.raw.Close()
	n := s.reg.running.of(nil) // a connection is counted once, which costs nothing
	s.reg.enter(n)
	defer s.reg.leave(n)
	defer s.recovered(e)
	s.Handler(ctx, e.raw)
}

// recovered is deferred: it ends the panic of a handler.
func (s *StreamServer) recovered(e *entry) {
	v := recover()
	if v == nil || v == http.ErrAbortHandler {
		return
	}
	stack := make([]byte, 64<<10)
	stack = stack[:runtime.Stack(stack, false)]
	s.log("panic in handler", "remote", e.raw.RemoteAddr(), "panic", v, "stack", string(stack))
}

func (s *StreamServer) log(msg string, args ...any) {
	if s.Logger != nil {
		s.Logger.Error(msg, args...)
	}
}

// ErrNotMovable is returned by Move if there is nobody who could take the
// connection: the server does not drain, or has no successor. Also the second Move
// of a connection gets it.
var ErrNotMovable = errors.New("server: connection cannot be moved")

// Move gives the connection of a handler to the successor, in whose listener it
// comes out of Accept, and from there to its Handler. ctx is the one that the
// handler was called with, or one derived from it. unread is what the handler
// has read and not dealt with: it is the first that the next one reads. state
// is what that one needs in order to go on where this one stops; see MovedState.
//
// It can be called during a drain, by a handler that nothing else is reading or
// writing for. After nil the handler must return, and not touch the connection.
// After an error nothing has changed. The limits on unread and state are the
// listener's.
func (s *StreamServer) Move(ctx context.Context, unread, state []byte) error {
	e := s.reg.entryOf(ctx)
	if e == nil {
		return errors.New("server: Move with a context that does not come from this server")
	}
	if s.reg.phase.Load() != draining || !e.movable() {
		return ErrNotMovable
	}
	return e.move(unread, state)
}

// MovedState returns what Move was given as state, if the connection of the
// handler that was called with ctx was moved here.
func MovedState(ctx context.Context) (state []byte, ok bool) {
	e, _ := ctx.Value(entryKey{}).(*entry)
	if e == nil {
		return nil, false
	}
	m, ok := e.raw.(Moved)
	if ok {
		_, _, state = m.Moved()
	}
	return state, ok
}

// Stop drains the server: it closes the listeners, waits at most StopTimeout
// for handlers to return, then closes what is left and waits at most
// KillTimeout. When ctx ends it closes at once. A second call joins the first.
func (s *StreamServer) Stop(ctx context.Context) Report { return s.reg.stop(ctx, s.plan) }

// Close closes the listeners and all connections at once. It does not wait for
// handlers, but a later Stop does.
func (s *StreamServer) Close() error { return s.reg.close(s.plan) }

// Counts says how many connections are open now, also during a drain. All are
// active.
func (s *StreamServer) Counts() Counts { return s.reg.counts() }

// Draining returns a channel that is closed when the drain begins.
func (s *StreamServer) Draining() <-chan struct{} { return s.reg.drainBegan() }

func (s *StreamServer) plan() plan {
	p := makePlan(s.StopTimeout, s.KillTimeout, 0)
	p.onDrain, p.state = s.OnDrain, http.StateActive
	return p
}
