package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	crashed     bool           // the last owner has, a moment or a week ago
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

	movable   atomic.Bool   // there is a successor that takes connections
	moves     chan *move    // for the talk with it
	movesOver chan struct{} // closed when that has ended

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
	rehearsal *time.Timer
	gaveUp    bool      // the set has ended: its paths are removed
	closing   bool      // Close does not wait for anybody any more
	dropped   []*socket // closed ones whose path is removed when ownership is settled here
	states    map[string]int
	offers    map[string]Offer
	takeover  *takeover
	sending   bool      // descriptors are being sent: closing them waits
	graveyard []*socket // to close when sending ends
	adopted   bool      // ownership came without the predecessor's doing: it died, or left early
	draining  map[uint64]*PeerStatus
	failure   error
	probation time.Time // its end
	steps     steps
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
		moves:      make(chan *move),
		movesOver:  make(chan struct{}),
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
	if next == PhaseOwner && g.steps.committed.IsZero() {
		g.steps.committed = time.Now()
		g.rehearseLater()
	}
	if next == PhaseDraining {
		g.rehearseNoMore()
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
// not ask for, and has closed when ownership was granted. See
// Config.Unclaimed.
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
// more use than to be closed (but for ErrUnclaimed, after which the rest can
// be asked for). ctx bounds the wait; a ctx that ends after
// success is of no consequence.
func (g *Generation) Ready(ctx context.Context) error {
	var (
		err  error
		wait bool
	)
	if e := g.do(func() {
		g.steps.ready = time.Now()
		switch {
		case g.phase == PhaseDraining:
			err = g.cause
		case g.phase != PhasePreparing:
			err = errors.New("ready was said before")
		case g.cfg.Unclaimed == RefuseUnclaimed && len(g.inherited) > 0:
			err = g.errUnclaimed()
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
	g.settleUnclaimed()
	if g.cfg.Record && g.pred != nil {
		g.recordQueues()
	}
	g.changePhase(next, nil)
	if next == PhaseOwner {
		g.removeDropped()
	}
	g.gate.open()
	g.controlGate.open()
	return nil
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

func (g *Generation) errUnclaimed() error {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(g.inherited)) {
		s := g.inherited[name]
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s (%s %s)", name, s.Network, s.Address)))
	}
	return fmt.Errorf("%w: %s", ErrUnclaimed, shorten(strings.Join(all, ", ")))
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
