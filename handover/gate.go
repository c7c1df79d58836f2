package handover

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

type gateState int

const (
	gateShut  gateState = iota // callers wait
	gateOpen                   // callers pass
	gateEnded                  // callers get net.ErrClosed
)

// gate lets accepts and reads through while their generation owns the
// sockets. Shutting it interrupts the pending ones and waits until each has
// returned, so that what is accepted after that is accepted by somebody else;
// opening it again undoes that, and the callers notice nothing.
type gate struct {
	owns func() bool // asked before each pass; nil: always

	mu       sync.Mutex
	changed  sync.Cond // signals a change of state, or of a passage that waits
	state    gateState
	inflight int
	idle     chan struct{} // non-nil while shut waits; closed when inflight is 0
	members  map[*passage]struct{}

	expecting map[*passage]struct{} // those to which connections were moved, ever

	first, last time.Time // when something was accepted or read
}

// passage is one socket's way through the gate.
type passage struct {
	gate        *gate
	setDeadline func(time.Time) error // of the pending operation; never fails on an open socket

	// Guarded by gate.mu.
	inflight int
	waiting  int
	deadline time.Time // the user's
	late     bool      // the socket's deadline is not the user's
	dead     bool
	expected int        // connections that another process is moving here
	arrived  []net.Conn // those that are here: they come out before others
}

var longAgo = time.Unix(1, 0)

func newGate(owns func() bool) *gate {
	g := &gate{owns: owns, members: map[*passage]struct{}{}, expecting: map[*passage]struct{}{}}
	g.changed.L = &g.mu
	return g
}

func (g *gate) newPassage(setDeadline func(time.Time) error) *passage {
	p := &passage{gate: g, setDeadline: setDeadline}
	g.mu.Lock()
	g.members[p] = struct{}{}
	g.mu.Unlock()
	return p
}

// enter waits until p may pass, and then has to be followed by one leave, or
// until a connection has been moved here, which it returns. Whoever owns the
// socket: a moved connection is this process's.
func (p *passage) enter() (net.Conn, error) {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		over := p.dead || g.state == gateEnded
		switch {
		case len(p.arrived) > 0:
			c := p.arrived[0]
			p.arrived[0] = nil
			p.arrived = p.arrived[1:]
			return c, nil
		case over && p.expected == 0: // else they come soon, or not at all
			return nil, net.ErrClosed
		case !over && g.state == gateOpen && (g.owns == nil || g.owns()):
			p.restoreLocked()
			g.inflight++
			p.inflight++
			return nil, nil
		case !p.deadline.IsZero() && !time.Now().Before(p.deadline):
			return nil, os.ErrDeadlineExceeded
		}
		p.waitLocked()
	}
}

// restoreLocked gives the socket the user's deadline.
func (p *passage) restoreLocked() {
	if p.late {
		p.late = false
		p.setDeadline(p.deadline)
	}
}

// expect announces n connections, each of which is followed by arrive. It
// fails if nobody is going to ask for them any more.
func (p *passage) expect(n int) bool {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.dead || g.state == gateEnded {
		return false
	}
	p.expected += n
	g.expecting[p] = struct{}{}
	return true
}

// arrive gives an expected connection to enter, or nil if it does not come.
func (p *passage) arrive(c net.Conn) {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	p.expected--
	if c != nil {
		p.arrived = append(p.arrived, c)
		if p.inflight > 0 && !p.late {
			p.late = true // enter restores it
			p.setDeadline(longAgo)
		}
	}
	p.wakeLocked()
}

// times tells when something passed first and last.
func (g *gate) times() (first, last time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.first, g.last
}

// hasEnded tells whether nothing passes any more.
func (g *gate) hasEnded() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == gateEnded
}

// closeArrived closes the connections that nobody has asked for.
func (g *gate) closeArrived() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.expecting {
		for _, c := range p.arrived {
			c.Close()
		}
		p.arrived = nil
	}
	clear(g.expecting)
}

// waitLocked waits for a change, or for the user's deadline.
func (p *passage) waitLocked() {
	p.waiting++
	defer func() { p.waiting-- }()
	if p.deadline.IsZero() {
		p.gate.changed.Wait()
		return
	}
	wake := time.AfterFunc(time.Until(p.deadline), p.wake)
	defer wake.Stop()
	p.gate.changed.Wait()
}

// wake makes those that wait look again.
func (p *passage) wake() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.wakeLocked()
}

func (p *passage) wakeLocked() {
	if p.waiting > 0 {
		p.gate.changed.Broadcast()
	}
}

// leave ends what enter began. It tells whether err was only an interruption, or
// the end, so that the caller has to enter again.
func (p *passage) leave(err error) (again bool) {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inflight--
	p.inflight--
	if g.inflight == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
	if err == nil {
		g.last = time.Now()
		if g.first.IsZero() {
			g.first = g.last
		}
		return false
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return p.dead || p.deadline.IsZero() || time.Now().Before(p.deadline)
	case errors.Is(err, net.ErrClosed):
		// enter says so, too, but not before everything moved here is out.
		return p.dead || g.state == gateEnded
	}
	return false
}

// setUserDeadline is SetDeadline as the application knows it.
func (p *passage) setUserDeadline(t time.Time) error {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.dead {
		return net.ErrClosed
	}
	p.deadline = t
	p.wakeLocked()
	if g.state != gateOpen || p.late {
		p.late = true // open or enter sets it
		return nil
	}
	return p.setDeadline(t)
}

// close takes p out. The caller closes the socket after it.
func (p *passage) close() (first bool) {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.dead {
		return false
	}
	p.dead = true
	delete(g.members, p)
	p.wakeLocked()
	p.setDeadline(longAgo)
	return true
}

func (g *gate) setStateLocked(s gateState) {
	g.state = s
	g.changed.Broadcast()
}

// shut stops all passages and returns when the last has left, or with ctx's
// error, and then the gate is still shut.
func (g *gate) shut(ctx context.Context) error {
	g.mu.Lock()
	if g.state != gateOpen {
		g.mu.Unlock()
		return nil
	}
	g.setStateLocked(gateShut)
	for p := range g.members {
		if p.inflight > 0 {
			p.late = true
			p.setDeadline(longAgo)
		}
	}
	if g.inflight == 0 {
		g.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	g.idle = idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// open lets passages through, with the deadlines that the application set.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != gateShut {
		return
	}
	for p := range g.members {
		if len(p.arrived) == 0 { // else who is inside still has to come out
			p.restoreLocked()
		}
	}
	g.setStateLocked(gateOpen)
}

// end stops all passages for good.
func (g *gate) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == gateEnded {
		return
	}
	g.setStateLocked(gateEnded)
	for p := range g.members {
		p.setDeadline(longAgo)
	}
}
