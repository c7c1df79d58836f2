package handover

import "fmt"

// Phase is where a generation stands. Only one goroutine changes it, and only
// along the arrows of the table below.
//
//	cold start          successor
//	    │                   │
//	    └──▶ Preparing ◀────┘
//	           │   │ Ready, with a predecessor
//	           │   ▼
//	           │  Waiting ──granted──▶ Probation ──commit──▶ Owner
//	           │   │ granted, settled     │  │
//	           └───┴──────────▶ Owner ◀───┼──┘
//	                                      │ rollback
//	  Owner ──hello──▶ Handing            ▼
//	    ▲                │ ready       Returning ──▶ Draining
//	    │                ▼
//	    ├── failed ── Granting ──granted──▶ Standby ──commit──▶ Draining
//	    └────────── successor lost ───────────┘                    │
//	                                                               ▼
//	                                                             Done
type Phase int

// The phases of a generation, and what may follow each.
const (
	// PhasePreparing: sockets are there, the application is not ready.
	// Accept waits. Followed by Waiting, Owner or Draining.
	PhasePreparing Phase = iota
	// PhaseWaiting: ready was sent, ownership is not granted yet. Accept
	// waits. Followed by Probation, Owner or Draining.
	PhaseWaiting
	// PhaseProbation: we own the sockets and accept, and the predecessor
	// stands by to take them back. Followed by Owner, Returning or Draining.
	PhaseProbation
	// PhaseOwner: we own the sockets and accept. Followed by Handing or
	// Draining.
	PhaseOwner
	// PhaseHanding: we own the sockets and accept, and a successor prepares.
	// Followed by Owner, Granting or Draining.
	PhaseHanding
	// PhaseGranting: accept is paused, ownership is about to move. Followed
	// by Standby, Draining, or back to Owner.
	PhaseGranting
	// PhaseStandby: the successor owns the sockets, we keep copies and serve
	// the connections that we have. Followed by Draining, or back to Owner.
	PhaseStandby
	// PhaseReturning: in probation we have stopped accepting and give the
	// sockets back. Followed by Draining, or Owner if nobody takes them.
	PhaseReturning
	// PhaseDraining: ownership is lost or given up for good. The application
	// finishes its connections. Followed by Done.
	PhaseDraining
	// PhaseDone: everything is closed.
	PhaseDone

	phaseCount
)

var phaseNames = [phaseCount]string{
	"preparing", "waiting", "probation", "owner", "handing", "granting",
	"standby", "returning", "draining", "done",
}

func (p Phase) String() string {
	if p < 0 || p >= phaseCount {
		return fmt.Sprintf("phase(%d)", int(p))
	}
	return phaseNames[p]
}

// MarshalText gives the name of the phase.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Phase) UnmarshalText(b []byte) error {
	for i, name := range phaseNames {
		if name == string(b) {
			*p = Phase(i)
			return nil
		}
	}
	return fmt.Errorf("unknown phase %.40q", b)
}

// Owns tells whether a generation in this phase owns the sockets, so that its
// Accept returns connections.
func (p Phase) Owns() bool {
	return p == PhaseProbation || p == PhaseOwner || p == PhaseHanding
}

// transitions is the whole state machine: what may follow each phase.
var transitions = [phaseCount][]Phase{
	PhasePreparing: {PhaseWaiting, PhaseOwner, PhaseDraining},
	PhaseWaiting:   {PhaseProbation, PhaseOwner, PhaseDraining},
	PhaseProbation: {PhaseOwner, PhaseReturning, PhaseDraining},
	PhaseOwner:     {PhaseHanding, PhaseDraining},
	PhaseHanding:   {PhaseOwner, PhaseGranting, PhaseDraining},
	PhaseGranting:  {PhaseOwner, PhaseStandby, PhaseDraining},
	PhaseStandby:   {PhaseOwner, PhaseDraining},
	PhaseReturning: {PhaseOwner, PhaseDraining},
	PhaseDraining:  {PhaseDone},
	PhaseDone:      {},
}

func (p Phase) mayBecome(next Phase) bool {
	for _, q := range transitions[p] {
		if q == next {
			return true
		}
	}
	return false
}
