package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/handoverd/handoverd/scm"
)

// ErrNotMoved is why a connection stays where it is: there is no successor
// that takes connections, or it did not take this one.
var ErrNotMoved = errors.New("connection not moved")

// move is a connection that somebody wants to give away.
type move struct {
	conn  net.Conn
	item  movedItem
	tries int
	done  chan error // with room for one
}

// Movable tells whether MoveConn has a chance: a successor owns the listener
// for good, and takes connections.
func (l *listener) Movable() bool { return l.g.movable.Load() }

// MoveConn gives c to the successor, where it comes out of the Accept of the
// listener with this one's name. c is a connection that came from Accept, here
// or in an earlier generation; nobody may be reading from it or writing to it.
// unread are bytes that were read from it and not dealt with: there they are
// the first that are read. state is whatever the other side needs in order to
// go on. Both together have at most 32 KiB.
//
// c stays the caller's, who closes it. After nil it is the successor's as
// well, and must not be used any more; Close without CloseWrite is all right
// then, since the socket stays open there. After an error, of which errors.Is
// says ErrNotMoved, the caller goes on with it. A successor that did not answer
// because it is stopped may hold a copy until it wakes up or dies, so that the
// client sees the end only if CloseWrite comes before Close.
//
// ctx covers the time until c is on its way, after which the outcome is waited
// for: Config.StepTimeout, and as often again as there are owners that go away
// one after the other without an answer, up to four.
//
// A generation that is superseded in turn goes on with Accept until that
// returns net.ErrClosed: before that it gives what was moved here last.
func (l *listener) MoveConn(ctx context.Context, c net.Conn, unread, state []byte) error {
	if !l.Movable() {
		return fmt.Errorf("%w: there is no successor that takes connections", ErrNotMoved)
	}
	if m, ok := c.(*movedConn); ok { // it has moved before
		c, unread = m.Conn, append(unread[:len(unread):len(unread)], m.rest()...)
	}
	if n := len(unread) + len(state); n > maxMoved {
		return fmt.Errorf("%w: %d bytes of unread data and state, the limit is %d", ErrNotMoved, n, maxMoved)
	}
	m := &move{conn: c, item: movedItem{Listener: l.s.Name, Unread: unread, State: state}, done: make(chan error, 1)}
	select {
	case l.g.moves <- m:
		return <-m.done
	case <-l.g.movesOver:
		return fmt.Errorf("%w: this generation has ended", ErrNotMoved)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNotMoved, ctx.Err())
	}
}

// movedConn is a connection that was moved here.
type movedConn struct {
	net.Conn
	state []byte

	mu     sync.Mutex
	unread []byte
}

// Read gives what the predecessor had read first.
func (c *movedConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	if len(c.unread) > 0 {
		defer c.mu.Unlock()
		n := copy(b, c.unread)
		c.unread = c.unread[n:]
		return n, nil
	}
	c.mu.Unlock()
	return c.Conn.Read(b)
}

func (c *movedConn) rest() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unread
}

// Moved gives what c consists of: the bare connection, the bytes that come
// before those which are read from that, and the state.
func (c *movedConn) Moved() (bare net.Conn, unread, state []byte) {
	return c.Conn, c.rest(), c.state
}

