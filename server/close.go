package server

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
)

// closeLocked closes a connection from a goroutine of its own: a Close that
// blocks, of TLS or of a user's own connection, must not hold up the others.
// A connection that is killed does not say goodbye in TLS.
func (r *registry) closeLocked(e *entry, how outcome) {
	if e.outcome == finished {
		e.outcome = how
	}
	c := e.outer
	if r.phase.Load() == killing {
		c = e.raw
		if tc, ok := c.(*tls.Conn); ok {
			c = tc.NetConn()
		}
	}
	r.closing++
	go r.closeConn(e, c)
}

func (r *registry) closeConn(e *entry, c net.Conn) {
	if r.phase.Load() == draining && e.awake() && r.spare(e) {
		return
	}
	if e.cancel != nil {
		e.cancel()
	}
	c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	e.closed = true
	r.closing--
	r.changedLocked()
	if st, _ := e.load(); st == http.StateHijacked {
		r.removeLocked(e)
	}
}

// awake reports whether a request has come, to a connection that was idle or
// silent when it was looked at last. When many connections are closed at the
// same time, or the machine is busy, that may be a while ago.
func (e *entry) awake() bool {
	switch st, _ := e.load(); st {
	case http.StateNew, http.StateIdle:
		return !e.muxed.Load() && e.got.Load() || hasUnread(e.raw)
	}
	return true
}

// spare calls off the close of a connection that has woken up, if the drain has
// not come so far that everything is closed.
func (r *registry) spare(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase.Load() != draining {
		return false
	}
	if e.outcome != moved {
		e.outcome = finished
	}
	r.closing--
	r.changedLocked()
	return true
}

func (r *registry) closeListener(l *listener) {
	err := l.Listener.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && !errors.Is(err, net.ErrClosed) && r.lnErr == nil {
		r.lnErr = err
	}
	r.closing--
	r.changedLocked()
}

// goHook runs f in a goroutine that a stop waits for.
func (r *registry) goHook(f func()) {
	r.mu.Lock()
	r.hooks++
	r.mu.Unlock()
	go r.runHook(f)
}

func (r *registry) runHook(f func()) {
	defer r.hookDone()
	f()
}

func (r *registry) runConnHook(f func(net.Conn), c net.Conn) {
	defer r.hookDone()
	f(c)
}

func (r *registry) hookDone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hooks--
	r.changedLocked()
}
