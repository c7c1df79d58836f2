//go:build !linux

package scm

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

// sysConn has no implementation here: its init fails, so that there is no Conn
// on which the other methods could be called.
type sysConn struct{}

func supported() error {
	return fmt.Errorf("descriptor passing on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (*sysConn) init(syscall.RawConn) error { return supported() }

func (*sysConn) send(syscall.RawConn, []byte, []int) error { return supported() }

func (*sysConn) recv(syscall.RawConn, []byte, []int) (int, int, error) { return 0, 0, supported() }

func (*sysConn) peerCred(syscall.RawConn) (Cred, error) { return Cred{}, supported() }

func (*sysConn) peerPidfd(syscall.RawConn) (int, error) { return -1, supported() }

func (*sysConn) setPassRights(syscall.RawConn, bool) error { return supported() }
