//go:build unix

package child

import (
	"syscall"

	"golang.org/x/sys/unix"
)

func signalNumber(name string) syscall.Signal { return unix.SignalNum(name) }

func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return s.String()
}
