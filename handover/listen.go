package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"
)

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
	s, err := g.claim(name, KindListener, network, address, false)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", name, err)
	}
	return &listener{g: g, s: s, ln: s.ln, way: s.way}, nil
}

// ListenPacket is Listen for datagram sockets: udp, udp4, udp6 or unixgram.
// Reading waits as Accept does; writing does not.
func (g *Generation) ListenPacket(name, network, address string) (net.PacketConn, error) {
	s, err := g.claim(name, KindPacket, network, address, false)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", name, err)
	}
	return &packetConn{g: g, s: s, pc: s.pc, way: s.way}, nil
}

// Hold gives the socket with that name, as Listen or ListenPacket would, to an
// application that does not accept from it: a holder, or one whose child does.
// Nothing in this process waits for connections then, so that none wakes it.
// An empty network takes what was inherited, of either kind.
func (g *Generation) Hold(name, network, address string) (*Held, error) {
	kind := kindOf(network)
	if network == "" {
		g.do(func() {
			if s := g.inherited[name]; s != nil {
				kind = s.Kind
			}
		})
	}
	s, err := g.claim(name, kind, network, address, true)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", name, err)
	}
	return &Held{Socket: s.public(), g: g, s: s}, nil
}

// Held is a socket of the set that its application does not accept from.
type Held struct {
	Socket

	g *Generation
	s *socket
}

// Duplicate gives a new descriptor of the socket, which is close-on-exec and the
// caller's to close. It shares O_NONBLOCK, which is set, with all other holders.
func (h *Held) Duplicate() (fd int, err error) { return h.g.duplicate(h.s) }

// claim takes an inherited socket or makes a new one. Package net lets go of
// one that is held.
func (g *Generation) claim(name string, kind Kind, network, address string, held bool) (*socket, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if network != "" && kindOf(network) != kind {
		return nil, net.UnknownNetworkError(network)
	}
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	old, err := g.reserve(name)
	if err != nil {
		return nil, err
	}
	s, err := g.claimReserved(old, name, kind, network, address)
	if err != nil {
		if g.do(func() { g.unreserve(name, old) }) != nil && old != nil {
			g.closeLate(old)
		}
		return nil, err
	}
	if s == old {
		old = nil
	}
	if held {
		s.release()
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
		g.closeLate(old)
	case old.adopted || g.phase == PhasePreparing || g.phase == PhaseWaiting || g.cfg.Unclaimed == KeepUnclaimed:
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

// bind makes a new socket, in the namespace of the set.
//
// When the last owner was killed a moment ago, the kernel may still be closing
// its sockets, one after the other, though its lock is free: that is waited for.
func (g *Generation) bind(ctx context.Context, kind Kind, name, network, address string) (*socket, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		s, err := g.bindOnce(ctx, kind, name, network, address)
		if !errors.Is(err, syscall.EADDRINUSE) || !g.crashed || time.Since(g.started) > g.cfg.StepTimeout {
			return s, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}

func (g *Generation) bindOnce(ctx context.Context, kind Kind, name, network, address string) (*socket, error) {
	if isUnixPath(network, address) {
		if err := removeStale(network, address); err != nil {
			return nil, err
		}
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
		g.closeLate(unused)
	}
	if err = errors.Join(e, err); err != nil {
		s.passageClose()
		if g.do(func() { g.closeLate(s) }) != nil {
			g.closeLate(s)
		}
	}
	return err
}

// closeLate closes a socket that was being asked for when the generation
// ended. It runs on run, or when run has ended.
func (g *Generation) closeLate(s *socket) {
	if s.added || g.gaveUp {
		s.unlink()
	}
	s.closeDescriptor()
}

func (g *Generation) addSocket(s *socket) {
	g.sockets = append(g.sockets, s)
	g.byName[s.Name] = s
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
		if g.phase == PhaseOwner || s.added && !g.shared() {
			s.unlink()
		} else {
			// A predecessor or a successor may still need the path.
			g.dropped = append(g.dropped, s)
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
