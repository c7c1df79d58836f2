package load

import (
	"errors"
	"io"
	"net"
	"sync"
)

// resetConn lets its reader know of a reset. The kernel tells that only once, to
// a write if one comes first, and the read after it finds a plain end.
type resetConn struct {
	net.Conn
	writing sync.Mutex // held by Write
	reset   error
}

func (c *resetConn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	n, err := c.Conn.Write(b)
	if errors.Is(err, resetErrnos[0]) { // not EPIPE: that may follow a plain end
		c.reset = err
	}
	return n, err
}

func (c *resetConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	if !c.writing.TryLock() {
		c.Conn.SetWriteDeadline(longAgo) // it may wait for the server, which has ended
		c.writing.Lock()
	}
	defer c.writing.Unlock()
	if c.reset != nil {
		err = c.reset
	}
	return n, err
}
