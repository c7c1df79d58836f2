package server

import (
	"crypto/tls"
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
func wrap(reg *registry, raw net.Conn, opaque bool) (net.Conn, bool) {
	e := &entry{raw: raw, opaque: opaque}
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

func (c *tcpConn) Read(b []byte) (int, error) {
	c.entry.reading(len(b))
	n, err := c.TCPConn.Read(b)
	c.entry.read(n)
	return n, err
}

func (c *unixConn) Read(b []byte) (int, error) {
	c.entry.reading(len(b))
	n, err := c.UnixConn.Read(b)
	c.entry.read(n)
	return n, err
}

func (c *otherConn) Read(b []byte) (int, error) {
	c.entry.reading(len(b))
	n, err := c.Conn.Read(b)
	c.entry.read(n)
	return n, err
}

func (c *tcpConn) SetReadDeadline(t time.Time) error {
	c.entry.setsDeadline()
	return c.TCPConn.SetReadDeadline(t)
}

func (c *unixConn) SetReadDeadline(t time.Time) error {
	c.entry.setsDeadline()
	return c.UnixConn.SetReadDeadline(t)
}

func (c *otherConn) SetReadDeadline(t time.Time) error {
	c.entry.setsDeadline()
	return c.Conn.SetReadDeadline(t)
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

// fullRead is the size of the buffer through which net/http reads HTTP/1. A Read
// of that size on an idle connection says that it waits for the next request
// and has nothing of it yet; what was pipelined makes the Read smaller. Should
// another Go have another size, idle connections all look busy, and stay open
// until the stop timeout.
const fullRead = 4096

// reading notes that nothing of the next request has come, if a Read of n bytes
// proves that. In TLS it proves nothing.
func (e *entry) reading(n int) {
	if n != fullRead || e.opaque {
		return
	}
	if st, _ := e.load(); st == http.StateIdle {
		e.got.Store(false)
	}
}

// read notes that bytes have come.
func (e *entry) read(n int) {
	if n > 0 && !e.got.Load() {
		e.got.Store(true)
	}
}

// setsDeadline notes that the next request has begun, if it is TLS that hides
// its bytes: net/http sets one deadline before it waits for the first four of
// them, and another one when they are there.
func (e *entry) setsDeadline() {
	if !e.opaque || e.got.Load() {
		return
	}
	if st, _ := e.load(); st == http.StateIdle && e.waits.Add(1) > 1 {
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
