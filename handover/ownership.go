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
// Besides the generation that owns, the word names the attempt: how many
// takeovers of the set have failed. A successor that was refused and wakes up
// late can then neither claim, nor decline, nor take for its own what
// meanwhile is another one's, though that one has the same number.
//
// The two lowest bits are flags, 18 bits are the attempt, the rest is the
// generation.
type ownership uint64

const (
	flagProbation ownership = 1 << iota // the previous generation may take it back
	flagDeclined                        // the successor that was ready has withdrawn
	flagBits      = iota
	attemptBits   = 18
	attemptMask   = 1<<attemptBits - 1
	maxGeneration = 1<<(64-flagBits-attemptBits) - 1
)

// settled: generation owns, for good.
func settled(generation, attempt uint64) ownership {
	return ownership(generation<<(flagBits+attemptBits) | (attempt&attemptMask)<<flagBits)
}

// onProbation: generation owns, and its predecessor may take it back.
func onProbation(generation, attempt uint64) ownership {
	return settled(generation, attempt) | flagProbation
}

// declined: generation owns and must not grant, since its successor has
// given up waiting.
func declined(generation, attempt uint64) ownership {
	return settled(generation, attempt) | flagDeclined
}

func (o ownership) generation() uint64 { return uint64(o) >> (flagBits + attemptBits) }

func (o ownership) attempt() uint64 { return uint64(o) >> flagBits & attemptMask }

func (o ownership) probation() bool { return o&flagProbation != 0 }

func (o ownership) String() string {
	s := fmt.Sprintf("generation %d, attempt %d", o.generation(), o.attempt())
	if o.probation() {
		s += ", in probation"
	}
	if o&flagDeclined != 0 {
		s += ", declined by its successor"
	}
	return s
}
