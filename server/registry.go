package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A phase is how far a registry has come on its one-way street.
type phase = int32

const (
	// serving may be followed by draining only.
	serving phase = iota
	// draining: listeners are closed, what is open is waited for. May be
	// followed by killing, or by stopped when everything has ended by itself.
	draining
	// killing: what is open has been told to close. May be followed by stopped.
	killing
	// stopped: no handler starts any more. Terminal.
	stopped
)

// A registry knows every listener, connection and handler of one server. It is
// the one place where a connection's life is recorded, whatever protocol runs
// on it. Its zero value is ready to use.
type registry struct {
	phase   atomic.Int32
	running running // handlers

	mu        sync.Mutex
	ready     bool // the fields below exist
	epoch     time.Time
	entries   map[*entry]struct{}
	foreign   sync.Map // net.Conn to *entry, of connections that cannot be wrapped
	listeners map[*listener]struct{}
	closing   int  // goroutines of ours in a Close
	hooks     int  // goroutines of ours in a user's hook
	poking    bool // pokeAll runs
	lnErr     error

	draining chan struct{} // closed when the drain begins
	changed  chan struct{} // something has come to its end; capacity 1
	killNow  chan struct{} // closed when nobody wants to wait any longer
	killOnce sync.Once
	closed   chan struct{} // closed when every Close has returned or was given up
	done     chan struct{} // closed when report is final

	turns     chan struct{}   // in a drain: one for each connection that is interrupted to be moved
	moving    context.Context // of moves; ends when what is left is killed
	stayMoves context.CancelFunc

	plan   plan
	began  time.Duration // since epoch
	tally  Report
	report Report
}

// An entry is one connection, from its Accept until nothing of it is left:
// its goroutine has ended or, once hijacked, it has been closed.
type entry struct {
	reg    *registry
	raw    net.Conn      // as the listener gave it
	state  atomic.Uint64 // packed by pack
	got    atomic.Bool   // while new or idle: something of a request has been read
	waits  atomic.Int32  // while idle: read deadlines that net/http has set
	muxed  atomic.Bool   // HTTP/2: says goodbye by itself
	opaque bool          // TLS: bytes read may be a handshake instead of a request
	cancel func()        // ends its handler's context; may be nil
	pass   passport

	// Guarded by reg.mu.
	outer   net.Conn      // as its handler sees it: raw, wrapped, and perhaps in TLS
	since   time.Duration // of the last bytes of a TLS handshake that were noticed
	spoke   bool          // since is set
	outcome outcome
	closed  bool // our Close of it has returned
}

// An outcome is how a connection came to its end during a drain.
type outcome uint8

const (
	finished outcome = iota // by itself
	closed                  // by us, nothing was lost
	killed                  // by us, something was going on
	moved                   // to the successor
)

// pack and unpack keep a state and the time at which it began in one word, so
// that neither costs a request a lock.
func pack(st http.ConnState, at time.Duration) uint64 { return uint64(at)<<3 | uint64(st) }

func unpack(v uint64) (http.ConnState, time.Duration) {
	return http.ConnState(v & 7), time.Duration(v >> 3)
}

func (e *entry) load() (http.ConnState, time.Duration) { return unpack(e.state.Load()) }

func (r *registry) initLocked() {
	if r.ready {
		return
	}
	r.ready = true
	r.epoch = time.Now()
	r.entries = make(map[*entry]struct{})
	r.listeners = make(map[*listener]struct{})
	r.draining = make(chan struct{})
	r.changed = make(chan struct{}, 1)
	r.killNow = make(chan struct{})
	r.closed = make(chan struct{})
	r.done = make(chan struct{})
	r.moving, r.stayMoves = context.WithCancel(context.Background())
}

func (r *registry) now() time.Duration { return time.Since(r.epoch) }

// drainBegan returns the channel that is closed when the drain begins.
func (r *registry) drainBegan() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.initLocked()
	return r.draining
}

// addListener registers an accept loop, unless the server has been stopped.
func (r *registry) addListener(l *listener) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.initLocked()
	if r.phase.Load() != serving {
		return false
	}
	r.listeners[l] = struct{}{}
	return true
}

// removeListener is told when an accept loop has ended.
func (r *registry) removeListener(l *listener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.listeners, l)
	r.changedLocked()
}

// add registers a connection, unless it is too late even for the drain: one
// that was accepted as the drain began is served like any other.
func (r *registry) add(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.initLocked()
	if r.phase.Load() >= killing {
		return false
	}
	e.reg = r
	if e.outer == nil {
		e.outer = e.raw
	}
	st, _ := e.load()
	e.state.Store(pack(st, r.now()))
	r.entries[e] = struct{}{}
	if r.phase.Load() == draining {
		r.tellLocked(e)
	}
	return true
}

