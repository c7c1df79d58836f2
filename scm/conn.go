package scm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// MaxFDs is the largest number of descriptors in one message, SCM_MAX_FD in
// the Linux kernel (unix(7), SCM_RIGHTS). It counts over all control messages
// of one sendmsg(2).
const MaxFDs = 253

// Errors that callers branch on. They come wrapped: test with [errors.Is].
var (
	// ErrEmpty is returned by Send for a message without a byte, by Recv for
	// an empty buffer, and by Recv for a message that had descriptors but no
	// byte; those descriptors are closed.
	ErrEmpty = errors.New("empty message")

	// ErrTooManyFDs is returned by Send for more than MaxFDs descriptors.
	// Nothing was sent.
	ErrTooManyFDs = errors.New("more than 253 descriptors in one message")

	// ErrUnexpectedFDs is returned by Recv for a message with more
	// descriptors than the caller made room for. All of them are closed.
	ErrUnexpectedFDs = errors.New("message carries more descriptors than allowed")

	// ErrControlTruncated is returned by Recv when the kernel could not
	// deliver all descriptors (MSG_CTRUNC, recvmsg(2)). As the control buffer
	// is always large enough, this means that the process is at its
	// RLIMIT_NOFILE. Those that did come are closed; the rest is lost.
	ErrControlTruncated = errors.New("control data truncated, the process may be at its RLIMIT_NOFILE")

	// ErrPayloadTruncated is returned by Recv when the message was longer than
	// the buffer (MSG_TRUNC, recvmsg(2)). Only SOCK_SEQPACKET does this. The
	// rest of the message is lost, its descriptors are closed.
	ErrPayloadTruncated = errors.New("message longer than the buffer")

	// ErrBroken is returned by Send on a stream after an earlier Send failed
	// with only a part of its message written: anything written after that
	// would be taken for the rest of it. The Send that breaks the stream
	// returns it as well, together with its cause.
	ErrBroken = errors.New("stream broken by a partly written message")
)

// A Conn is one end of a connected Unix-domain socket.
//
// All methods may be called concurrently. Sends are serialised with Sends and
// Recvs with Recvs; one Send and one Recv run side by side.
//
// For each direction a Conn remembers the last context that could end, so that
// the next call with it needs no new registration. It lets go of that context
// when it ends, when a call with another one is made, and on Close.
type Conn struct {
	uc  *net.UnixConn
	raw syscall.RawConn

	out gate // held by the Send that runs
	in  gate // held by the Recv that runs

	sys sysConn
}

// NewConn makes a Conn of c, which must be connected and of type SOCK_STREAM
// or SOCK_SEQPACKET. On success the Conn owns c, and nothing else may use it
// any more; deadlines set on c are cleared. On error c stays the caller's.
//
// On systems other than Linux the error is [errors.ErrUnsupported].
func NewConn(c *net.UnixConn) (*Conn, error) {
	if c == nil {
		return nil, errors.New("scm: nil connection")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("scm: %w", err)
	}
	conn := &Conn{uc: c, raw: raw}
	if err := conn.sys.init(raw); err != nil {
		return nil, fmt.Errorf("scm: %w", err)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("scm: %w", err)
	}
	conn.out.init(c.SetWriteDeadline)
	conn.in.init(c.SetReadDeadline)
	return conn, nil
}

// Dial connects to the Unix-domain socket at path. The network is "unix" for
// SOCK_STREAM or "unixpacket" for SOCK_SEQPACKET. The context bounds the
// connecting only; what it does later has no effect on the Conn.
//
// A listener with a full accept queue is not waited for: that is EAGAIN, as
// connect(2) says of non-blocking sockets. Other errors are those of
// [net.Dialer], and [errors.ErrUnsupported] on systems other than Linux.
func Dial(ctx context.Context, network, path string) (*Conn, error) {
	if network != "unix" && network != "unixpacket" {
		return nil, fmt.Errorf("scm: dial: %w", net.UnknownNetworkError(network))
	}
	if err := supported(); err != nil {
		return nil, fmt.Errorf("scm: dial: %w", err)
	}
	var d net.Dialer
	c, err := d.DialUnix(ctx, network, nil, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		return nil, fmt.Errorf("scm: %w", err)
	}
	conn, err := NewConn(c)
	if err != nil {
		c.Close()
		return nil, err
	}
	return conn, nil
}

// Send sends the bytes of p with the descriptors in fds as one message. The
// descriptors stay the caller's, and must stay open until Send returns.
//
// On SOCK_SEQPACKET the message is sent whole or not at all. On SOCK_STREAM
// Send writes all of p, and the descriptors ride on its first byte; when it
// fails after a part was written, the error is [ErrBroken] as well as its
// cause, and so is every later Send.
//
// Errors are [ErrEmpty], [ErrTooManyFDs], those of sendmsg(2) as an
// [os.SyscallError] (for instance EPIPE when the peer is gone, EMSGSIZE,
// EPERM when the peer refuses descriptors, ETOOMANYREFS when an unprivileged
// user has more descriptors in flight than RLIMIT_NOFILE), [net.ErrClosed]
// after Close, and ctx.Err() when the context ends first; a deadline is
// [os.ErrDeadlineExceeded] too.
func (c *Conn) Send(ctx context.Context, p []byte, fds []int) error {
	if len(p) == 0 {
		return opError("send", ErrEmpty)
	}
	if len(fds) > MaxFDs {
		return opError("send", ErrTooManyFDs)
	}
	if err := c.out.enter(ctx); err != nil {
		return opError("send", err)
	}
	defer c.out.leave()

	if err := c.sys.send(c.raw, p, fds); err != nil {
		return opError("send", interrupted(ctx, err))
	}
	return nil
}

