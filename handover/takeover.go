package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// takeover is the owner's side of a takeover. It is one goroutine, that of
// the conversation; it asks run for each change of phase.
type takeover struct {
	g             *Generation
	link          *link
	proc          *process // nil if the kernel has no pidfds
	peer          PeerStatus
	next          uint64    // the successor's generation
	before, after ownership // the word during this takeover, and after its failure
	grace         time.Duration
	takes         bool // the successor takes connections

	probation time.Duration
	items     []*socket // what is handed over, in order
	states    []*socket // of these, the memory files made for this takeover

	leaving   chan struct{} // closed by leave
	leaveOnce sync.Once
	ended     chan struct{} // closed when the takeover has failed
}

// leave asks for the fastest end: this process has to go.
func (t *takeover) leave() { t.leaveOnce.Do(func() { close(t.leaving) }) }

// handOver serves a hello that wants to take over.
func (g *Generation) handOver(l *link, hello *frameHello) error {
	t := &takeover{
		g: g, link: l, leaving: make(chan struct{}), ended: make(chan struct{}),
		peer: PeerStatus{Program: hello.Program, Build: hello.Build, PID: hello.PID},
	}
	t.takes = hello.Moves && !g.cfg.NoMove
	t.probation = min(time.Duration(hello.Probation), maxProbation)
	defer func() { t.proc.close() }()
	if pidfd, err := peerPidfd(l.conn); err == nil {
		if t.proc, err = watchProcess(pidfd); err != nil {
			return refusef(CodeInternal, "watch the successor: %v", err)
		}
	}
	var err error
	if e := g.do(func() { err = g.beginTakeover(t, hello) }); e != nil {
		return refusef(CodeStopping, "generation %d ends", g.number)
	}
	if err != nil {
		return err
	}
	at(g.number, "owner/hello")
	g.log.Info("successor connected", "next", t.next, "program", hello.Program, "build", hello.Build, "pid", hello.PID)
	err = t.transfer()
	g.do(g.endSending)
	for _, s := range t.states {
		closeFD(s.fd)
	}
	if err != nil {
		return t.failed(err)
	}
	if err := t.awaitReady(); err != nil {
		return t.failed(err)
	}
	return t.grant()
}

// beginTakeover decides about a hello. It runs on run.
func (g *Generation) beginTakeover(t *takeover, hello *frameHello) error {
	switch g.phase {
	case PhaseOwner:
	case PhasePreparing, PhaseWaiting:
		return refusef(CodeNotReady, "generation %d is not ready itself: try again when it is", g.number)
	case PhaseProbation:
		return refusef(CodeBusy, "generation %d is in probation for %v more: try again later, or commit it", g.number, time.Until(g.probation).Round(time.Millisecond))
	case PhaseHanding, PhaseGranting, PhaseStandby, PhaseReturning:
		return refusef(CodeBusy, "generation %d is %v: another takeover is under way, try again later", g.number, g.phase)
	default:
		return refusef(CodeStopping, "generation %d ends", g.number)
	}
	if hello.Revision < g.cfg.Revision && !hello.Force {
		return refusef(CodeRevision, "revision %d is lower than the owner's %d, so this looks like an old version that was started again: raise the revision, or force the takeover", hello.Revision, g.cfg.Revision)
	}
	t.next = g.next
	t.before, t.after = settled(g.number, g.attempt), settled(g.number, g.attempt+1)
	t.peer.Generation = t.next
	t.items = append(t.items, &g.control.ctl, &g.control.lock, &socket{fd: g.word.fd, item: item{Name: nameWord, Kind: kindWord}})
	if g.netns.fd >= 0 {
		t.items = append(t.items, &socket{fd: g.netns.fd, item: g.netns.item})
	}
	t.items = append(t.items, g.sockets...)
	for _, name := range slices.Sorted(maps.Keys(g.inherited)) { // kept
		t.items = append(t.items, g.inherited[name])
	}
	if len(t.items)+len(g.offers) > maxItems {
		t.items = nil
		return refusef(CodeLimit, "more than %d descriptors", maxItems)
	}
	g.takeover = t
	g.conns[t.link] = true
	g.sending = true
	g.changePhase(PhaseHanding, nil)
	return nil
}

// failed goes back to being the owner.
func (t *takeover) failed(err error) error {
	g := t.g
	if !g.word.swap(t.before, t.after) {
		g.word.swap(t.before|flagDeclined, t.after)
	}
	g.do(func() {
		g.takeover = nil
		g.attempt++
		g.failure = err
		if g.phase == PhaseHanding || g.phase == PhaseGranting || g.phase == PhaseStandby {
			g.changePhase(PhaseOwner, err)
			g.removeDropped()
			if g.closing {
				g.giveUp(ErrStopRequested)
			}
		}
	})
	g.log.Warn("takeover failed, this generation serves on", "next", t.next, "error", err)
	close(t.ended)
	return err
}

// stepCtx bounds one step.
func (t *takeover) stepCtx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.g.ctx, t.g.cfg.StepTimeout)
}

