//go:build unix

package load

import "syscall"

var (
	refusedErrnos = []error{syscall.ECONNREFUSED}
	resetErrnos   = []error{syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE}
	ownErrnos     = []error{syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS}
	timeoutErrnos = []error{syscall.ETIMEDOUT}
)
