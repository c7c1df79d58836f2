package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// Generation is this process's hold on a set of sockets.
//
// Its state belongs to one goroutine, run, which executes the functions that
// the others hand to it, one at a time. Fields below the line are touched
// only there.
type Generation struct {
	cfg     Config
	log     *slog.Logger
	number  uint64
	started time.Time

	gate        *gate // the application's sockets
	controlGate *gate
	control     *controlSocket // nil where the platform has none
	word        *word          // nil where the platform has none
	netns       netnsHandle
	pred        *predecessor // nil for a first generation

	tasks      chan *task
	ctx        context.Context // ends when Close gives up waiting
	cancel     context.CancelFunc
	superseded chan struct{}
	drained    chan struct{} // closed when report is set
	ended      chan struct{} // closed when run has returned
	wg         sync.WaitGroup
	closeOnce  sync.Once

	// ---- owned by run
	phase     Phase
	cause     error
	owner     time.Time
	next      uint64             // number of the next successor
	attempt   uint64             // failed takeovers, as the ownership word counts them
	sockets   []*socket          // asked for, in that order
	byName    map[string]*socket // the same
	inherited map[string]*socket
	reserved  map[string]bool // names that a Listen in progress will use
	unclaimed []Socket
	dropped   []*socket // unclaimed ones whose path is removed when ownership is settled
	states    map[string]int
	offers    map[string]Offer
	takeover  *takeover
	sending   bool      // descriptors are being sent: closing them waits
	graveyard []*socket // to close when sending ends
	adopted   bool      // ownership came without the predecessor's doing: it died, or left early
	draining  map[uint64]*PeerStatus
	failure   error
	probation time.Time // its end
	report    any
	finished  bool           // Drained was called
	conns     map[*link]bool // conversations on the control socket; true: outlives ownership
	pending   []*link        // those whose hello is awaited, oldest first
	lasting   int            // conversations that last
}

// Offer makes a state blob for a successor. It runs while the owner serves.
type Offer func(ctx context.Context) ([]byte, error)

func newGeneration(cfg Config, number uint64) *Generation {
	g := &Generation{
		cfg: cfg, number: number, next: number + 1, started: time.Now(),
		log:        cfg.Logger.With("generation", number),
		tasks:      make(chan *task),
		superseded: make(chan struct{}),
		drained:    make(chan struct{}),
		ended:      make(chan struct{}),
		inherited:  map[string]*socket{},
		reserved:   map[string]bool{},
		states:     map[string]int{},
		offers:     map[string]Offer{},
		draining:   map[uint64]*PeerStatus{},
		byName:     map[string]*socket{},
		conns:      map[*link]bool{},
		netns:      netnsHandle{fd: -1},
	}
	g.gate, g.controlGate = newGate(g.holdsWord), newGate(g.holdsWord)
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// holdsWord tells, from any goroutine, whether the ownership word still
// names this generation.
func (g *Generation) holdsWord() bool {
	return g.word == nil || g.word.load().generation() == g.number
}

func (g *Generation) run() {
	defer close(g.ended)
	for t := range g.tasks {
		t.f()
		t.f = nil
		t.done <- struct{}{}
		if g.phase == PhaseDone {
			return
		}
	}
}

// do runs f on the goroutine that owns the state, and returns when it has run.
func (g *Generation) do(f func()) error {
	t := taskPool.Get().(*task)
	t.f = f
	select {
	case g.tasks <- t:
		<-t.done
		taskPool.Put(t)
		return nil
	case <-g.ended:
		return ErrClosed
	}
}

// task is a function for run, and the signal that it has run.
type task struct {
	f    func()
	done chan struct{} // has room for the signal
}

var taskPool = sync.Pool{New: func() any { return &task{done: make(chan struct{}, 1)} }}

// changePhase is the only place where the phase changes. It runs on run.
func (g *Generation) changePhase(next Phase, cause error) {
	if next == g.phase {
		return
	}
	if !g.phase.mayBecome(next) {
		panic(fmt.Sprintf("handover: no transition from %v to %v", g.phase, next))
	}
	last := g.phase
	g.phase = next
	g.log.Debug("phase", "from", last.String(), "to", next.String(), "cause", cause)
	if next.Owns() && !last.Owns() && g.owner.IsZero() {
		g.owner = time.Now()
	}
	if next == PhaseDraining {
		g.cause = cause
		close(g.superseded)
	}
	g.emit(Event{Cause: cause})
}

// tryPhase is changePhase for those who act on a phase that they saw a moment
// ago: in between the generation may have been closed.
func (g *Generation) tryPhase(next Phase) bool {
	if !g.phase.mayBecome(next) {
		return false
	}
	g.changePhase(next, nil)
	return true
}

func (g *Generation) emit(e Event) {
	if g.cfg.OnEvent == nil {
		return
	}
	e.Time, e.Generation, e.Phase = time.Now(), g.number, g.phase
	g.cfg.OnEvent(e)
}

// Number is this generation's number: 1 for the first, and one more for each
// that was granted ownership since.
func (g *Generation) Number() uint64 { return g.number }

// Phase tells where this generation stands.
func (g *Generation) Phase() Phase {
	p := PhaseDone
	g.do(func() { p = g.phase })
	return p
}

// Superseded is closed when this generation has to drain: a successor owns
// the sockets for good, a stop was requested, or in probation ownership went
// back to the predecessor. Cause tells which.
func (g *Generation) Superseded() <-chan struct{} { return g.superseded }

// Cause tells why Superseded is closed: ErrSuperseded, ErrStopRequested,
// ErrRolledBack, ErrRevoked, or why the takeover failed. Nil before that.
func (g *Generation) Cause() error {
	select {
	case <-g.superseded:
	default:
		return nil
	}
	err := ErrClosed
	if g.do(func() { err = g.cause }) != nil {
		<-g.ended // run has returned: its fields are still
		err = g.cause
	}
	return err
}

// Unclaimed tells what the predecessor handed over and this generation did
// not ask for. It was closed when ownership was granted.
func (g *Generation) Unclaimed() (names []Socket) {
	g.do(func() { names = slices.Clone(g.unclaimed) })
	return names
}

// OfferState offers a state blob of at most 64 MiB to each successor, under a
// name. f runs once per takeover, before the successor gets anything; its
// error fails the takeover and nothing else. A nil f withdraws the offer.
func (g *Generation) OfferState(name string, f Offer) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return g.do(func() {
		if f == nil {
			delete(g.offers, name)
			return
		}
		g.offers[name] = f
	})
}

