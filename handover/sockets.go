package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
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

// Listen gives the listener with that name: the inherited one, if network and
// address agree with what it is bound to, else a new one. An empty network
// and address take whatever was inherited, or fail with ErrNotFound.
//
// The network is tcp, tcp4, tcp6, unix or unixpacket; the name is the
// identity, unique in the set. Accept waits until this generation owns the
// socket, waits again while a successor is in probation, and returns
// net.ErrClosed when ownership has gone for good. Close takes the socket out
// of the set, so that no successor gets it. A Unix socket's path is removed
// when the last owner stops, if it is still the same file.
//
// A new socket is made in the network namespace of the first generation.
func (g *Generation) Listen(name, network, address string) (net.Listener, error) {
	s, err := g.claim(name, KindListener, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", name, err)
	}
	return &listener{g: g, s: s, ln: s.ln, way: s.way}, nil
}

// ListenPacket is Listen for datagram sockets: udp, udp4, udp6 or unixgram.
// Reading waits as Accept does; writing does not.
func (g *Generation) ListenPacket(name, network, address string) (net.PacketConn, error) {
	s, err := g.claim(name, KindPacket, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", name, err)
	}
	return &packetConn{g: g, s: s, pc: s.pc, way: s.way}, nil
}

// claim takes an inherited socket or makes a new one.
func (g *Generation) claim(name string, kind Kind, network, address string) (*socket, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if network != "" && kindOf(network) != kind {
		return nil, net.UnknownNetworkError(network)
	}
	old, err := g.reserve(name)
	if err != nil {
		return nil, err
	}
	s, err := g.claimReserved(old, name, kind, network, address)
	if err != nil {
		if s == old {
			old = nil // consumed by the attempt
		}
		if g.do(func() { g.unreserve(name, old) }) != nil && old != nil {
			old.closeDescriptor()
		}
		return nil, err
	}
	if s == old {
		old = nil
	}
	return s, g.enroll(s, old)
}

func (g *Generation) claimReserved(old *socket, name string, kind Kind, network, address string) (*socket, error) {
	if old != nil && old.asked(kind, network, address) {
		return old, g.claimInherited(old)
	}
	ctx, cancel := context.WithTimeout(g.ctx, g.cfg.StepTimeout)
	defer cancel()
	if old != nil && old.wants(ctx, kind, network, address) {
		return old, g.claimInherited(old)
	}
	if network == "" || address == "" && kind != KindListener {
		return nil, ErrNotFound
	}
	s, err := g.bind(ctx, kind, name, network, address)
	if old != nil && errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w (inherited under this name is %s %s, which is something else: keep that address, or change to the new one in two steps)", err, old.Network, old.Address)
	}
	return s, err
}

// reserve makes name this call's, and tells what was inherited under it.
func (g *Generation) reserve(name string) (old *socket, err error) {
	e := g.do(func() {
		switch {
		case g.reserved[name] || g.byName[name] != nil:
			err = errors.New("this name is in use already: names are identities, each is asked for once")
		case !g.mayAdd():
			err = g.errMayNotAdd()
		default:
			// Out of the map it is this call's alone, whatever happens to
			// the generation meanwhile.
			g.reserved[name] = true
			old = g.inherited[name]
			delete(g.inherited, name)
		}
	})
	return old, errors.Join(e, err)
}

// unreserve frees a name, and puts back what was inherited under it and not
// used. It runs on run.
func (g *Generation) unreserve(name string, old *socket) {
	delete(g.reserved, name)
	if old == nil {
		return
	}
	switch {
	case g.phase == PhaseDraining || g.phase == PhaseDone:
		old.closeDescriptor()
	case old.adopted || g.phase == PhasePreparing || g.phase == PhaseWaiting:
		g.inherited[name] = old
	default:
		g.drop(old)
		if g.phase == PhaseOwner || g.phase == PhaseHanding {
			g.removeDropped()
		}
	}
}

// mayAdd tells whether sockets can be added: not while they are handed over.
func (g *Generation) mayAdd() bool {
	return g.phase == PhasePreparing || g.phase == PhaseOwner || g.phase == PhaseProbation
}

func (g *Generation) errMayNotAdd() error {
	return fmt.Errorf("sockets cannot be added while this generation is %v", g.phase)
}

