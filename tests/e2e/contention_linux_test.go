package e2e

import (
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// Of two successors at once one gets in, the other one is told to come later.
func TestTwoSuccessorsAtOnce(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), Workers: 8})
	winner, loser := b.takeover("--probation=30m"), b.takeover("--probation=30m")
	select {
	case <-loser.ended:
	case <-winner.ended:
		winner, loser = loser, winner
	case <-time.After(patience):
		t.Fatal("none of two successors was refused")
	}
	loser.wantCode(4)
	loser.awaitText("refused (busy)")
	if st := b.awaitPhase(2, handover.PhaseProbation); st.PID != winner.pid() {
		t.Errorf("process %d is on probation, want %d", st.PID, winner.pid())
	}

	// One that has time waits, and takes over when it can.
	patient := b.takeover("--probation=100ms", "--wait=10m")
	patient.awaitText("refused (busy)")
	load.awaitMore(2)
	b.wantRun(4, "probation", "check")
	b.wantRun(0, "committed", "commit")
	b.awaitOwner(3)
	owner.wantCode(0)
	winner.wantCode(0)
	load.awaitMore(3)
	load.wantPerfect(3)
	patient.wantAlive()
}

// While a successor prepares, the next one is refused.
func TestSuccessorWhileAnotherPrepares(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	b.library(unready, time.Second).awaitText(saysPrepared)
	b.wantRun(4, "refused (busy)", "takeover")
	b.wantGeneration(1)
	owner.wantAlive()
}

// Two cold starts at once: one serves, the other one is told who won.
func TestTwoFirstGenerationsAtOnce(t *testing.T) {
	b := newBench(t)
	start := func() *process {
		return launch(t, b.server, b.dir, b.serving("serve", "--listen", b.listener()))
	}
	winner, loser := start(), start()
	select {
	case <-loser.ended:
	case <-winner.ended:
		winner, loser = loser, winner
	case <-time.After(patience):
		t.Fatal("both of two first generations run")
	}
	loser.wantCode(4)
	loser.awaitText("owned by a live process")
	if st := b.awaitOwner(1); st.PID != winner.pid() {
		t.Errorf("process %d is the owner, want %d", st.PID, winner.pid())
	}
	b.wantGeneration(1)
}

// The same with takeover --or-serve, the line for containers: one starts, the
// other one takes over from it.
func TestTwoOrServeAtOnce(t *testing.T) {
	b := newBench(t)
	flags := []string{"--or-serve", "--wait=10m", "--probation=100ms", "--listen", b.listener()}
	one, two := b.takeover(flags...), b.takeover(flags...)
	b.awaitOwner(2)
	b.wantGeneration(2)
	first := one
	if st := b.awaitOwner(2); st.PID == one.pid() {
		first = two
	}
	first.wantCode(0)
}