// State gives the state blob that the predecessor offered under name, or
// ErrNotFound. It can be asked for until Ready has returned.
func (g *Generation) State(name string) (data []byte, err error) {
	if e := g.do(func() {
		fd, ok := g.states[name]
		if !ok {
			err = fmt.Errorf("state %q: %w", name, ErrNotFound)
			return
		}
		if data, err = unsealState(fd); err != nil {
			err = fmt.Errorf("state %q: %w", name, err)
		}
	}); e != nil {
		return nil, e
	}
	return data, err
}

// Ready says that the application can serve. It returns nil when this
// generation owns the sockets, and from then on Accept returns connections.
//
// With an error the predecessor is still serving, and this generation is of no
// more use than to be closed. ctx bounds the wait; a ctx that ends after
// success is of no consequence.
func (g *Generation) Ready(ctx context.Context) error {
	var (
		err  error
		wait bool
	)
	if e := g.do(func() {
		switch {
		case g.phase == PhaseDraining:
			err = g.cause
		case g.phase != PhasePreparing:
			err = errors.New("ready was said before")
		case g.pred == nil || g.adopted:
			err = g.becomeOwner(PhaseOwner)
		default:
			wait = true
		}
	}); e != nil {
		return e
	}
	if err != nil || !wait {
		return err
	}
	return g.pred.command(ctx, cmdReady)
}

// becomeOwner opens the gates. It runs on run, in Preparing, Waiting or
// Returning, when the ownership word names this generation already. It fails
// if the generation was stopped meanwhile.
func (g *Generation) becomeOwner(next Phase) error {
	if !g.phase.mayBecome(next) {
		return errors.Join(fmt.Errorf("this generation is %v", g.phase), g.cause)
	}
	if g.control != nil {
		if err := listenAgain(g.control.ln); err != nil {
			// Only what clients see of our credentials is stale.
			g.log.Warn("control listener keeps its predecessor's credentials", "error", err)
		}
	}
	g.closeUnclaimed()
	g.changePhase(next, nil)
	if next == PhaseOwner {
		g.removeDropped()
	}
	g.gate.open()
	g.controlGate.open()
	return nil
}