// claimInherited gives the descriptor to package net, if the conversions have
// not done so yet. It is consumed, also with an error.
func (g *Generation) claimInherited(s *socket) error {
	s.convert(nil)
	if s.converted != nil {
		return s.converted
	}
	s.Address = s.addr().String()
	return nil
}

// convert gives the descriptor to package net, once. c may be nil.
func (s *socket) convert(c *converter) {
	s.conversion.Do(func() {
		fd := s.fd
		s.fd = -1
		if c == nil {
			if c, s.converted = newConverter(); s.converted != nil {
				closeFD(fd)
				return
			}
			defer c.close()
		}
		ln, pc, err := c.convert(fd, s.Kind)
		if err == nil {
			if err = s.hold(ln, pc); err != nil {
				closeConn(ln, pc)
			}
		}
		s.converted = err
	})
}

// conversions convert what is received ahead of the calls to Listen, on all
// cores: for each socket the kernel is asked about ten questions.
type conversions struct {
	todo    chan *socket
	workers sync.WaitGroup
}

func startConversions(n int) *conversions {
	c := &conversions{todo: make(chan *socket, n)}
	for range runtime.GOMAXPROCS(0) {
		c.workers.Go(c.work)
	}
	return c
}

func (c *conversions) work() {
	slot, err := newConverter()
	if err != nil {
		return // Listen converts, or tells why not
	}
	defer slot.close()
	for s := range c.todo {
		s.convert(slot)
	}
}

