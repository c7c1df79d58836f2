package v1

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long the other side may take for one step. It only ends a
// hang.
const Patience = 30 * time.Second

// Conn is one conversation. One goroutine sends and one receives.
type Conn struct {
	uc    *net.UnixConn
	reset bool // ECONNRESET was said
	ended bool // the first close was recorded

	// Rewrite, if set, changes each frame before it is sent, to what a peer of
	// a later version might have sent.
	Rewrite func(frame []byte) []byte

	// Record, if set, is told of each frame that was sent or received here, and
	// with a nil frame of the first close.
	Record func(sent bool, frame []byte, fds int)
}

func dial(cfg Config) (*Conn, error) {
	uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: cfg.Socket})
	if err != nil {
		return nil, err
	}
	return newConn(cfg, uc), nil
}

func newConn(cfg Config, uc *net.UnixConn) *Conn {
	c := &Conn{uc: uc}
	if cfg.OnConn != nil {
		cfg.OnConn(c)
	}
	return c
}

// Send sends one frame with descriptors, which stay the caller's.
func (c *Conn) Send(f any, fds ...int) error {
	p, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return c.SendRaw(p, fds...)
}

// SendRaw is Send for what may be no frame of version 1.
func (c *Conn) SendRaw(p []byte, fds ...int) error {
	if c.Rewrite != nil {
		p = c.Rewrite(p)
	}
	if len(p) > MaxFrame {
		return fmt.Errorf("frame of %d bytes", len(p))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := c.uc.SetWriteDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	// Before it is sent: the answer may be received, and recorded, at once.
	c.record(true, p, len(fds))
	_, _, err := c.uc.WriteMsgUnix(p, oob, nil)
	return err
}

// Recv receives one frame. Its descriptors are the caller's; with an error
// there are none. The end of the conversation is io.EOF.
func (c *Conn) Recv() (any, []int, error) {
	if err := c.uc.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		return nil, nil, err
	}
	buf, oob := make([]byte, MaxFrame), make([]byte, unix.CmsgSpace(4*MaxFDs))
	n, oobn, flags, _, err := c.uc.ReadMsgUnix(buf, oob)
	if errors.Is(err, unix.ECONNRESET) && !c.reset {
		// Said once, when the other side has closed with frames of ours
		// unread: what it has sent before that is still there.
		c.reset = true
		return c.Recv()
	}
	if err != nil {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.recordEnd(false)
		}
		return nil, nil, err
	}
	fds, err := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("message truncated")
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	c.record(false, buf[:n], len(fds))
	f, err := Decode(buf[:n])
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return f, fds, nil
}

// rights gives the descriptors in control data.
func rights(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not SCM_RIGHTS
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// recvPlain receives one frame that carries no descriptor. A refusal is an
// error.
func (c *Conn) recvPlain() (any, error) {
	f, fds, err := c.Recv()
	closeAll(fds)
	switch r, ok := f.(*Refuse); {
	case err != nil:
		return nil, err
	case ok:
		return nil, &RefusedError{r.Code, r.Message}
	case len(fds) > 0:
		return nil, fmt.Errorf("%T with %d descriptors", f, len(fds))
	}
	return f, nil
}

// Await receives one frame that is only its type, and tells it.
func (c *Conn) Await() (string, error) {
	f, err := c.recvPlain()
	if err != nil {
		return "", err
	}
	s, ok := f.(*Simple)
	if !ok {
		return "", fmt.Errorf("%T out of place", f)
	}
	return s.Type, nil
}

// AwaitEnd reads until the other side has closed. A frame is an error.
func (c *Conn) AwaitEnd() error {
	f, fds, err := c.Recv()
	closeAll(fds)
	switch {
	case err == nil:
		return fmt.Errorf("%T instead of the end", f)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	return nil
}

// CloseWrite says that nothing more will come.
func (c *Conn) CloseWrite() error {
	c.recordEnd(true)
	return c.uc.CloseWrite()
}

// CloseRead refuses to receive more: what the other side sends from now on
// fails.
func (c *Conn) CloseRead() error { return c.uc.CloseRead() }

// Close ends the conversation.
func (c *Conn) Close() error {
	c.recordEnd(true)
	return c.uc.Close()
}

func (c *Conn) record(sent bool, p []byte, fds int) {
	if c.Record != nil {
		c.Record(sent, p, fds)
	}
}

func (c *Conn) recordEnd(sent bool) {
	if !c.ended {
		c.ended = true
		c.record(sent, nil, 0)
	}
}

// Credentials of the other side, SO_PEERCRED of unix(7).
func (c *Conn) Credentials() (*unix.Ucred, error) {
	return control(c, func(fd int) (*unix.Ucred, error) {
		return unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
}

// Pidfd of the other side, SO_PEERPIDFD, or -1 where the kernel has none
// (before 6.5) and where it is this very process.
func (c *Conn) Pidfd() (int, error) {
	cred, err := c.Credentials()
	if err != nil || int(cred.Pid) == os.Getpid() {
		return -1, err
	}
	fd, err := control(c, func(fd int) (int, error) {
		return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		return -1, nil
	}
	return fd, err
}

// passRights says whether the other side may send descriptors, where the kernel
// knows how (SO_PASSRIGHTS, 6.16).
func (c *Conn) passRights(ok bool) error {
	v := 0
	if ok {
		v = 1
	}
	_, err := control(c, func(fd int) (int, error) {
		return 0, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, v)
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	return err
}

func control[T any](c *Conn, f func(fd int) (T, error)) (v T, err error) {
	rc, err := c.uc.SyscallConn()
	if err != nil {
		return v, err
	}
	cerr := rc.Control(func(fd uintptr) { v, err = f(int(fd)) })
	return v, errors.Join(cerr, err)
}

// Died tells whether the process of a pidfd has ended, or does so within d.
func Died(pidfd int, d time.Duration) bool { return pidfd >= 0 && readable(pidfd, d) == nil }

// readable waits until fd is readable: poll(2).
func readable(fd int, d time.Duration) error {
	end := time.Now().Add(d)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(end)).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return os.ErrDeadlineExceeded
		default:
			return nil
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
