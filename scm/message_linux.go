package scm

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sysConn holds what the system calls need, made once per connection so that
// no call allocates.
type sysConn struct {
	stream bool
	tx     message
	rx     message

	rest   []byte // of the message being sent, what is still to be written
	broken bool   // a message was written in part; under the out gate
}

// A message is the argument of sendmsg and recvmsg with the buffers it points
// to, and the result of the call that try makes.
type message struct {
	hdr     unix.Msghdr
	iov     unix.Iovec
	control []byte
	try     func(fd uintptr) bool // for syscall.RawConn: false means not ready
	n       int
	errno   syscall.Errno
}

func supported() error { return nil }

func (s *sysConn) init(raw syscall.RawConn) error {
	typ, err := getsockopt(raw, "SO_TYPE", func(fd int) (int, error) {
		return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	})
	if err != nil {
		return err
	}
	switch typ {
	case unix.SOCK_STREAM:
		s.stream = true
	case unix.SOCK_SEQPACKET:
	default:
		return errors.New("socket is neither SOCK_STREAM nor SOCK_SEQPACKET")
	}
	s.tx.init(sendControlSize)
	s.tx.try = s.trySend
	s.rx.init(recvControlSize)
	s.rx.try = s.tryRecv
	return nil
}

func (m *message) init(controlSize int) {
	m.control = make([]byte, controlSize)
	m.hdr.Iov = &m.iov
	m.hdr.SetIovlen(1)
}

// point makes the message refer to p and to the first n bytes of control.
func (m *message) point(p []byte, n int) {
	m.iov.Base = unsafe.SliceData(p)
	m.iov.SetLen(len(p))
	m.hdr.Control = nil
	if n > 0 {
		m.hdr.Control = &m.control[0]
	}
	m.hdr.SetControllen(n)
	m.hdr.Flags = 0
}

// call makes one system call that does not block, even if another holder of
// the socket has cleared O_NONBLOCK. It reports false if the socket is not
// ready.
func (m *message) call(trap, fd uintptr, flags int) bool {
	for {
		n, _, errno := unix.Syscall(trap, fd, uintptr(unsafe.Pointer(&m.hdr)), uintptr(flags|unix.MSG_DONTWAIT))
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case 0:
			m.n, m.errno = int(n), 0
		default:
			m.n, m.errno = 0, errno
		}
		return true
	}
}

// send is called with the out gate held.
func (s *sysConn) send(raw syscall.RawConn, p []byte, fds []int) error {
	if s.broken {
		return ErrBroken
	}
	for _, fd := range fds {
		// The wire has 32 bits: a larger number would name another file.
		if fd < 0 || fd > math.MaxInt32 {
			return os.NewSyscallError("sendmsg", unix.EBADF)
		}
	}
	s.rest = p
	s.tx.point(p, putRights(s.tx.control, fds))
	err := raw.Write(s.tx.try)
	if err == nil && s.tx.errno != 0 {
		err = os.NewSyscallError("sendmsg", s.tx.errno)
	}
	if err != nil && len(s.rest) < len(p) {
		s.broken = true
		err = fmt.Errorf("%w: %w", ErrBroken, err)
	}
	s.rest = nil
	s.tx.point(nil, 0)
	return err
}

func (s *sysConn) trySend(fd uintptr) bool {
	for {
		if !s.tx.call(unix.SYS_SENDMSG, fd, unix.MSG_NOSIGNAL) {
			return false
		}
		if s.tx.errno != 0 {
			return true
		}
		s.rest = s.rest[s.tx.n:]
		if len(s.rest) == 0 {
			return true
		}
		s.tx.point(s.rest, 0) // the descriptors went with the first byte
	}
}

// recv is called with the in gate held.
func (s *sysConn) recv(raw syscall.RawConn, p []byte, fds []int) (int, int, error) {
	m := &s.rx
	m.point(p, len(m.control))
	err := raw.Read(m.try)
	m.iov.Base = nil
	if err != nil {
		return 0, 0, err
	}
	if m.errno != 0 {
		return 0, 0, os.NewSyscallError("recvmsg", m.errno)
	}

	r := takeRights(m.control[:m.hdr.Controllen], fds)
	switch {
	case m.hdr.Flags&unix.MSG_CTRUNC != 0:
		err = ErrControlTruncated
	case r.malformed:
		err = errMalformed
	case r.excess:
		err = ErrUnexpectedFDs
	case m.hdr.Flags&unix.MSG_TRUNC != 0:
		err = ErrPayloadTruncated
	case m.n == 0 && r.n > 0:
		err = ErrEmpty
	case m.n == 0:
		err = io.EOF
	default:
		return m.n, r.n, nil
	}
	for i, fd := range fds[:r.n] {
		unix.Close(fd)
		fds[i] = -1
	}
	return 0, 0, err
}

func (s *sysConn) tryRecv(fd uintptr) bool {
	return s.rx.call(unix.SYS_RECVMSG, fd, unix.MSG_CMSG_CLOEXEC)
}
