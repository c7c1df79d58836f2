package server

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// A tracked connection knows its entry in the registry.
type tracked interface{ tracked() *entry }

// The wrappers see every Read that brings bytes, and the Close that a hijacker
// makes. Everything else is the wrapped connection's own, its fast paths
// included: *net.TCPConn and *net.UnixConn are embedded as what they are.
type (
	tcpConn struct {
		*net.TCPConn
		entry *entry
	}
	unixConn struct {
		*net.UnixConn
		entry *entry
	}
	// otherConn is a user's own connection. The types that embed it add
	// what net/http, or a handler, would find on the bare one.
	otherConn struct {
		net.Conn
		entry *entry
	}
	halfConn struct {
		*otherConn
		closeWriter
	}
	stateConn struct {
		*otherConn
		connectionStater
	}
	halfStateConn struct {
		*otherConn
		closeWriter
		connectionStater
	}
	closeWriter      interface{ CloseWrite() error }
	connectionStater interface{ ConnectionState() tls.ConnectionState }
)

var (
	_ io.ReaderFrom = (*tcpConn)(nil)
	_ io.WriterTo   = (*tcpConn)(nil)
	_ closeWriter   = (*tcpConn)(nil)
	_ closeWriter   = (*unixConn)(nil)
	_ io.ReaderFrom = (*otherConn)(nil)
)

// wrap registers raw and returns it as net/http is to see it, or false if the
// server has been stopped.
//
// A *tls.Conn, from a user's own TLS listener, stays as it is, since net/http
// looks for exactly that type. It is told apart by its identity; that it was
// closed after a hijack is found out by looking at its socket.
func (l *listener) wrap(raw net.Conn) (net.Conn, bool) {
	reg := l.reg
	var unread []byte
	m, moved := raw.(Moved)
	if moved {
		raw, unread, _ = m.Moved()
		if l.opaque { // it speaks no TLS, and would be told so instead of answered
			return nil, false
		}
	}
	e := &entry{raw: raw, opaque: l.opaque}
	e.pass.frugal = l.frugal && isPlain(raw)
	if mover, ok := l.Listener.(Mover); ok && !l.opaque && isPlain(raw) {
		e.pass.mover, e.pass.known = mover, true
	}
	if moved {
		e.pass.times = l.times
		e.arrive(unread)
	}
	var c net.Conn
	switch rc := raw.(type) {
	case *net.TCPConn:
		c = &tcpConn{rc, e}
	case *net.UnixConn:
		c = &unixConn{rc, e}
	case *tls.Conn:
		c, e.opaque = rc, true
		reg.foreign.Store(raw, e)
	default:
		c = wrapOther(rc, e)
	}
	e.outer = c
	if !reg.add(e) {
		reg.forgetForeign(e)
		return nil, false
	}
	return c, true
}

// isPlain tells a bare connection from one that has a state of its own.
func isPlain(c net.Conn) bool {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

func wrapOther(raw net.Conn, e *entry) net.Conn {
	c := &otherConn{raw, e}
	cw, half := raw.(closeWriter)
	cs, state := raw.(connectionStater)
	switch {
	case half && state:
		return halfStateConn{c, cw, cs}
	case half:
		return halfConn{c, cw}
	case state:
		return stateConn{c, cs}
	}
	return c
}

func (c *tcpConn) tracked() *entry   { return c.entry }
func (c *unixConn) tracked() *entry  { return c.entry }
func (c *otherConn) tracked() *entry { return c.entry }

func (c *tcpConn) Read(b []byte) (int, error)   { return c.entry.read(c.TCPConn, b) }
func (c *unixConn) Read(b []byte) (int, error)  { return c.entry.read(c.UnixConn, b) }
func (c *otherConn) Read(b []byte) (int, error) { return c.entry.read(c.Conn, b) }

// WriteTo is the bare connection's, after what that one does not know of.
func (c *tcpConn) WriteTo(w io.Writer) (int64, error) {
	n, err := c.entry.writeUnread(w)
	if err != nil {
		return n, err
	}
	k, err := c.TCPConn.WriteTo(w)
	return n + k, err
}

func (c *tcpConn) SetReadDeadline(t time.Time) error {
	return c.entry.setReadDeadline(c.TCPConn, t)
}

func (c *unixConn) SetReadDeadline(t time.Time) error {
	return c.entry.setReadDeadline(c.UnixConn, t)
}

func (c *otherConn) SetReadDeadline(t time.Time) error {
	return c.entry.setReadDeadline(c.Conn, t)
}

// SetDeadline is what a hijacker may call.
func (c *tcpConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *unixConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// ReadFrom uses the connection's own, if it has one.
func (c *otherConn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(c.Conn, r)
}

func (c *tcpConn) Close() error {
	defer c.entry.closedByOwner()
	return c.TCPConn.Close()
}

func (c *unixConn) Close() error {
	defer c.entry.closedByOwner()
	return c.UnixConn.Close()
}

func (c *otherConn) Close() error {
	defer c.entry.closedByOwner()
	return c.Conn.Close()
}

// NetConn returns the connection that the listener gave.
func (c *tcpConn) NetConn() net.Conn   { return c.TCPConn }
func (c *unixConn) NetConn() net.Conn  { return c.UnixConn }
func (c *otherConn) NetConn() net.Conn { return c.Conn }

// fullRead is the size of the buffer through which net/http reads HTTP/1.
const fullRead = 4096

// reading notes what of the next request has come, if a Read of n bytes proves
// that; see passport. Should another Go have another size or order, idle
// connections all look busy, and stay open until the stop timeout. In TLS it
// proves nothing.
func (e *entry) reading(n int) {
	buffered := fullRead - n
	if buffered < 0 || buffered > maxPeek || e.opaque || e.waits.Load() != 1 || e.muxed.Load() {
		return
	}
	if st, _ := e.load(); st != http.StateIdle {
		return
	}
	if buffered == 0 {
		e.got.Store(false)
	}
	e.pass.learn(buffered)
}

// setsDeadline counts the deadlines that net/http sets while a connection is
// idle: one before it waits for the first four bytes of the next request, and
// another one when they are there. If it is TLS that hides its bytes, that is
// how their coming is noticed.
func (e *entry) setsDeadline(st http.ConnState) {
	if st != http.StateIdle || e.waits.Load() > 1 {
		return
	}
	if e.waits.Add(1) > 1 && e.opaque {
		e.got.Store(true)
	}
}

// closedByOwner ends the entry of a hijacked connection. All others end when
// net/http says that their goroutine does.
func (e *entry) closedByOwner() {
	if st, _ := e.load(); st == http.StateHijacked {
		e.reg.remove(e)
	}
}
