package handover

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// socket is one named descriptor of the set.
type socket struct {
	item
	fd  int          // owned here, unless ln or pc is set, which own it then
	ln  net.Listener // set when converted for package net
	pc  net.PacketConn
	way *passage
	id  fileID // of a bound Unix path

	added   bool // by this generation
	adopted bool // from a socket activator

	// conversion gives an inherited descriptor to package net, or makes sure
	// that nobody does any more.
	conversion sync.Once
	converted  error
}

func (s *socket) public() Socket {
	return Socket{Name: s.Name, Kind: s.Kind, Network: s.Network, Address: s.Address}
}

func (s *socket) status() SocketStatus {
	st := SocketStatus{Socket: s.public(), Cookie: uint64(s.Cookie), Netns: uint64(s.Netns)}
	if s.Kind == KindListener && (s.Network == "tcp" || s.Network == "tcp4" || s.Network == "tcp6") {
		if n, backlog, ok := acceptQueue(s.fd); ok {
			st.Queue, st.Backlog = &n, &backlog
		}
	}
	return st
}

func (s *socket) passageClose() bool {
	if s.way == nil {
		return true
	}
	return s.way.close()
}

func (s *socket) closeDescriptor() {
	s.conversion.Do(func() { s.converted = ErrClosed })
	switch {
	case s.ln != nil:
		s.ln.Close()
	case s.pc != nil:
		s.pc.Close()
	default:
		closeFD(s.fd)
	}
	s.fd = -1
}

// unlink removes a bound Unix path, if it is still the one that was bound.
func (s *socket) unlink() {
	if s.Network == "unix" || s.Network == "unixpacket" || s.Network == "unixgram" {
		unlinkOurs(s.Address, s.id)
	}
}

// asked tells whether the socket was asked for in the same words before.
func (s *socket) asked(kind Kind, network, address string) bool {
	return s.Kind == kind && s.Network == network && s.Asked == address
}

// wants tells whether the socket is what an application asks for. An empty
// network or address asks for whatever it is.
func (s *socket) wants(ctx context.Context, kind Kind, network, address string) bool {
	if s.Kind != kind {
		return false
	}
	if network != "" && network != s.Network && !sameFamily(network, s.Network) {
		return false
	}
	if address == "" || address == s.Asked || address == s.Address {
		return true
	}
	return sameAddress(ctx, network, address, s.Address)
}

// sameFamily lets "tcp" and "tcp4" go together, since a socket activator does
// not say which was meant; "unix" and "unixpacket" differ in kind.
func sameFamily(a, b string) bool {
	switch a {
	case "tcp", "tcp4", "tcp6":
		return b == "tcp" || (a == "tcp" && (b == "tcp4" || b == "tcp6"))
	case "udp", "udp4", "udp6":
		return b == "udp" || (a == "udp" && (b == "udp4" || b == "udp6"))
	}
	return false
}

// sameAddress tells whether the address that is asked for is that which is
// bound. 0.0.0.0 and [::] are different; port 0 asks for any port.
func sameAddress(ctx context.Context, network, asked, bound string) bool {
	host, port, err := net.SplitHostPort(asked)
	if err != nil {
		return false
	}
	bhost, bport, err := net.SplitHostPort(bound)
	if err != nil {
		return false
	}
	n, err := net.DefaultResolver.LookupPort(ctx, network, port)
	if err != nil || (n != 0 && fmt.Sprint(n) != bport) {
		return false
	}
	if host == "" {
		switch network {
		case "tcp4", "udp4":
			host = "0.0.0.0"
		default:
			host = "::"
			if bhost == "0.0.0.0" {
				host = bhost // no IPv6 here: package net falls back
			}
		}
	}
	if host == bhost {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if a.Unmap().String() == bhost {
			return true
		}
	}
	return false
}

func (s *socket) addr() net.Addr {
	if s.ln != nil {
		return s.ln.Addr()
	}
	return s.pc.LocalAddr()
}

func closeConn(ln net.Listener, pc net.PacketConn) {
	if ln != nil {
		ln.Close()
	}
	if pc != nil {
		pc.Close()
	}
}

// hold makes package net's object the owner of the descriptor.
func (s *socket) hold(ln net.Listener, pc net.PacketConn) error {
	var c any = pc
	if ln != nil {
		c = ln
		if ul, ok := ln.(*net.UnixListener); ok {
			ul.SetUnlinkOnClose(false)
		}
	}
	fd, err := sockFD(c.(syscall.Conn))
	if err != nil {
		return err
	}
	s.ln, s.pc, s.fd = ln, pc, fd
	return nil
}

// release takes the descriptor back from package net, whose poller watches what
// it has. If that fails, for want of descriptors, it stays there.
func (s *socket) release() {
	fd, err := dupFD(s.fd)
	if err != nil {
		return
	}
	closeConn(s.ln, s.pc)
	s.ln, s.pc, s.fd = nil, nil, fd
}

func isUnixPath(network, address string) bool {
	return (network == "unix" || network == "unixpacket" || network == "unixgram") &&
		address != "" && address[0] != '@' && address[0] != 0
}

// describe fills in what the kernel says, and closes the socket if it fails.
func (s *socket) describe() error {
	info, err := inspect(s.fd)
	if err == nil && isUnixPath(s.Network, s.Address) && s.id == (fileID{}) {
		s.id, err = idOf(s.Address)
		s.Dev, s.Ino = s.id.dev, s.id.ino
	}
	if err != nil {
		s.closeDescriptor()
		return err
	}
	s.Cookie, s.Netns = info.cookie, info.netns
	return nil
}

// setDeadline gives what interrupts a pending accept or read.
func (s *socket) setDeadline() func(time.Time) error {
	switch {
	case s.pc != nil:
		return s.pc.SetReadDeadline
	case s.ln == nil: // held: nobody waits
		return func(time.Time) error { return nil }
	}
	return s.ln.(interface{ SetDeadline(time.Time) error }).SetDeadline
}