// Recv receives one message: up to len(p) bytes into p, and its descriptors
// into fds, whose length is the most that the caller accepts. It returns how
// many bytes and descriptors came. The descriptors are close-on-exec, their
// O_NONBLOCK is as the sender had it, and they are the caller's to close.
//
// After an error both numbers are 0, and every descriptor that came with the
// message is closed. Errors are [io.EOF] when the peer has closed,
// [ErrUnexpectedFDs], [ErrControlTruncated], [ErrPayloadTruncated],
// [ErrEmpty], those of recvmsg(2) as an [os.SyscallError] (ECONNRESET when the
// peer closed without having read everything), [net.ErrClosed] after Close,
// and ctx.Err() when the context ends first; a deadline is
// [os.ErrDeadlineExceeded] too. A Recv that the context ended has consumed
// nothing.
func (c *Conn) Recv(ctx context.Context, p []byte, fds []int) (n, nfds int, err error) {
	if len(p) == 0 {
		return 0, 0, opError("recv", ErrEmpty)
	}
	if err := c.in.enter(ctx); err != nil {
		return 0, 0, opError("recv", err)
	}
	defer c.in.leave()

	n, nfds, err = c.sys.recv(c.raw, p, fds)
	if err != nil {
		return 0, 0, opError("recv", interrupted(ctx, err))
	}
	return n, nfds, nil
}

// Cred is the identity of a peer process as the kernel recorded it, struct
// ucred of unix(7).
type Cred struct {
	PID int32  // process id in our pid namespace, 0 if it is not in it
	UID uint32 // user id in our user namespace, 65534 if it is not mapped
	GID uint32 // group id in our user namespace, 65534 if it is not mapped
}

// PeerCred returns the peer's credentials as of its connect(2), listen(2) or
// socketpair(2) (unix(7), SO_PEERCRED). The pid may have been reused since:
// it is for messages, not for signals; see [Conn.PeerPidfd].
func (c *Conn) PeerCred() (Cred, error) {
	cred, err := c.sys.peerCred(c.raw)
	if err != nil {
		return Cred{}, opError("peer credentials", err)
	}
	return cred, nil
}

// PeerPidfd returns a pidfd of the process that PeerCred names, also when that
// process has no pid in our pid namespace. It polls readable once the process
// has ended (pidfd_open(2)). The descriptor is close-on-exec and is the
// caller's to close.
//
// It needs Linux 6.5 (SO_PEERPIDFD); before, the error is
// [errors.ErrUnsupported]. Where the process has already been reaped, the
// kernel may answer ESRCH.
func (c *Conn) PeerPidfd() (int, error) {
	fd, err := c.sys.peerPidfd(c.raw)
	if err != nil {
		return -1, opError("peer pidfd", err)
	}
	return fd, nil
}

// SetPassRights says whether the peer may send descriptors to us; it may by
// default. Where it may not, its sendmsg(2) with SCM_RIGHTS fails with EPERM,
// so that it cannot make us hold files that we never asked for. Messages that
// are already queued keep theirs.
//
// It needs Linux 6.16 (SO_PASSRIGHTS); before, the error is
// [errors.ErrUnsupported], and the peer's descriptors are accepted or closed
// by Recv as always.
func (c *Conn) SetPassRights(ok bool) error {
	if err := c.sys.setPassRights(c.raw, ok); err != nil {
		return opError("pass rights", err)
	}
	return nil
}

// CloseWrite tells the peer that nothing more will be sent (shutdown(2),
// SHUT_WR): it receives what is under way, then io.EOF. Receiving goes on.
func (c *Conn) CloseWrite() error {
	if err := c.uc.CloseWrite(); err != nil {
		return fmt.Errorf("scm: %w", err)
	}
	return nil
}

// CloseRead refuses what the peer sends from now on (shutdown(2), SHUT_RD): its
// Send fails with EPIPE. What has been sent before is received, then io.EOF.
func (c *Conn) CloseRead() error {
	if err := c.uc.CloseRead(); err != nil {
		return fmt.Errorf("scm: %w", err)
	}
	return nil
}

// Close closes the connection and interrupts a pending Send and Recv, which
// return [net.ErrClosed], as does every later call. Messages that the peer has
// not read yet stay readable for it; messages that we have not read are lost,
// and the kernel closes their descriptors.
func (c *Conn) Close() error {
	c.out.close()
	c.in.close()
	if err := c.uc.Close(); err != nil {
		return opError("close", err)
	}
	return nil
}

// interrupted replaces the poller's time-out by the reason of the context,
// which is the only one that sets a deadline.
func interrupted(ctx context.Context, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	reason := ctx.Err()
	if reason == nil {
		return err
	}
	if errors.Is(err, ErrBroken) {
		return fmt.Errorf("%w: %w", ErrBroken, reason)
	}
	return reason
}
