package load

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// portAtConnect makes the kernel choose the port at connect, when it knows
// the destination, instead of at bind. A port is then only taken for one
// destination.
func portAtConnect(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt", serr)
}
