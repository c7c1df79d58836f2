package handover

import "fmt"

// ownership is the value of the ownership word: who owns the socket set, and
// whether the previous owner may still take it back.
//
// Messages alone cannot decide that: a process that was stopped (SIGSTOP) and
// wakes up acts on what it knew, before it reads what was sent meanwhile. The
// word lies in memory that all generations share and moves only by
// compare-and-swap, so of two who decide at once exactly one succeeds, and
// who wakes late sees it before the next accept.
//
// The lowest bit is the probation, the rest the generation.
type ownership uint64

func settled(generation uint64) ownership { return ownership(generation << 1) }

func onProbation(generation uint64) ownership { return ownership(generation<<1 | 1) }

func (o ownership) generation() uint64 { return uint64(o) >> 1 }

func (o ownership) probation() bool { return o&1 != 0 }

func (o ownership) String() string {
	if o.probation() {
		return fmt.Sprintf("generation %d, in probation", o.generation())
	}
	return fmt.Sprintf("generation %d", o.generation())
}