// CloseWrite is the bare connection's.
func (c *movedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// adopt takes connections that an earlier generation moves here, and answers.
// It consumes f. An error ends the conversation. died tells, if the answer
// cannot be sent, whether the sender has died over them, and so has no copies
// nor anybody else.
func (g *Generation) adopt(l *link, f *frameConnections, died func() bool) error {
	defer dropFrame(f)
	conv, err := newConverter()
	if err == nil && len(f.Items) == 0 {
		conv.close()
		err = errNoRoom
	}
	if err != nil {
		return l.sendWithin(g.cfg.StepTimeout, frameAdopted{Type: typeAdopted, Stop: shorten(err.Error())})
	}
	defer conv.close()
	type newcomer struct {
		way  *passage
		conn *movedConn
	}
	var (
		taken  []newcomer
		answer = frameAdopted{Type: typeAdopted}
	)
	if g.cfg.NoMove {
		answer.Stop = takesNone
	}
	listeners, leaves := g.listenersFor(f.Items)
	for i, it := range f.Items {
		s := listeners[it.Listener]
		if s == nil {
			continue
		}
		fd := f.fds[i]
		f.fds[i] = -1
		c, err := receiveConn(conv, fd, it.Cookie, s.Network)
		if err != nil {
			g.log.Warn("connection not taken", "listener", it.Listener, "error", err)
			continue
		}
		if !s.way.expect(1) {
			c.Close()
			leaves = leaves || g.gate.hasEnded()
			continue
		}
		taken = append(taken, newcomer{s.way, &movedConn{Conn: c, unread: it.Unread, state: it.State}})
		answer.Cookies = append(answer.Cookies, it.Cookie)
	}
	// The sender has its copies until it gets this. So what is served here
	// has been acknowledged, and what has not been is served there, or by the
	// next owner, if this generation is about to leave.
	keep := false
	if err = errLeaves; !leaves {
		err = l.sendWithin(g.cfg.StepTimeout, answer)
		keep = err == nil || died()
	}
	for _, n := range taken {
		if keep {
			n.way.arrive(n.conn)
			continue
		}
		n.way.arrive(nil)
		n.conn.Close()
	}
	g.log.Debug("connections moved here", "taken", len(answer.Cookies), "of", len(f.Items), "kept", keep)
	return err
}

// takesNone is why a generation takes no connections.
const takesNone = "this generation takes no connections"

// errNoRoom is why it takes no more.
var errNoRoom = errors.New("no room for more descriptors: RLIMIT_NOFILE")

// listenersFor finds the listeners of connections. In probation there are none:
// if this process dies then, no connection of an earlier one may be lost.
func (g *Generation) listenersFor(items []movedItem) (all map[string]*socket, leaves bool) {
	all = map[string]*socket{}
	leaves = g.do(func() {
		switch g.phase {
		case PhaseOwner, PhaseHanding, PhaseGranting, PhaseStandby:
		default:
			leaves = g.phase == PhaseDraining
			return
		}
		for _, it := range items {
			if s := g.byName[it.Listener]; s != nil && s.ln != nil && !g.cfg.NoMove {
				all[it.Listener] = s
			}
		}
	}) != nil || leaves
	return all, leaves
}

// errLeaves: the sender finds the conversation closed, and goes to the next owner.
var errLeaves = errors.New("this generation leaves")

// receiveConn makes a connection of a received descriptor, which it consumes.
// network is that of its listener.
func receiveConn(conv *converter, fd int, want cookie, network string) (net.Conn, error) {
	info, err := inspect(fd)
	if err == nil && (!info.is(network) || info.accepting || info.cookie != want) {
		err = errors.New("the descriptor is not that connection")
	}
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	c, err := conv.conn(fd)
	if err == nil && c.RemoteAddr() == nil {
		// Reset meanwhile. What comes from Accept has an address.
		c.Close()
		return nil, errors.New("the connection has ended")
	}
	return c, err
}

// parting is what a draining generation and its successor have to say to each
// other: how the drain goes, and which connections move. It is one goroutine,
// which looks for the next owner when the successor goes away.
type parting struct {
	g      *Generation
	l      *link     // nil while there is no listener
	dialed bool      // l was dialed, and is no takeover's
	takes  bool      // the other side takes connections
	batch  []*move   // sent, and not answered yet
	queue  []*move   // to send first
	silent int       // how often in a row nobody answered in time
	deaf   int       // how many in a row closed before they said that they take connections
	give   *patience // until the answer, or until the other side says that it takes connections
}

const (
	// moveTries is how often a connection is sent to a process that goes away
	// before it answers, and how many are looked for that do so before they
	// can be sent anything: in a chain of takeovers there may be some.
	moveTries = 4
	// moveSilences is how many may be silent: the successor, and whoever
	// owns then.
	moveSilences = 2
)

// press gets the queue on its way. It returns when something has to come from
// the other side first, or nothing waits any more.
func (t *parting) press() {
	for len(t.queue) > 0 && t.batch == nil {
		switch {
		case !t.g.movable.Load():
			t.refuse("nobody takes connections")
		case t.l != nil && t.takes:
			t.sendBatch()
		case t.l != nil:
			return
		case t.deaf >= moveTries:
			t.deaf = 0
			t.refuse("no owner listens")
		case !t.dial():
			t.refuse("there is no owner to take it")
		}
	}
}

// next gives what wants to move, or nil.
func (t *parting) next() *move {
	if len(t.queue) > 0 {
		m := t.queue[0]
		t.queue = t.queue[1:]
		return m
	}
	select {
	case m := <-t.g.moves:
		return m
	default:
		return nil
	}
}

// sendBatch sends what wants to move, as far as it fits one packet.
func (t *parting) sendBatch() {
	var (
		fds   []int
		items []json.RawMessage
		size  int
	)
	defer func() { closeAll(fds) }()
	for len(items) < scm.MaxFDs {
		m := t.next()
		if m == nil {
			break
		}
		fd, c, err := sharedFD(m.conn)
		if err != nil {
			m.done <- fmt.Errorf("%w: %w", ErrNotMoved, err)
			continue
		}
		m.item.Cookie = c
		b, err := json.Marshal(m.item)
		if err != nil {
			closeFD(fd)
			m.done <- fmt.Errorf("%w: %w", ErrNotMoved, err)
			continue
		}
		if size+len(b) >= maxBatchJSON && len(items) > 0 {
			closeFD(fd)
			t.queue = append(t.queue, m)
			break
		}
		size += len(b) + 1
		fds, items, t.batch = append(fds, fd), append(items, b), append(t.batch, m)
	}
	if len(items) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.g.ctx, t.g.cfg.moveTimeout)
	defer cancel()
	f := rawConnections{Type: typeMoved, Items: items, Withdrawn: t.g.word.withdrawals(t.g.number).Load()}
	err := t.l.send(ctx, f, fds...)
	t.give.reset(t.g.cfg.moveTimeout)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		t.expire()
	case err != nil:
		t.g.log.Debug("connections not sent", "error", err)
		t.lose(true)
	}
}