// remove is told that nothing of a connection is left. Only the first call
// counts.
func (r *registry) remove(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(e)
}

func (r *registry) removeLocked(e *entry) {
	if _, ok := r.entries[e]; !ok {
		return
	}
	delete(r.entries, e)
	r.forgetForeign(e)
	if r.phase.Load() >= draining {
		r.tally.count(e.outcome)
	}
	if len(r.entries) == 0 {
		r.changedLocked()
	}
}

// left is told that a connection is the successor's.
func (r *registry) left(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.outcome = moved
}

// lookup finds the entry of a connection as net/http shows it to its hooks.
func (r *registry) lookup(nc net.Conn) *entry {
	if t, ok := nc.(tracked); ok {
		return t.tracked()
	}
	if tc, ok := nc.(*tls.Conn); ok {
		if t, ok := tc.NetConn().(tracked); ok {
			return t.tracked()
		}
	}
	if v, ok := r.foreign.Load(nc); ok {
		return v.(*entry)
	}
	return nil
}

// forgetForeign looks at the type first, for a user's own may be one that
// cannot be a key.
func (r *registry) forgetForeign(e *entry) {
	if _, ok := e.raw.(*tls.Conn); ok {
		r.foreign.Delete(e.raw)
	}
}

// setState follows net/http's states. It is on the path of every request.
func (r *registry) setState(e *entry, nc net.Conn, st http.ConnState) {
	switch st {
	case http.StateActive:
		if !e.muxed.Load() {
			e.pass.forget()
		}
		e.state.Store(pack(st, r.now()))
	case http.StateIdle:
		e.waits.Store(0)
		if e.opaque {
			// A guess, since bytes of the next request may have come with
			// the last one. setsDeadline corrects it.
			e.got.Store(false)
		}
		var at time.Duration // only a drain asks since when it is idle
		if r.phase.Load() != serving {
			at = r.now()
		}
		e.state.Store(pack(st, at))
	case http.StateNew:
		if _, known := nc.(tracked); !known {
			r.mu.Lock()
			e.outer = nc
			r.mu.Unlock()
		}
	case http.StateHijacked:
		r.mu.Lock()
		e.outer = nc
		e.state.Store(pack(st, r.now()))
		if r.phase.Load() >= draining {
			r.tally.Hijacked++
		}
		if e.closed { // we were faster than the hijacker
			r.removeLocked(e)
		}
		r.mu.Unlock()
	case http.StateClosed:
		r.remove(e)
	}
}

// enter and leave bracket every handler, with the same counter of running. enter
// reports the phase in which the handler starts; in stopped it must not start.
func (r *registry) enter(n *atomic.Int64) phase {
	n.Add(1)
	return r.phase.Load()
}

func (r *registry) leave(n *atomic.Int64) {
	if n.Add(-1) == 0 && r.phase.Load() != serving {
		r.mu.Lock()
		r.changedLocked()
		r.mu.Unlock()
	}
}

// changedLocked wakes the drain, which looks for itself at what has changed.
func (r *registry) changedLocked() {
	if r.phase.Load() == serving {
		return
	}
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// quietLocked reports whether nothing is left that a stop must wait for.
func (r *registry) quietLocked() bool {
	return len(r.entries) == 0 && len(r.listeners) == 0 && r.closing == 0 && r.hooks == 0 && !r.poking && r.running.total() == 0
}

// goneLocked forgets a hijacked connection that was closed where that could not
// be seen: one from a user's own TLS listener, or the connection inside the one
// that Hijack returned.
func (r *registry) goneLocked(e *entry) bool {
	if !isClosed(e.raw) {
		return false
	}
	r.removeLocked(e)
	r.changedLocked()
	return true
}

// isClosed reports whether the socket under c is known to be closed.
func isClosed(c net.Conn) bool {
	if tc, ok := c.(*tls.Conn); ok {
		c = tc.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	return rc.Control(func(uintptr) {}) != nil
}

func (r *registry) counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.initLocked()
	var c Counts
	now := r.now()
	for e := range r.entries {
		st, at := e.load()
		switch st {
		case http.StateNew:
			c.New++
		case http.StateActive:
			c.Active++
			c.Oldest = max(c.Oldest, now-at)
		case http.StateIdle:
			c.Idle++
		case http.StateHijacked:
			if !r.goneLocked(e) {
				c.Hijacked++
			}
		}
	}
	if c.Draining = r.phase.Load() != serving; c.Draining {
		c.Lingering = c.New + c.Idle
		c.Moved, c.Finished, c.Closed, c.Killed = r.tally.Moved, r.tally.Finished, r.tally.Closed, r.tally.Killed
	}
	return c
}
