package scm

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func (s *sysConn) peerCred(raw syscall.RawConn) (Cred, error) {
	u, err := getsockopt(raw, "SO_PEERCRED", func(fd int) (*unix.Ucred, error) {
		return unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return Cred{}, err
	}
	return Cred{PID: u.Pid, UID: u.Uid, GID: u.Gid}, nil
}

func (s *sysConn) peerPidfd(raw syscall.RawConn) (int, error) {
	return getsockopt(raw, "SO_PEERPIDFD", func(fd int) (int, error) {
		return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
}

func (s *sysConn) setPassRights(raw syscall.RawConn, ok bool) error {
	value := 0
	if ok {
		value = 1
	}
	var opErr error
	err := raw.Control(func(fd uintptr) {
		opErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, value)
	})
	if err != nil {
		return err
	}
	return optionError("setsockopt SO_PASSRIGHTS", opErr)
}

// getsockopt runs get on the socket, which cannot be closed meanwhile.
func getsockopt[T any](raw syscall.RawConn, name string, get func(fd int) (T, error)) (T, error) {
	var value T
	var opErr error
	err := raw.Control(func(fd uintptr) { value, opErr = get(int(fd)) })
	if err != nil {
		return value, err
	}
	return value, optionError("getsockopt "+name, opErr)
}

// optionError makes ENOPROTOOPT, the answer of a kernel that does not know the
// option, the error that callers on every system can test for.
func optionError(call string, err error) error {
	if errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, os.NewSyscallError(call, err))
	}
	return os.NewSyscallError(call, err)
}