// rawConnections is frameConnections with items that are encoded already.
type rawConnections struct {
	Type      string            `json:"type"`
	Items     []json.RawMessage `json:"items"`
	Withdrawn uint64            `json:"withdrawn,omitempty"`
}

// fits tells whether an answer is one to what was sent last.
func (t *parting) fits(a *frameAdopted) bool {
	for _, c := range a.Cookies {
		if !slices.ContainsFunc(t.batch, func(m *move) bool { return m.item.Cookie == c }) {
			return false
		}
	}
	return t.batch != nil || a.Stop != ""
}

// answered is told what became of a batch.
func (t *parting) answered(a *frameAdopted) {
	if a.Stop != "" {
		t.g.log.Warn("the successor takes no more connections", "reason", a.Stop)
		t.takes = false
		t.g.movable.Store(false)
	}
	for _, m := range t.batch {
		if slices.Contains(a.Cookies, m.item.Cookie) {
			m.done <- nil
		} else {
			m.done <- fmt.Errorf("%w: the successor did not take it", ErrNotMoved)
		}
	}
	t.batch, t.silent = nil, 0
	t.give.Stop()
}

// expire is told that the other side has not answered in time. That one may be
// stopped, and the connections have waited long enough: they go on here.
func (t *parting) expire() {
	t.g.log.Warn("no answer about connections, looking for the next owner")
	t.silent++
	t.lose(false)
}

// lose gives the listener up. What it has answered until then counts; what it
// has not is still ours, since it must not serve that: its answer would fail.
func (t *parting) lose(again bool) {
	t.l.conn.CloseRead()
	for t.batch != nil {
		in := <-t.l.in
		dropFrame(in.frame)
		if a, ok := in.frame.(*frameAdopted); ok && t.fits(a) {
			t.answered(a)
		}
		if in.err != nil {
			break
		}
	}
	t.end(again)
}

// end forgets a listener that has gone, or that was told to. What it has not
// answered is sent again, to somebody else, or stays.
func (t *parting) end(again bool) {
	if len(t.batch) > 0 {
		// From here on the other side must not take it for its own, even
		// if we die, and it finds that.
		t.g.word.withdrawals(t.g.number).Add(1)
	}
	if t.dialed && !t.takes {
		t.deaf++
	}
	if t.silent >= moveSilences {
		t.g.movable.Store(false)
	}
	t.l.close()
	t.l, t.takes = nil, false
	t.give.Stop()
	for _, m := range t.batch {
		if m.tries++; again && m.tries < moveTries {
			t.queue = append(t.queue, m)
			continue
		}
		m.done <- fmt.Errorf("%w: no answer from the successor", ErrNotMoved)
	}
	t.batch = nil
}

// refuse answers everybody who waits.
func (t *parting) refuse(why string) {
	for _, m := range t.queue {
		m.done <- fmt.Errorf("%w: %s", ErrNotMoved, why)
	}
	t.queue = nil
}
