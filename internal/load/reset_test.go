package load

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// A toldConn has been reset, and tells a write of it.
type toldConn struct {
	net.Conn
	writing chan struct{} // closed when a Write has begun
	fail    chan struct{} // the Write returns when that is closed
}

func (c *toldConn) Read([]byte) (int, error) { return 0, io.EOF }

func (c *toldConn) Write([]byte) (int, error) {
	close(c.writing)
	<-c.fail
	return 0, &net.OpError{Op: "write", Err: os.NewSyscallError("write", resetErrnos[0])}
}

func (c *toldConn) SetWriteDeadline(time.Time) error { close(c.fail); return nil }

// A reset is a reset, whoever of the reader and the writer is told first.
func TestResetThatAWriteIsToldOf(t *testing.T) {
	for _, before := range []bool{true, false} {
		told := &toldConn{writing: make(chan struct{}), fail: make(chan struct{})}
		c := &resetConn{Conn: told}
		if before {
			close(told.fail)
			c.Write([]byte("x"))
		} else { // it waits when the read has come to its end
			done := make(chan struct{})
			go func() { defer close(done); c.Write([]byte("x")) }()
			defer func() { <-done }()
			<-told.writing
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, resetErrnos[0]) {
			t.Errorf("told before %v: %v, want a reset", before, err)
		}
	}
	near, far := net.Pipe()
	far.Close()
	if _, err := (&resetConn{Conn: near}).Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v, want a plain end", err)
	}
	near.Close()
}