// Stop asks this generation to end. An owner gives its sockets up; what is
// left of it is told by Superseded and Cause. With a successor that has
// received everything or is in probation, ownership goes to that one; in
// probation of our own it goes back to the predecessor. ctx bounds the wait
// for the other side.
func (g *Generation) Stop(ctx context.Context) error {
	for {
		again, err := g.stopOnce(ctx)
		if err == nil {
			err = ctx.Err()
		}
		if !again {
			return nil
		}
		if err != nil && !errors.Is(err, errKept) {
			return err
		}
	}
}

// stopOnce is one look at the phase and what follows from it. It asks to be
// called again until ownership is given up.
func (g *Generation) stopOnce(ctx context.Context) (again bool, err error) {
	var t *takeover
	var back bool
	if g.do(func() {
		switch g.phase {
		case PhasePreparing, PhaseWaiting:
			if g.pred == nil || g.adopted {
				g.giveUp(ErrStopRequested)
			} else {
				back = true
			}
		case PhaseOwner:
			g.giveUp(ErrStopRequested)
		case PhaseHanding, PhaseGranting, PhaseStandby:
			t = g.takeover
			t.leave()
		case PhaseProbation, PhaseReturning:
			back = true
		}
	}) != nil {
		return false, nil // closed
	}
	switch {
	case t != nil:
		select {
		case <-g.superseded:
		case <-t.ended:
		case <-ctx.Done():
		}
	case back:
		err = g.pred.command(ctx, cmdRollback)
	}
	select {
	case <-g.superseded:
		return false, nil
	default:
		return true, err
	}
}

// shared tells whether another generation may have what this one has added.
func (g *Generation) shared() bool {
	switch g.phase {
	case PhasePreparing, PhaseWaiting, PhaseProbation, PhaseReturning, PhaseOwner:
		return false
	}
	return true
}

// giveUp ends ownership without a successor: sockets are closed, paths and
// the lock are removed. It runs on run.
func (g *Generation) giveUp(cause error) {
	g.gate.end()
	g.controlGate.end()
	for _, s := range g.sockets {
		s.unlink()
	}
	for _, s := range g.inherited {
		s.unlink()
	}
	g.removeDropped()
	if g.control != nil {
		g.control.unlink()
	}
	g.releaseSockets()
	g.changePhase(PhaseDraining, cause)
}

// letGo ends ownership in favour of another generation, which has copies of
// everything. It runs on run.
func (g *Generation) letGo(cause error) {
	for _, s := range g.sockets {
		if s.added && !g.shared() {
			s.unlink()
		}
	}
	g.gate.end()
	g.controlGate.end()
	g.releaseSockets()
	g.changePhase(PhaseDraining, cause)
}

// releaseSockets closes all sockets of the set and what came with it.
func (g *Generation) releaseSockets() {
	for _, s := range g.sockets {
		g.bury(s)
	}
	g.sockets = nil
	clear(g.byName)
	for _, s := range g.inherited {
		g.bury(s)
	}
	clear(g.inherited)
	for _, fd := range g.states {
		closeFD(fd)
	}
	clear(g.states)
	if g.control != nil {
		g.control.close()
	}
	g.netns.close()
	// Conversations with predecessors and operators end, so that they find
	// the next owner. The one with our own successor goes on.
	for l, keep := range g.conns {
		if !keep {
			l.conn.Close()
		}
	}
	if g.pred != nil {
		g.pred.link.conn.Close()
	}
}

// bury closes a socket, when its descriptor is not being sent.
func (g *Generation) bury(s *socket) {
	s.passageClose()
	if g.sending {
		g.graveyard = append(g.graveyard, s)
		return
	}
	s.closeDescriptor()
}

// endSending closes what was given up meanwhile.
func (g *Generation) endSending() {
	g.sending = false
	for _, s := range g.graveyard {
		s.closeDescriptor()
	}
	g.graveyard = nil
}

// closeUnclaimed closes what was inherited and not asked for. Its paths stay
// until ownership is settled, since the predecessor might need them again.
func (g *Generation) closeUnclaimed() {
	names := make([]string, 0, len(g.inherited))
	for name := range g.inherited {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		g.drop(g.inherited[name])
	}
	clear(g.inherited)
	for name, fd := range g.states {
		closeFD(fd)
		delete(g.states, name)
	}
}

