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
