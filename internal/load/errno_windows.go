package load

import (
	"syscall"

	"golang.org/x/sys/windows"
)

var (
	refusedErrnos = []error{windows.WSAECONNREFUSED}
	resetErrnos   = []error{windows.WSAECONNRESET, windows.WSAECONNABORTED, syscall.ERROR_BROKEN_PIPE}
	ownErrnos     = []error{windows.WSAEADDRNOTAVAIL, windows.WSAEADDRINUSE, windows.WSAEMFILE, windows.WSAENOBUFS}
	timeoutErrnos = []error{windows.WSAETIMEDOUT}
)