// drop closes one socket that was inherited and not asked for.
func (g *Generation) drop(s *socket) {
	g.unclaimed = append(g.unclaimed, s.public())
	g.dropped = append(g.dropped, s)
	s.closeDescriptor()
	g.log.Warn("inherited and not asked for: closed", "name", s.Name, "network", s.Network, "address", s.Address)
}

func (g *Generation) removeDropped() {
	for _, s := range g.dropped {
		s.unlink()
	}
	g.dropped = nil
}

// Drained tells the successor, and operators who wait, that this generation
// has finished its connections. report is anything that encodes as JSON, in at
// most 32 KiB, or nil. It does not wait; Close does.
func (g *Generation) Drained(report any) error {
	return g.do(func() {
		if !g.finished {
			g.finished, g.report = true, report
			close(g.drained)
		}
	})
}

// Close ends this generation in whatever phase it is, in favour of whoever
// can own the sockets, and returns when all its goroutines have ended and
// all its descriptors are closed. An owner without a successor closes its
// sockets and removes the control path. Close sends what Drained told, and
// waits for that at most Config.StepTimeout. It returns nil.
func (g *Generation) Close() error {
	g.closeOnce.Do(g.shutdown)
	return nil
}

func (g *Generation) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.StepTimeout)
	defer cancel()
	if err := g.Stop(ctx); err != nil {
		g.log.Warn("closed without the other side", "error", err)
	}
	g.Drained(nil)
	stop := context.AfterFunc(ctx, g.cancel) // whoever still waits gives up
	defer stop()
	g.do(g.stopHere)
	if g.pred != nil {
		close(g.pred.quit)
	}
	g.wg.Wait()
	g.cancel()
	g.do(func() {
		if g.phase != PhaseDraining {
			g.letGo(ErrStopRequested)
		}
		g.changePhase(PhaseDone, nil)
	})
	<-g.ended
	g.endSending()
	g.word.close()
}

// stopHere ends what Stop could not, without the other side. With a successor
// the conversation with it does so, when its context ends. It runs on run.
func (g *Generation) stopHere() {
	switch g.phase {
	case PhaseOwner:
		g.giveUp(ErrStopRequested)
	case PhasePreparing, PhaseWaiting, PhaseProbation, PhaseReturning:
		// The predecessor finds our end of the conversation closed.
		g.letGo(ErrStopRequested)
	}
}

// Sockets tells which sockets this generation has asked for, in the order in
// which it did.
func (g *Generation) Sockets() (all []Socket) {
	g.do(func() {
		for _, s := range g.sockets {
			all = append(all, s.public())
		}
	})
	return all
}

// Inherited tells what the predecessor, or a socket activator through Adopt,
// has handed over and nobody has asked for yet, by name.
func (g *Generation) Inherited() (all []Socket) {
	g.do(func() {
		for _, s := range g.inherited {
			all = append(all, s.public())
		}
	})
	slices.SortFunc(all, func(a, b Socket) int { return compare(a.Name, b.Name) })
	return all
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// stats asks the application for its numbers. What would not fit a frame is
// left out.
func (g *Generation) stats() Stats {
	if g.cfg.Stats == nil {
		return Stats{}
	}
	st := g.cfg.Stats()
	if err := st.check(); err != nil {
		g.log.Warn("Config.Stats", "error", err)
		st.Connections = nil
	}
	return st
}

func (g *Generation) status() Status {
	st := Status{
		Protocol: protocolVersions[0], Generation: g.number, Phase: g.phase,
		Program: g.cfg.Program, Build: g.cfg.Build, Revision: g.cfg.Revision,
		PID: os.Getpid(), Started: g.started, Owner: g.owner,
		Unclaimed: slices.Clone(g.unclaimed),
	}
	if g.phase == PhaseProbation {
		st.Probation = max(0, time.Until(g.probation))
	}
	st.Stats = g.stats()
	for _, s := range g.sockets {
		st.Sockets = append(st.Sockets, s.status())
	}
	if g.takeover != nil {
		p := g.takeover.peer
		p.Phase = PhasePreparing
		st.Successor = &p
	}
	for _, p := range g.draining {
		st.Draining = append(st.Draining, *p)
	}
	slices.SortFunc(st.Draining, func(a, b PeerStatus) int { return int(a.Generation) - int(b.Generation) })
	if g.failure != nil {
		st.LastFailure = shorten(g.failure.Error())
	}
	return st
}
