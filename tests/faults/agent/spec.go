// Package agent is what a program under test carries so that a test can reach
// each step of a takeover deliberately. Built without the tag faults it holds
// only what both sides say to each other.
//
// The test starts the program with the environment variable Variable, and with
// two pipes as the descriptors EventsFD and OrdersFD: events go out, orders
// come in, each a line. When the orders end, the program ends, so that it does
// not outlive its test.
package agent

import "time"

// Variable is the environment variable that holds a Spec as JSON.
const Variable = "HANDOVERD_FAULTS"

// Descriptors of the pipes.
const (
	EventsFD = 3
	OrdersFD = 4
)

// Spec says what the agent of one process does.
type Spec struct {
	Label  byte   // marks this process in the ledger; not 0
	Ledger string // path of the ledger

	// At the Nth time (from 1) that Step is reached, Action is done. An empty
	// Step only tells of the steps.
	Step   string
	Nth    int
	Action Action
	Delay  time.Duration // of Slow
}

// Action is what an agent does at its step.
type Action string

// The actions.
const (
	Block Action = "block" // wait there for the order Release
	Close Action = "close" // hang up the control connection, and go on
	Slow  Action = "slow"  // from there on, take Delay longer for each step
)

// Orders to an agent, besides those of the program.
const (
	Release = "release"
	Report  = "report" // tell of goroutines
	Stop    = "stop"   // end without a successor
)

// Event is a line from an agent.
type Event struct {
	Kind       EventKind `json:"kind"`
	Step       string    `json:"step,omitempty"`
	Nth        int       `json:"nth,omitempty"`
	Phase      string    `json:"phase,omitempty"`
	Error      string    `json:"error,omitempty"`
	Class      string    `json:"class,omitempty"` // name of the sentinel error that Error is
	Goroutines int       `json:"goroutines,omitempty"`
}

// EventKind says what an event tells.
type EventKind string

// The events.
const (
	Stepped  EventKind = "step"  // a step was reached
	Acted    EventKind = "acted" // the step was reached, and the action begins
	Phased   EventKind = "phase" // the generation has another phase
	Ended    EventKind = "ended" // the program ends, Error says why
	Reported EventKind = "reported"
)
