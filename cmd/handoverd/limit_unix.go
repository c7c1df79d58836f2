//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// descriptorLimit is how many files this process may have open.
func descriptorLimit() (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	return uint64(l.Cur), nil //nolint:unconvert // signed on FreeBSD
}
