package server

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The GOAWAY of net/http names the last stream that it will answer, and drops
// what the client has opened while the frame was on its way. So it must be the
// second: the first says only that a second will come, and takes all streams
// until then (RFC 9113, section 6.8). net/http cannot send that one. It is put
// between two of its frames, on the way from it to the connection, together
// with a PING: when the client has answered that, it has read the GOAWAY.

const (
	// farewellTimeout is for how long the answer to a PING is waited for, but
	// not longer than half of the stop timeout. A client that takes longer may
	// have a stream refused, and on a busy machine two seconds are not much.
	farewellTimeout = 10 * time.Second

	// farewellSettle is what a client is given besides, since a stream that
	// it was about to open may reach the wire after the answer to the PING.
	farewellSettle = 100 * time.Millisecond

	// closeGrace is how long net/http leaves a connection open after its
	// GOAWAY and the last stream.
	closeGrace = time.Second

	// prefaceTimeout is net/http's own.
	prefaceTimeout = 10 * time.Second

	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// Under these names net/http keeps the functions that serve HTTP/2: on a
// *tls.Conn, and on any net.Conn.
const (
	protoTLS         = "h2"
	protoUnencrypted = "unencrypted_http2"
)

var farewellPing = [8]byte{'g', 'o', 'i', 'n', 'g', ' ', 'a', 'w'}

// farewell is GOAWAY with the highest stream id and no error, then PING.
var farewell = append([]byte{
	0, 0, 8, frameGoAway, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0,
	0, 0, 8, framePing, 0, 0, 0, 0, 0}, farewellPing[:]...)

// An h2Conn is a connection as net/http's HTTP/2 sees it, decrypted if need be.
type h2Conn struct {
	net.Conn
	entry *entry // may be nil

	in    frameScanner // Read has only one caller
	heard bool         // acked is closed
	acked chan struct{}
	ended chan struct{} // closed when it is no longer served

	due  atomic.Bool // the farewell is still to be written, or the rest of it
	mu   sync.Mutex  // held for a whole Write
	out  frameScanner
	rest []byte // of a farewell that is under way
}

// An h2TLSConn lets HTTP/2 know that its connection is encrypted.
type h2TLSConn struct {
	*h2Conn
	connectionStater
}

func (c *h2Conn) tracked() *entry { return c.entry }

// unframed is the connection as net/http's HTTP/1 knows it.
func (c *h2Conn) unframed() net.Conn { return c.Conn }

func (c *h2Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for rest := b[:n]; len(rest) > 0; {
		rest = rest[c.in.next(rest):]
		if !c.heard && c.in.isAck(farewellPing) {
			c.heard = true
			close(c.acked)
		}
	}
	return n, err
}

func (c *h2Conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	n, err := c.writeLocked(b)
	c.mu.Unlock()
	if c.due.Load() { // it has become due meanwhile
		c.tryFarewell()
	}
	return n, err
}

func (c *h2Conn) writeLocked(b []byte) (int, error) {
	n := 0
	for c.due.Load() && n < len(b) {
		if err := c.farewellLocked(); err != nil {
			return n, err
		}
		ahead := c.out
		k, err := c.forwardLocked(b[n : n+ahead.next(b[n:])])
		if n += k; err != nil {
			return n, err
		}
	}
	if n > 0 && n == len(b) {
		return n, nil
	}
	k, err := c.forwardLocked(b[n:])
	return n + k, err
}

func (c *h2Conn) forwardLocked(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.out.pass(b[:n])
	return n, err
}

// farewellLocked writes the farewell, if this is a place for it.
func (c *h2Conn) farewellLocked() error {
	if c.rest == nil {
		if !c.out.between() {
			return nil
		}
		c.rest = farewell
	}
	n, err := c.Conn.Write(c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.due.Store(false)
	}
	return err
}

// tryFarewell writes the farewell. If somebody is writing, or is in the middle
// of a frame, then it is Write that does so afterwards.
func (c *h2Conn) tryFarewell() {
	if !c.mu.TryLock() {
		return
	}
	defer c.mu.Unlock()
	if c.due.Load() {
		c.farewellLocked() // an error is net/http's to find
	}
}

// serveHTTP2 has net/http serve a connection through an h2Conn. The function
// that takes any net.Conn expects the preface to have been read.
func (f *front) serveHTTP2(hs *http.Server, nc net.Conn, h http.Handler) {
	c := &h2Conn{
		Conn:  nc,
		entry: f.server.reg.lookup(nc),
		acked: make(chan struct{}),
		ended: make(chan struct{}),
	}
	seen := net.Conn(c)
	if tc, ok := nc.(*tls.Conn); ok {
		if err := readPreface(tc); err != nil {
			if hs.ErrorLog != nil {
				hs.ErrorLog.Printf("http2: client %v: %v", tc.RemoteAddr(), err)
			}
			return
		}
		seen = h2TLSConn{c, tc}
	}
	f.join(c)
	defer f.part(c)
	f.framed(hs, tls.Client(unencryptedConn{inner: seen}, nil), h)
}

func readPreface(c net.Conn) error {
	c.SetReadDeadline(time.Now().Add(prefaceTimeout))
	var b [len(preface)]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("read preface: %w", err)
	}
	if !bytes.Equal(b[:], []byte(preface)) {
		return fmt.Errorf("not an HTTP/2 preface: %q", b)
	}
	return c.SetReadDeadline(time.Time{})
}

// An unencryptedConn is how net/http hands over any net.Conn where only a
// *tls.Conn fits.
type unencryptedConn struct {
	net.Conn // nil
	inner    net.Conn
}

func (c unencryptedConn) UnencryptedNetConn() net.Conn { return c.inner }

// join adds a connection to those that will be said farewell to. If that time
// has come, it is done as soon as net/http has written its first frame.
func (f *front) join(c *h2Conn) {
	f.mu.Lock()
	f.conns[c] = struct{}{}
	late := f.leaving
	if late {
		f.farewells++
		c.due.Store(true)
	}
	f.mu.Unlock()
	if late {
		f.server.reg.goHook(func() { f.sayFarewell(c) })
	}
}

func (f *front) part(c *h2Conn) {
	close(c.ended)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// goAway makes all HTTP/2 connections leave, those included that join later.
func (f *front) goAway() {
	f.mu.Lock()
	f.leaving = true
	f.farewells++
	for c := range f.conns {
		f.farewells++
		c.due.Store(true)
		f.server.reg.goHook(c.tryFarewell) // it may block
		f.server.reg.goHook(func() { f.sayFarewell(c) })
	}
	f.mu.Unlock()
	f.farewellSaid()
}

// sayFarewell waits until the client knows.
func (f *front) sayFarewell(c *h2Conn) {
	defer f.farewellSaid()
	timer := time.NewTimer(min(farewellTimeout, f.server.reg.plan.stop/2))
	defer timer.Stop()
	select {
	case <-c.acked:
		timer.Reset(farewellSettle)
		select {
		case <-timer.C:
		case <-c.ended:
		}
	case <-timer.C:
	case <-c.ended:
	}
}

// farewellSaid has net/http send the second GOAWAY when every client knows, for
// it can only be sent to all of them. It gets to each once.
func (f *front) farewellSaid() {
	f.mu.Lock()
	f.farewells--
	last := f.farewells == 0
	f.mu.Unlock()
	if last {
		f.shutdownHTTP2()
	}
}