// finish waits for what has been begun.
func (c *conversions) finish() {
	if c != nil {
		close(c.todo)
		c.workers.Wait()
	}
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

// bind makes a new socket, in the namespace of the set.
func (g *Generation) bind(ctx context.Context, kind Kind, name, network, address string) (*socket, error) {
	if isUnixPath(network, address) {
		if err := removeStale(network, address); err != nil {
			return nil, err
		}
	}
	if len(address) > maxAddress {
		return nil, fmt.Errorf("address of %d bytes, the limit is %d", len(address), maxAddress)
	}
	s := &socket{item: item{Name: name, Kind: kind, Network: network, Asked: address}, fd: -1, added: true}
	var ln net.Listener
	var pc net.PacketConn
	err := g.inSetNetns(func() (err error) {
		if kind == KindPacket {
			pc, err = g.cfg.ListenConfig.ListenPacket(ctx, network, address)
		} else {
			ln, err = g.cfg.ListenConfig.Listen(ctx, network, address)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.hold(ln, pc); err != nil {
		closeConn(ln, pc)
		return nil, err
	}
	s.Address = s.addr().String()
	return s, s.describe()
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

// enroll puts a claimed socket into the set and ends its reservation. unused
// is what was inherited under the same name and is something else.
func (g *Generation) enroll(s, unused *socket) error {
	s.way = g.gate.newPassage(s.setDeadline())
	var err error
	e := g.do(func() {
		g.unreserve(s.Name, unused)
		if !g.mayAdd() {
			err = g.errMayNotAdd()
			return
		}
		g.addSocket(s)
	})
	if e != nil && unused != nil {
		unused.closeDescriptor()
	}
	if err = errors.Join(e, err); err != nil {
		s.passageClose()
		if s.added {
			s.unlink()
		}
		s.closeDescriptor()
	}
	return err
}

func (g *Generation) addSocket(s *socket) {
	g.sockets = append(g.sockets, s)
	g.byName[s.Name] = s
}

// setDeadline gives what interrupts a pending accept or read.
func (s *socket) setDeadline() func(time.Time) error {
	if s.pc != nil {
		return s.pc.SetReadDeadline
	}
	return s.ln.(interface{ SetDeadline(time.Time) error }).SetDeadline
}

// remove takes a socket out of the set and closes it.
func (g *Generation) remove(s *socket) {
	if !s.passageClose() {
		return
	}
	g.do(func() {
		if g.byName[s.Name] != s {
			return // released already
		}
		delete(g.byName, s.Name)
		g.sockets = slices.DeleteFunc(slices.Clone(g.sockets), func(t *socket) bool { return t == s })
		if g.phase.Owns() || s.added && !g.shared() {
			s.unlink()
		}
		g.bury(s)
	})
}

// Adopt puts a descriptor that a socket activator (sd_listen_fds(3)) or the
// application itself made into the set, where Listen, ListenPacket and File
// find it as if it were inherited. It consumes f, also with an error. A
// socket is switched to non-blocking mode, which all its holders see.
func (g *Generation) Adopt(name string, f *os.File) error {
	defer f.Close()
	if err := CheckName(name); err != nil {
		return err
	}
	fd, err := sockFD(f)
	if err == nil {
		fd, err = dupFD(fd)
	}
	if err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	s, err := describeForeign(name, fd)
	if err != nil {
		closeFD(fd)
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	e := g.do(func() {
		if !g.mayAdd() {
			err = g.errMayNotAdd()
		}
		if g.inherited[name] != nil || g.byName[name] != nil || g.reserved[name] {
			err = errors.New("this name is in use already")
		}
		if err == nil {
			g.inherited[name] = s
		}
	})
	if err = errors.Join(e, err); err != nil {
		closeFD(fd)
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	return nil
}

// File gives the inherited file with that name, which is no socket that
// Listen or ListenPacket knows, or ErrNotFound. The caller gets a duplicate
// and closes it; the set keeps the file for the next successor.
func (g *Generation) File(name string) (f *os.File, err error) {
	e := g.do(func() {
		s := g.inherited[name]
		if s == nil {
			s = g.byName[name]
		}
		if s == nil || s.Kind != KindFile {
			err = fmt.Errorf("file %q: %w", name, ErrNotFound)
			return
		}
		fd, derr := dupFD(s.fd)
		if derr != nil {
			err = derr
			return
		}
		f = os.NewFile(uintptr(fd), name)
		if g.inherited[name] == s {
			delete(g.inherited, name)
			g.addSocket(s)
		}
	})
	return f, errors.Join(e, err)
}

// listener is a net.Listener that accepts only while its generation owns it.
type listener struct {
	g   *Generation
	s   *socket
	ln  net.Listener
	way *passage
}

var (
	_ net.Listener   = (*listener)(nil)
	_ net.PacketConn = (*packetConn)(nil)
)

// Accept waits for a connection. See Generation.Listen.
func (l *listener) Accept() (net.Conn, error) {
	for {
		if err := l.way.enter(); err != nil {
			return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
		}
		c, err := l.ln.Accept()
		if !l.way.leave(err) {
			return c, err
		}
	}
}

// Addr is the bound address.
func (l *listener) Addr() net.Addr { return l.ln.Addr() }

// Close takes the socket out of the set. Pending Accepts return net.ErrClosed.
func (l *listener) Close() error {
	l.g.remove(l.s)
	return nil
}

// SetDeadline bounds Accept.
func (l *listener) SetDeadline(t time.Time) error { return l.way.setUserDeadline(t) }

// packetConn is a net.PacketConn that reads only while its generation owns it.
type packetConn struct {
	g   *Generation
	s   *socket
	pc  net.PacketConn
	way *passage
}

// ReadFrom waits for a packet. See Generation.ListenPacket.
func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if err := p.way.enter(); err != nil {
			return 0, nil, &net.OpError{Op: "read", Net: p.LocalAddr().Network(), Source: p.LocalAddr(), Err: err}
		}
		n, addr, err := p.pc.ReadFrom(b)
		if !p.way.leave(err) {
			return n, addr, err
		}
	}
}

// WriteTo sends a packet, also while another generation owns the socket: what
// was read can still be answered.
func (p *packetConn) WriteTo(b []byte, addr net.Addr) (int, error) { return p.pc.WriteTo(b, addr) }

// LocalAddr is the bound address.
func (p *packetConn) LocalAddr() net.Addr { return p.pc.LocalAddr() }

// Close takes the socket out of the set.
func (p *packetConn) Close() error {
	p.g.remove(p.s)
	return nil
}

// SetDeadline bounds ReadFrom and WriteTo.
func (p *packetConn) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

// SetReadDeadline bounds ReadFrom.
func (p *packetConn) SetReadDeadline(t time.Time) error { return p.way.setUserDeadline(t) }

// SetWriteDeadline bounds WriteTo.
func (p *packetConn) SetWriteDeadline(t time.Time) error { return p.pc.SetWriteDeadline(t) }
