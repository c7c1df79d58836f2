package load

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	initialWindow  = 1<<16 - 1 // of HTTP/2; this side does not change it
	maxWindow      = 1<<31 - 1
	maxStreamID    = 1<<31 - 1
	frameBytes     = 1 << 14 // the longest frame that every side takes
	tableBytes     = 1 << 12 // the header table of either side
	maxHeaderBytes = 1 << 14
	maxPending     = 1 << 18 // bytes that wait to be written, beyond which no body is sent
)

// h2conn is one connection. The mu of its client guards all but in.
type h2conn struct {
	client *h2client
	conn   net.Conn
	in     *http2.Framer // for read
	out    *http2.Framer // into pending
	hpack  *hpack.Encoder
	block  bytes.Buffer // what hpack has written
	cutter cutter       // for write
	rng    *rand.Rand   // for write

	pending []byte    // what waits to be written
	wake    sync.Cond // of write: there is something pending, or it is closed
	mute    bool      // writing has failed

	streams   map[uint32]*h2stream // opened and not over
	cancelled map[uint32]bool      // of those that are over: the server may not know yet
	nextID    uint32
	lastID    uint32 // that the server will answer
	onConn    int    // streams opened
	answered  bool   // at least one is

	window     int64  // bytes of bodies that may still be sent
	taken      uint32 // bytes of the server's window that are to be granted again
	initial    int64  // window of a new stream
	maxStreams int

	retired bool // takes no new streams
	closed  bool
}

// newH2Conn returns the connection with its first bytes pending.
func newH2Conn(cl *h2client, conn net.Conn, rng *rand.Rand) *h2conn {
	c := &h2conn{
		client:     cl,
		conn:       conn,
		in:         http2.NewFramer(nil, bufio.NewReaderSize(conn, 16<<10)),
		cutter:     cutter{cfg: &cl.run.cfg, ctx: cl.run.ctx},
		rng:        rng,
		pending:    []byte(http2.ClientPreface),
		streams:    make(map[uint32]*h2stream),
		cancelled:  make(map[uint32]bool),
		nextID:     1,
		lastID:     maxStreamID,
		window:     initialWindow,
		initial:    initialWindow,
		maxStreams: maxStreamID,
	}
	c.wake.L = &cl.mu
	c.in.SetMaxReadFrameSize(frameBytes)
	c.in.SetReuseFrames()
	c.in.MaxHeaderListSize = maxHeaderBytes
	c.in.ReadMetaHeaders = hpack.NewDecoder(tableBytes, nil)
	c.out = http2.NewFramer(c, nil)
	c.hpack = hpack.NewEncoder(&c.block)
	_ = c.out.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	return c
}

// Write is where out puts its frames. Only write goes to the connection, so
// that nobody who holds the lock waits for the server, and it does not fail.
func (c *h2conn) Write(b []byte) (int, error) {
	if !c.mute {
		c.pending = append(c.pending, b...)
		c.wake.Signal()
	}
	return len(b), nil
}

// write writes what is pending until the connection is closed.
func (c *h2conn) write() {
	cl := c.client
	defer c.conn.Close()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	var b []byte
	for {
		for len(c.pending) == 0 && !c.closed {
			c.wake.Wait()
		}
		if len(c.pending) == 0 {
			return
		}
		b, c.pending = c.pending, b[:0]
		c.plan(len(b))
		cl.changed.Broadcast()
		cl.mu.Unlock()
		err := c.cutter.write(c.rng, c.conn, b)
		cl.mu.Lock()
		if err != nil {
			// What the server has sent before is still to be read, so that it
			// is read that finds the end.
			c.mute, c.pending = true, nil
		}
	}
}

// plan decides whether the next n bytes are cut.
func (c *h2conn) plan(n int) {
	cfg := c.cutter.cfg
	if n < 2 || cfg.CutRatio == 0 || c.rng.Float64() >= cfg.CutRatio {
		c.cutter.whole(n)
		return
	}
	c.client.cuts.Add(1)
	c.cutter.cut(c.rng, n, func() (from, to int) { return 0, n })
}

// close has write close the connection, once it has written what is pending
// or soon.
func (c *h2conn) close() {
	if c.closed {
		return
	}
	c.closed = true
	delete(c.client.live, c)
	deadline := longAgo // what is to be written does not matter to a run that is aborted
	if !c.client.aborted {
		deadline = time.Now().Add(c.client.run.cfg.CloseWait)
	}
	c.conn.SetWriteDeadline(deadline)
	c.wake.Signal()
}

// hasRoom reports whether a stream may be opened now.
func (c *h2conn) hasRoom() bool { return !c.mute && len(c.streams) < c.maxStreams }

// open sends the header of s.
func (c *h2conn) open(s *h2stream) {
	s.conn, s.id, s.window = c, c.nextID, c.initial
	c.streams[s.id] = s
	c.nextID += 2
	c.onConn++
	s.q.onConn = c.onConn

	cfg := &c.client.run.cfg
	scheme := "http"
	if cfg.TLS != nil {
		scheme = "https"
	}
	c.block.Reset()
	c.field(":method", s.q.method())
	c.field(":scheme", scheme)
	c.field(":authority", cfg.Host)
	c.field(":path", cfg.Path)
	c.field("x-request-id", string(s.q.id))
	if s.q.post {
		c.field("content-type", contentType)
		c.field("content-length", strconv.Itoa(len(s.q.body)))
	}
	s.sent = len(s.q.body) == 0
	_ = c.out.WriteHeaders(http2.HeadersFrameParam{
		StreamID: s.id, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: s.sent})
	if !cfg.KeepAlive || c.nextID > maxStreamID {
		c.client.retire(c, byClient)
	}
}

func (c *h2conn) field(name, value string) {
	_ = c.hpack.WriteField(hpack.HeaderField{Name: name, Value: value}) // into a buffer
}
