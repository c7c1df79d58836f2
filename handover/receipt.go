package handover

import (
	"os"
	"slices"
	"time"
)

// Receipt is the record of the takeover by which a generation came. A time that
// is zero has not been reached, or is not known: a predecessor that died tells
// nothing of itself.
type Receipt struct {
	Generation uint64         `json:"generation"`
	Program    string         `json:"program"`
	Build      string         `json:"build,omitempty"`
	Revision   uint64         `json:"revision,omitempty"`
	PID        int            `json:"pid"` // in this process's pid namespace
	Phase      Phase          `json:"phase"`
	Cause      string         `json:"cause,omitempty"` // why ownership was lost, if it was
	From       *PeerStatus    `json:"from,omitempty"`  // the predecessor; nil for a first generation
	Steps      ReceiptSteps   `json:"steps"`
	Sockets    []SocketStatus `json:"sockets"`             // accept queues: as they were found, with Config.Record
	Unclaimed  []Socket       `json:"unclaimed,omitempty"` // closed, since nobody asked for them
}

// ReceiptSteps are the times of a takeover, by the wall clock of the host, in
// their order.
type ReceiptSteps struct {
	Started     time.Time `json:"started"`               // of this generation
	Connected   time.Time `json:"connected,omitzero"`    // to the predecessor's control socket
	Welcomed    time.Time `json:"welcomed,omitzero"`     // by the predecessor
	Received    time.Time `json:"received,omitzero"`     // all sockets
	Ready       time.Time `json:"ready,omitzero"`        // said by this generation
	LastAccept  time.Time `json:"last_accept,omitzero"`  // of the predecessor; zero if it had none
	Paused      time.Time `json:"paused,omitzero"`       // the predecessor began to stop accepting
	Owner       time.Time `json:"owner,omitzero"`        // this generation accepts
	FirstAccept time.Time `json:"first_accept,omitzero"` // of this generation
	Committed   time.Time `json:"committed,omitzero"`    // end of the probation
	Drained     time.Time `json:"drained,omitzero"`      // the predecessor has ended
}

// steps are those times that nothing else of a generation tells.
type steps struct {
	connected, welcomed, received, ready time.Time
	lastAccept, paused                   time.Time // the predecessor's
	committed, drained                   time.Time

	queues map[string]SocketStatus // as found
	from   *PeerStatus             // the predecessor, once it has ended
}

// hear notes what a predecessor tells with its grant, where that is plausible.
func (s *steps) hear(f *frameGranted) {
	plausible := func(ns int64) (t time.Time) {
		if ns > 0 && ns <= time.Now().UnixNano() {
			t = time.Unix(0, ns)
		}
		return t
	}
	s.paused, s.lastAccept = plausible(f.Paused), plausible(f.LastAccept)
}

// recordQueues notes the accept queues at the moment in which they are ours.
// It runs on run.
func (g *Generation) recordQueues() {
	if g.steps.queues != nil {
		return
	}
	g.steps.queues = make(map[string]SocketStatus, len(g.sockets))
	for _, s := range g.sockets {
		g.steps.queues[s.Name] = s.status()
	}
}

// recordDrained notes the end of the predecessor. It runs on run.
func (g *Generation) recordDrained(st PeerStatus) {
	if g.pred != nil && st.Generation == g.pred.peerNumber() && g.steps.from == nil {
		g.steps.drained, g.steps.from = time.Now(), &st
	}
}

// Receipt tells how this generation came to its sockets, as far as that has
// gone. It does not change the generation, and can be asked for at any time
// before Close.
func (g *Generation) Receipt() (r Receipt, err error) {
	err = g.do(func() { r = g.receipt() })
	return r, err
}

func (g *Generation) receipt() Receipt {
	first, _ := g.gate.times()
	r := Receipt{
		Generation: g.number, Program: g.cfg.Program, Build: g.cfg.Build, Revision: g.cfg.Revision,
		PID: os.Getpid(), Phase: g.phase, Unclaimed: slices.Clone(g.unclaimed),
		Steps: ReceiptSteps{
			Started: g.started, Connected: g.steps.connected, Welcomed: g.steps.welcomed,
			Received: g.steps.received, Ready: g.steps.ready, LastAccept: g.steps.lastAccept,
			Paused: g.steps.paused, Owner: g.owner, FirstAccept: first,
			Committed: g.steps.committed, Drained: g.steps.drained,
		},
	}
	if g.cause != nil {
		r.Cause = g.cause.Error()
	}
	if g.pred != nil {
		from := g.pred.welcome.peer(PhaseDraining, Stats{}, nil)
		if d := g.draining[from.Generation]; d != nil {
			from = *d
		}
		if g.steps.from != nil {
			from = *g.steps.from
		}
		r.From = &from
	}
	for _, s := range g.sockets {
		st, found := g.steps.queues[s.Name]
		if !found {
			st = SocketStatus{Socket: s.public(), Cookie: uint64(s.Cookie), Netns: uint64(s.Netns)}
		}
		r.Sockets = append(r.Sockets, st)
	}
	return r
}
