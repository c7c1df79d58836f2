//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package server

import "net"

// hasUnread cannot tell here.
func hasUnread(net.Conn) bool { return false }
