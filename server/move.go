package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Mover is a listener that can give a connection that it has accepted to the
// process that owns the listener now. Package handover's listeners are Movers.
type Mover interface {
	// Movable reports whether MoveConn has a chance now. It must not block.
	Movable() bool

	// MoveConn gives c away, together with bytes that were read from it and
	// not dealt with, and with state for whoever serves it next. After nil
	// c must only be closed; after an error it is served on. ctx bounds the
	// time until c is on its way.
	MoveConn(ctx context.Context, c net.Conn, unread, state []byte) error
}

// A Moved is a connection that was moved here, as a Mover's Accept returns it.
type Moved interface {
	net.Conn

	// Moved returns what the connection consists of: the bare one, bytes that
	// come before what is read from that, and state.
	Moved() (bare net.Conn, unread, state []byte)
}

// errMoved is what net/http reads from a connection that has been moved. A
// *net.OpError of a read is what it takes quietly also in the middle of a
// request's head; the connection is closed by then.
var errMoved error = &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection moved")}

// maxHead is how much of an incomplete request head moves with a connection.
const maxHead = 4 << 10

var headEnd = []byte("\r\n\r\n")

// A passport is what it takes to move a connection between two requests.
//
// Between two requests net/http does, in this order: report StateIdle, set a
// read deadline, peek at the next four bytes through its buffer of 4,096, set
// another read deadline, read the request's head, and report StateActive. (A
// test guards that order.) If the peek makes a read of the full size, the buffer
// is empty and nothing of the next request has been read. If it makes one that is
// up to three bytes shorter, the buffer has these, and they were the last to come.
// From there on what is read is remembered, until the head is complete. A read at
// any other moment proves nothing: it may be in the middle of a pipelined request.
type passport struct {
	mover Mover // nil: stays here

	// Of the connection's goroutine.
	known bool          // head is all that has been read of the next request
	head  []byte        // an incomplete head
	last  [maxPeek]byte // that have been read

	// A connection that was moved here is new to net/http.
	fresh bool      // nothing has been read
	blank bool      // nothing but empty lines has come
	since time.Time // it is here
	whole time.Time // when its first request must be here, if there is a limit
	times timeouts

	unread []byte      // came with the connection and is read first; guarded by mu
	rest   atomic.Bool // there is some of it: after a hijack several may read

	stays   atomic.Bool // a move has failed
	leaving atomic.Bool // being moved, or moved

	turn     bool         // has been interrupted, and holds a turn
	waiting  atomic.Int32 // one of the three below
	mu       sync.Mutex   // held while the deadline is set, among others
	deadline time.Time    // net/http's, while new or idle
	frugal   bool         // nobody but this package sets the socket's read deadline
	undated  atomic.Bool  // it has none, nor wants net/http one; set only if frugal
}

const (
	notWaiting  = iota
	inRead      // which may be interrupted
	interrupted // the deadline is not net/http's
)

// timeouts are those that net/http has for connections of its own.
type timeouts struct{ idle, header, read time.Duration }

// maxPeek is how much net/http may have at most if the peek makes a read.
const maxPeek = 3

// forget notes that what has been read belongs to net/http. It writes only if it
// must: with full duplex net/http may be reading in the background by mistake,
// which it finds out, and panics, a moment later.
func (p *passport) forget() {
	if p.known {
		p.known, p.head = false, nil
	}
}

// learn notes that net/http has the last n bytes and nothing else.
func (p *passport) learn(n int) {
	if p.mover != nil && !p.known {
		p.known, p.head = true, bytes.Clone(p.last[maxPeek-n:])
	}
}

// keep remembers the last bytes.
func (p *passport) keep(b []byte) {
	b = b[max(0, len(b)-maxPeek):]
	copy(p.last[:], p.last[len(b):])
	copy(p.last[maxPeek-len(b):], b)
}

// skip takes empty lines out of the first bytes of a connection that was moved
// here. net/http does so after a POST, and does not know that there was one.
func (p *passport) skip(b []byte) int {
	rest := bytes.TrimLeft(b, "\r\n")
	p.blank = len(rest) == 0
	return copy(b, rest)
}

