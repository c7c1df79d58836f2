package scm

import "golang.org/x/sys/unix"

// Readable tells, without waiting, whether a message or the end of the
// conversation waits to be received (poll(2), POLLIN).
func (c *Conn) Readable() bool {
	readable := false
	c.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		readable = err == nil && n > 0
	})
	return readable
}