// offerStates makes the state blobs, while we serve.
func (t *takeover) offerStates() error {
	var offers map[string]Offer
	t.g.do(func() {
		offers = make(map[string]Offer, len(t.g.offers))
		for name, f := range t.g.offers {
			offers[name] = f
		}
	})
	ctx, cancel := context.WithTimeout(t.g.ctx, t.g.cfg.ReadyTimeout)
	defer cancel()
	for name, f := range offers {
		data, err := f(ctx)
		if err != nil {
			return refusef(CodeInternal, "state %q: %v", name, err)
		}
		fd, err := sealState(name, data)
		if err != nil {
			return refusef(CodeInternal, "%v", err)
		}
		s := &socket{fd: fd, item: item{Name: name, Kind: kindState}}
		t.states = append(t.states, s)
		t.items = append(t.items, s)
	}
	return nil
}

// transfer makes the state blobs and sends everything, each batch proved by
// the cookies that the successor reads from what it got.
func (t *takeover) transfer() error {
	if err := t.offerStates(); err != nil {
		return err
	}
	return t.sendAll()
}

// sendAll sends welcome and all items.
func (t *takeover) sendAll() error {
	g := t.g
	for _, s := range t.items {
		if s.Cookie == 0 {
			info, err := inspect(s.fd)
			if err != nil {
				return refusef(CodeInternal, "inspect %s: %v", s.Name, err)
			}
			s.Cookie = info.cookie
		}
	}
	t.grace = g.cfg.AliveTimeout
	welcome := frameWelcome{
		Type: typeWelcome, Protocol: t.link.protocol, Generation: g.number, Next: t.next, Attempt: t.before.attempt(), Count: len(t.items),
		Program: g.cfg.Program, Build: g.cfg.Build, PID: os.Getpid(), Revision: g.cfg.Revision,
		ReadyTimeout: millis(g.cfg.ReadyTimeout), Probation: millis(t.probation),
		AliveEvery: millis(max(g.cfg.AliveTimeout/10, time.Millisecond)),
	}
	ctx, cancel := t.stepCtx()
	defer cancel()
	var pidfds []int
	if fd, err := selfPidfd(); err == nil {
		defer closeFD(fd)
		pidfds = append(pidfds, fd)
	}
	if err := t.link.send(ctx, welcome, pidfds...); err != nil {
		return fmt.Errorf("send welcome: %w", err)
	}
	at(g.number, "owner/welcome")
	for first := 0; first < len(t.items); {
		n, err := t.sendBatch(first)
		if err != nil {
			return fmt.Errorf("sockets from %d on: %w", first, err)
		}
		first += n
	}
	return nil
}

// sendBatch sends as many items as fit one packet, and waits for the proof
// that they arrived: more in flight would meet ETOOMANYREFS (unix(7)).
func (t *takeover) sendBatch(first int) (int, error) {
	var (
		fds  = make([]int, 0, scm.MaxFDs)
		raw  = make([]json.RawMessage, 0, scm.MaxFDs)
		size int
	)
	for _, s := range t.items[first:min(len(t.items), first+scm.MaxFDs)] {
		b, err := marshal(s.item)
		if err != nil {
			return 0, err
		}
		if size += len(b) + 1; size > maxBatchJSON && len(raw) > 0 {
			break
		}
		raw, fds = append(raw, b), append(fds, s.fd)
	}
	ctx, cancel := t.stepCtx()
	defer cancel()
	if err := t.link.send(ctx, rawSockets{Type: typeSockets, First: first, Items: raw}, fds...); err != nil {
		return 0, err
	}
	at(t.g.number, "owner/sockets")
	f, err := t.link.recvPlain(ctx)
	if err != nil {
		return 0, fmt.Errorf("await received: %w", err)
	}
	r, ok := f.(*frameReceived)
	if !ok {
		if s, ok := f.(*frameSimple); ok && s.Type == typeRollback {
			return 0, withdrew(s)
		}
		return 0, refusef(CodeProtocol, "%T instead of received", f)
	}
	if r.First != first || len(r.Cookies) != len(fds) {
		return 0, refusef(CodeProtocol, "received %d from %d on, sent %d from %d on", len(r.Cookies), r.First, len(fds), first)
	}
	for i, c := range r.Cookies {
		if s := t.items[first+i]; c != s.Cookie {
			return 0, refusef(CodeProtocol, "%s: received the socket with cookie %d, sent %d", s.Name, c, s.Cookie)
		}
	}
	at(t.g.number, "owner/received")
	return len(fds), nil
}

// rawSockets is frameSockets with items that are encoded already.
type rawSockets struct {
	Type  string            `json:"type"`
	First int               `json:"first"`
	Items []json.RawMessage `json:"items"`
}

var (
	errWithdrew = errors.New("the successor withdrew")
	errDied     = errors.New("the successor died")
	errSilent   = errors.New("the successor fell silent")
)

// peerPidfd gets a pidfd of the connecting process: SO_PEERPIDFD, or on
// kernels before 6.5 by the pid, which may be reused only if the peer has died,
// and then its connection says so.
//
// A successor in this very process has none: it dies with us, and must not be
// killed.
func peerPidfd(c *scm.Conn) (int, error) {
	cred, err := c.PeerCred()
	if err != nil {
		return -1, err
	}
	if int(cred.PID) == os.Getpid() {
		return -1, errNoPidfd
	}
	fd, err := c.PeerPidfd()
	if err == nil || !errors.Is(err, errors.ErrUnsupported) {
		return fd, err
	}
	if cred.PID <= 0 {
		return -1, errNoPidfd
	}
	return pidfdOf(int(cred.PID))
}
