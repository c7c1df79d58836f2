//go:build !linux

package scm

// Readable tells, without waiting, whether a message or the end of the
// conversation waits to be received. There are no messages here.
func (c *Conn) Readable() bool { return false }