// note remembers bytes of a head.
func (p *passport) note(b []byte) {
	if !p.known {
		return
	}
	if len(p.head)+len(b) > maxHead {
		p.forget()
		return
	}
	if len(p.head) == 0 && (bytes.HasSuffix(b, headEnd) || bytes.Contains(b, headEnd)) { // nearly always
		p.forget()
		return
	}
	p.head = append(p.head, b...)
	if bytes.Contains(p.head[max(0, len(p.head)-len(b)-len(headEnd)+1):], headEnd) {
		p.forget()
	}
}

// read is the Read of a wrapped connection.
func (e *entry) read(c net.Conn, b []byte) (int, error) {
	for {
		n, err := e.readSome(c, b)
		if e.pass.blank && n > 0 {
			if n = e.pass.skip(b[:n]); n == 0 && err == nil {
				continue
			}
		}
		e.took(b[:n])
		return n, err
	}
}

func (e *entry) readSome(c net.Conn, b []byte) (int, error) {
	if e.pass.rest.Load() {
		if n := e.pass.takeUnread(b); n > 0 || len(b) == 0 {
			return n, nil
		}
	}
	e.reading(len(b))
	if !e.pass.known {
		return c.Read(b)
	}
	for {
		left := e.mayLeave() && e.leave(c)
		e.yield()
		if left {
			return 0, errMoved
		}
		n, err := c.Read(b)
		if e.endRead(c) && n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		e.yield()
		return n, err
	}
}

// takeUnread reads what came with the connection.
func (p *passport) takeUnread(b []byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := copy(b, p.unread)
	p.setUnread(p.unread[n:])
	return n
}

func (p *passport) setUnread(b []byte) {
	p.unread = b
	p.rest.Store(len(b) > 0)
}

// writeUnread writes what came with the connection and has not been read.
func (e *entry) writeUnread(w io.Writer) (int64, error) {
	p := &e.pass
	if !p.rest.Load() {
		return 0, nil
	}
	p.mu.Lock()
	b := p.unread
	p.setUnread(nil)
	p.mu.Unlock()
	n, err := w.Write(b) // without the lock: it may block
	if n < len(b) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.setUnread(slices.Concat(b[n:], p.unread))
	}
	return int64(n), err
}

// took notes that bytes have come.
func (e *entry) took(b []byte) {
	if len(b) == 0 {
		return
	}
	if !e.got.Load() {
		e.got.Store(true)
	}
	if e.pass.fresh {
		e.begins()
	}
	if e.pass.mover == nil {
		return
	}
	if st, _ := e.load(); st != http.StateHijacked { // several may read then
		e.pass.keep(b)
		e.pass.note(b)
	}
}

// mayLeave reports whether the connection is to be moved now. If not, a read
// begins that may be interrupted for that.
func (e *entry) mayLeave() bool {
	e.pass.waiting.Store(inRead)
	if e.reg.phase.Load() != draining || !e.movable() {
		return false
	}
	e.endRead(e.raw)
	return true
}

// endRead ends such a read, and reports whether it was interrupted.
func (e *entry) endRead(c net.Conn) bool {
	p := &e.pass
	if p.waiting.Swap(notWaiting) != interrupted {
		return false
	}
	p.turn = true
	p.mu.Lock()
	defer p.mu.Unlock()
	c.SetReadDeadline(p.deadline)
	return true
}

// moveAtOnce is how many of n connections are interrupted at a time, in order to
// be moved. If it were all, each would be away for as long as it takes to move
// all; if it were few of many, that would take long.
func moveAtOnce(n int) int { return min(max(n/100, 8), 250) }

// pokeAll interrupts connections that are to be moved, each in its turn.
func (r *registry) pokeAll(all []*entry) {
	defer r.poked()
	for _, e := range all {
		select {
		case r.turns <- struct{}{}:
			e.poke()
		case <-r.moving.Done():
			return
		}
	}
}

func (r *registry) poked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.poking = false
	r.changedLocked()
}

