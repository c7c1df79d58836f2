package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// keepDescriptors keeps a program that is about to be executed from getting
// descriptors that this process was started with and never looked at, such as
// sockets meant for somebody else.
func keepDescriptors() error {
	err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	if err == unix.ENOSYS || err == unix.EINVAL { // before Linux 5.11
		return nil
	}
	return os.NewSyscallError("close_range", err)
}
