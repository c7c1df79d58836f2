package faults

import (
	"strings"
	"time"
)

// side is one of the two processes of a takeover.
type side string

const (
	predecessor side = "predecessor"
	successor   side = "successor"
)

// fault is what happens to a process.
type fault string

const (
	killed fault = "killed (SIGKILL)"
	// stopped until the other one has decided, past all its deadlines, and
	// then continued.
	stopped  fault = "stopped past every deadline (SIGSTOP)"
	paused   fault = "stopped and continued at once"
	hungUp   fault = "control connection closed"
	starved  fault = "no descriptor left (RLIMIT_NOFILE)"
	readOnly fault = "directory of the socket read-only"
	full     fault = "directory of the socket full"
	slow     fault = "each step 50 ms late"
)

var faults = []fault{killed, stopped, paused, hungUp, starved, readOnly, full, slow}

// hitsEither tells whether f can hit the one that is not at the step. Of the
// others it would be the same.
func (f fault) hitsEither() bool { return f == killed || f == stopped }

// stage is how far a takeover is once a step is reached and the other process
// has gone on as far as it can.
type stage int

const (
	incomplete stage = iota // the successor has not got all sockets, nor are they on the way
	complete                // it has, or they are
	granted                 // the word names the successor, in probation
	settled                 // the word names the successor, for good
	returning               // the successor has stopped accepting, in probation
	back                    // the word names the predecessor again
)

// point is a step as the name in package handover says it, and which one.
type point struct {
	step  string
	first bool // the first of several batches; else the last

	// The other process gets to that step by itself, and waits.
	other string
	stage stage
}

func (p point) String() string {
	if p.first {
		return p.step + " (first batch)"
	}
	return p.step
}

// otherLeaves tells whether the other process ends by itself, from that step on:
// nothing more can be done to it.
func (p point) otherLeaves() bool { return p.step == "successor/committed" }

// at is the side that takes the step.
func (p point) at() side {
	if strings.HasPrefix(p.step, "owner/") {
		return predecessor
	}
	return successor
}

func (s side) other() side {
	if s == predecessor {
		return successor
	}
	return predecessor
}

// points are all steps, in the order in which a takeover reaches them; the last
// two are those of a rollback.
var points = []point{
	{step: "successor/hello", other: "owner/sockets", stage: incomplete},
	{step: "owner/hello", other: "successor/hello", stage: incomplete},
	{step: "owner/welcome", other: "successor/welcome", stage: incomplete},
	{step: "successor/welcome", other: "owner/sockets", stage: incomplete},
	{step: "owner/sockets", first: true, other: "successor/sockets", stage: incomplete},
	{step: "successor/sockets", first: true, other: "owner/sockets", stage: incomplete},
	{step: "owner/received", first: true, other: "successor/sockets", stage: incomplete},
	{step: "owner/sockets", other: "successor/ready", stage: complete},
	{step: "successor/sockets", other: "owner/sockets", stage: complete},
	{step: "owner/received", other: "successor/ready", stage: complete},
	{step: "successor/received", other: "owner/received", stage: complete},
	{step: "successor/waiting", other: "owner/received", stage: complete},
	{step: "successor/ready", other: "owner/granted", stage: granted},
	{step: "owner/ready", other: "successor/ready", stage: complete},
	{step: "owner/paused", other: "successor/ready", stage: complete},
	{step: "owner/moved", other: "successor/ready", stage: granted},
	{step: "owner/granted", other: "successor/alive", stage: granted},
	{step: "successor/granted", other: "owner/granted", stage: granted},
	{step: "successor/probation", other: "owner/granted", stage: granted},
	{step: "successor/alive", other: "owner/alive", stage: granted},
	{step: "owner/alive", other: "successor/alive", stage: granted},
	{step: "successor/commit", other: "owner/alive", stage: granted},
	{step: "successor/settled", other: "owner/alive", stage: settled},
	{step: "successor/committed", other: "owner/drain", stage: settled},
	{step: "owner/commit", other: "successor/committed", stage: settled},
	{step: "owner/drain", other: "successor/committed", stage: settled},
	{step: "successor/returning", other: "owner/alive", stage: returning},
	{step: "owner/taken back", other: "successor/returning", stage: back},
}

// cell is one fault at one step.
type cell struct {
	fault   fault
	victim  side
	point   point
	sockets int
}

// rows are all cells, without the number of sockets.
func rows() (all []cell) {
	for _, f := range faults {
		for _, victim := range []side{predecessor, successor} {
			for _, p := range points {
				if p.at() == victim || f.hitsEither() && !p.otherLeaves() {
					all = append(all, cell{fault: f, victim: victim, point: p})
				}
			}
		}
	}
	return all
}

// exists tells whether there is such a step with that many sockets.
func (c cell) exists() bool { return c.sockets > 1 || !c.point.first }

