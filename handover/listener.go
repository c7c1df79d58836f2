package handover

import (
	"errors"
	"net"
	"time"
)

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
		c, err := l.way.enter()
		if c != nil {
			return c, nil
		}
		if err != nil {
			return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
		}
		c, err = l.ln.Accept()
		if err == nil {
			at(l.g.number, "accept")
		}
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
		if _, err := p.way.enter(); err != nil {
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

// duplicate duplicates a socket of the set.
func (g *Generation) duplicate(s *socket) (fd int, err error) {
	fd = -1
	e := g.do(func() {
		if g.byName[s.Name] != s {
			err = net.ErrClosed
			return
		}
		fd, err = dupFD(s.fd)
	})
	return fd, errors.Join(e, err)
}
