//go:build !linux

package load

import "syscall"

// portAtConnect does nothing where the kernel has no such choice.
func portAtConnect(_, _ string, _ syscall.RawConn) error { return nil }