func (c cell) String() string {
	return strings.Join([]string{string(c.fault), string(c.victim), c.point.String()}, ", ")
}

// stage is the point's, but that a single batch is on its way as soon as
// welcome has been sent, for which the predecessor does not wait.
func (c cell) stage() stage {
	one := c.sockets == 1 && c.point.stage == incomplete && c.point.at() == successor
	if one {
		return complete
	}
	return c.point.stage
}

// ordered is what an operator has to order so that the step is reached.
func (c cell) ordered() string {
	switch {
	case c.point.stage >= returning:
		return "rollback"
	case c.point.stage == settled || c.point.step == "successor/commit":
		return "commit"
	}
	return ""
}

// owner is who owns afterwards.
type owner string

const (
	thePredecessor owner = "predecessor"
	theSuccessor   owner = "successor"
	afresh         owner = "successor, afresh" // its sockets are new: the old ones died with the predecessor
	none           owner = "none"              // the owner is dead, its predecessor drains: the next one starts afresh
)

// expect is who may own afterwards: docs/protocol.md, "Who owns after a
// failure". More than one are possible where both processes live, cannot talk
// to each other any more, and act at the same time.
func (c cell) expect() []owner {
	switch c.fault {
	case killed:
		return c.expectDeath()
	case stopped:
		return c.expectStop()
	case hungUp:
		return c.expectHangUp()
	case starved:
		return c.expectStarved()
	}
	// Nothing that a takeover needs is missing.
	if c.ordered() == "rollback" {
		return []owner{thePredecessor}
	}
	return []owner{theSuccessor}
}

func (c cell) expectDeath() []owner {
	switch {
	case c.victim == predecessor && c.stage() == incomplete:
		return []owner{afresh}
	case c.victim == predecessor:
		return []owner{theSuccessor} // it holds everything, and nobody else does
	case c.stage() == settled:
		return []owner{none}
	}
	return []owner{thePredecessor}
}

func (c cell) expectStop() []owner {
	switch s := c.stage(); {
	case s == settled:
		return []owner{theSuccessor}
	case c.victim == predecessor && (s == granted || s == returning):
		return []owner{theSuccessor} // also if it had wanted to give back: nobody took it
	}
	return []owner{thePredecessor}
}

func (c cell) expectHangUp() []owner {
	switch {
	case c.stage() == settled:
		return []owner{theSuccessor}
	case c.point.step == "successor/commit":
		// Its commit races with the predecessor's taking back.
		return []owner{theSuccessor, thePredecessor}
	case strings.HasSuffix(c.point.step, "/hello"):
		// Nobody has said anything yet, so the successor tries again, and may
		// meet an owner that has not noticed.
		return []owner{theSuccessor, thePredecessor}
	}
	return []owner{thePredecessor}
}

func (c cell) expectStarved() []owner {
	switch {
	case c.ordered() == "rollback":
		return []owner{thePredecessor}
	case c.victim == predecessor:
		return []owner{theSuccessor} // handing over needs no descriptor
	}
	switch c.point.step {
	case "successor/hello", "successor/welcome", "successor/sockets":
		return []owner{thePredecessor}
	case "successor/received":
		if c.sockets == 1 { // many are made listeners while they arrive
			return []owner{thePredecessor}
		}
	}
	return []owner{theSuccessor}
}

// diesStopped tells whether a stopped successor is on probation by the time when
// the predecessor finds it silent, and so has to be killed.
func (c cell) diesStopped() bool {
	switch c.stage() {
	case granted, returning:
		return true
	case complete:
		return c.point.at() == predecessor // which has heard that the successor is ready
	}
	return false
}

// timing is how a process is configured.
type timing struct{ step, ready, alive, probation time.Duration }

// never is longer than any wait of a test.
const never = 10 * time.Minute

// timings are those of both processes. Where no deadline has to pass, none
// does, so that a busy machine cannot decide anything. The one that must is
// stretch times as long as it need be, so that the step is reached before.
func (c cell) timings(stretch time.Duration) (p, s timing) {
	relaxed := timing{step: 20 * time.Second, ready: never, alive: 20 * time.Second, probation: never}
	p, s = relaxed, relaxed
	const short = 500 * time.Millisecond
	switch c.fault {
	case stopped:
		switch {
		case c.victim == predecessor:
			s.step = short * stretch
		case c.diesStopped():
			p.alive = short * stretch
		default:
			p.step, p.ready = short*stretch, short*stretch
		}
	case starved:
		// Nobody can be told to commit.
		s.probation = short
	case hungUp:
		p.step = time.Second * stretch
		// In probation the predecessor waits a second for the successor's
		// death, and takes back; the successor waits longer.
		if c.stage() < granted && c.point.step != "successor/ready" {
			s.step = time.Second * stretch
		}
	}
	return p, s
}
