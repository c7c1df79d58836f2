package scm

import (
	"context"
	"net"
	"sync"
	"time"
)

// past is a deadline that interrupts at once.
var past = time.Unix(1, 0)

// A gate lets one call at a time into one direction of a Conn, and interrupts
// that call when its context ends.
//
// The rule that keeps contexts apart: a deadline is set only by the watch that
// is active, under mu, and leave clears both under the same mu. So the watch
// of an earlier call that fires late finds itself inactive and does nothing,
// and no call ever starts with a deadline that another one left behind.
type gate struct {
	turn     chan struct{}         // holds a token while a call is inside
	deadline func(time.Time) error // SetReadDeadline or SetWriteDeadline

	mu      sync.Mutex
	active  *watch // of the call that is inside; nil if its context cannot end
	cached  *watch // the last registration, reused by a call with the same context
	expired bool   // the deadline is in the past
	closed  bool
}

// A watch is one registration with one context.
type watch struct {
	gate *gate
	done <-chan struct{} // identifies the context; comparing contexts may panic
	stop func() bool
}

func (g *gate) init(deadline func(time.Time) error) {
	g.turn = make(chan struct{}, 1)
	g.deadline = deadline
}

// enter waits for the gate. If it returns nil, leave must follow.
func (g *gate) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case g.turn <- struct{}{}:
	default:
		// Close needs no case here: it interrupts the call that is inside.
		select {
		case g.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := g.arm(ctx); err != nil {
		<-g.turn
		return err
	}
	return nil
}

func (g *gate) arm(ctx context.Context) error {
	done := ctx.Done()

	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	if done == nil {
		return nil
	}
	if g.cached == nil || g.cached.done != done {
		g.release()
		w := &watch{gate: g, done: done}
		w.stop = context.AfterFunc(ctx, w.fire)
		g.cached = w
	}
	// Either the context has ended by now, or fire is still to come, waits for
	// mu, and will find the watch active.
	if err := ctx.Err(); err != nil {
		g.release()
		return err
	}
	g.active = g.cached
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	g.active = nil
	if g.expired {
		g.expired = false
		g.deadline(time.Time{}) // fails only when closed, and then nothing follows
	}
	g.mu.Unlock()
	<-g.turn
}

// fire runs in a goroutine of package context when the context has ended.
func (w *watch) fire() {
	g := w.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cached == w {
		g.cached = nil
	}
	if g.active == w {
		g.expired = true
		g.deadline(past)
	}
}

// close makes every later enter fail and lets the context go. The call that is
// inside is interrupted by closing the connection.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.release()
}

// release drops the cached registration. Its watch may be about to fire; it is
// no longer active then, or the Conn is closed. The caller holds mu.
func (g *gate) release() {
	if g.cached != nil {
		g.cached.stop()
		g.cached = nil
	}
}