// poke interrupts the read of a connection that is to be moved. It takes over
// a turn, which ends when the connection has been moved, or cannot be.
func (e *entry) poke() {
	p := &e.pass
	if e.movable() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.waiting.CompareAndSwap(inRead, interrupted) {
			e.raw.SetReadDeadline(time.Unix(1, 0)) // until endRead: still undated, if it was
			return
		}
	}
	<-e.reg.turns
}

// yield ends the connection's turn, if it has one.
func (e *entry) yield() {
	if e.pass.turn {
		e.pass.turn = false
		<-e.reg.turns
	}
}

// movable reports whether a move may be tried.
func (e *entry) movable() bool {
	return e.pass.mover != nil && !e.muxed.Load() && !e.pass.stays.Load() && e.pass.mover.Movable()
}

// leave moves the connection. It is called by the goroutine that reads it.
func (e *entry) leave(c net.Conn) bool {
	p := &e.pass
	if err := e.move(p.head, nil); err != nil {
		p.stays.Store(true)
		return false
	}
	p.forget() // net/http may read once more
	c.Close()  // here only: no FIN, since the socket is open elsewhere
	return true
}

// move moves the connection, once.
func (e *entry) move(unread, state []byte) error {
	p := &e.pass
	if !p.leaving.CompareAndSwap(false, true) {
		return ErrNotMovable
	}
	if err := p.mover.MoveConn(e.reg.moving, e.raw, unread, state); err != nil {
		p.leaving.Store(false)
		return err
	}
	e.reg.left(e)
	return nil
}

// setReadDeadline is net/http's SetReadDeadline.
func (e *entry) setReadDeadline(c net.Conn, t time.Time) error {
	st, _ := e.load()
	p := &e.pass
	between := st == http.StateNew || st == http.StateIdle
	if between {
		e.setsDeadline(st)
	}
	if t.IsZero() && p.undated.Load() {
		return nil // net/http takes it away three times between two requests
	}
	moves := between && (p.mover != nil || !p.since.IsZero())
	if !moves && !p.frugal {
		return c.SetReadDeadline(t)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !moves {
		return p.setLocked(c, t)
	}
	if p.fresh {
		return nil
	}
	if st == http.StateNew && !t.IsZero() && t.Before(p.whole) {
		t = p.whole
	}
	p.deadline = t
	if p.waiting.Load() == interrupted {
		return nil
	}
	return p.setLocked(c, t)
}

// setLocked sets the deadline of the socket to what net/http wants.
func (p *passport) setLocked(c net.Conn, t time.Time) error {
	if p.frugal && p.undated.Load() {
		p.undated.Store(false) // before: who takes the deadline away must not miss it
	}
	err := c.SetReadDeadline(t)
	if p.frugal && err == nil && t.IsZero() {
		p.undated.Store(true)
	}
	return err
}

// arrive prepares a connection that was moved here. It is new to net/http, which
// gives it the time for a request's head from now on. But it is idle, and has
// the time for that, until its first bytes come; then all that net/http has
// reckoned from the beginning begins.
func (e *entry) arrive(unread []byte) {
	p := &e.pass
	p.setUnread(unread)
	p.fresh, p.blank, p.since = true, true, time.Now()
	if p.times.idle > 0 {
		p.deadline = p.since.Add(p.times.idle)
		p.setLocked(e.raw, p.deadline) // nobody else has it yet
	}
}

// begins is called when the first bytes have come.
func (e *entry) begins() {
	p := &e.pass
	now := time.Now()
	p.fresh = false
	if p.times.read > 0 {
		p.whole = now.Add(p.times.read)
	}
	var t time.Time
	if p.times.header > 0 {
		t = now.Add(p.times.header)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	p.setLocked(e.raw, t)
}

// entryOf finds the connection of a context. One that a user has derived from
// another server's is not of this one.
func (r *registry) entryOf(ctx context.Context) *entry {
	if e, _ := ctx.Value(entryKey{}).(*entry); e != nil && e.reg == r {
		return e
	}
	return nil
}

type entryKey struct{}
