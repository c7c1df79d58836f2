package e2e

import (
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// wantNextSucceeds checks that a failed takeover has left nothing in the way
// of the next one, whatever number that gets.
func wantNextSucceeds(b *bench, owner *process) *process {
	b.t.Helper()
	successor := b.takeover("--probation=100ms")
	owner.wantCode(0)
	st := b.awaitStatus("the next successor owns the sockets", func(st *handover.Status) bool {
		return st.PID == successor.pid() && st.Phase == handover.PhaseOwner
	})
	b.wantGeneration(st.Generation)
	return successor
}

func TestSuccessorKilledBeforeReady(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web")})
	successor := b.library(unready, time.Second)
	successor.awaitText(saysPrepared)
	successor.kill()
	if st := b.awaitOwner(1); st.LastFailure == "" {
		t.Error("the status does not tell of the failed takeover")
	}
	load.awaitMore(1)
	next := wantNextSucceeds(b, owner)
	load.wantPerfect(1)
	next.wantAlive()
}

func TestSuccessorExitsBeforeReady(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), KeepAlive: true})
	b.library(givesUp, time.Second).wantCode(gaveUpCode)
	b.awaitOwner(1)
	load.awaitMore(1)
	wantNextSucceeds(b, owner)
	load.wantPerfect(1)
}

// A successor that cannot do what its flags say ends by itself, and tells why.
func TestSuccessorThatCannotListen(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	taken := b.server.listen(t).Addr().String()
	b.wantRun(1, "address already in use", "takeover", "--listen", b.listener(), "--listen", "more=tcp://"+taken)
	b.awaitOwner(1)
	b.wantGeneration(1)
	wantNextSucceeds(b, owner)
}

// What a successor on probation has accepted itself dies with it, a request
// for each worker at most. Nobody is refused, and the predecessor serves
// again.
func TestSuccessorKilledInProbation(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web")})
	successor := b.takeover("--probation=30m")
	load.awaitAnswers("2", 100)
	successor.kill()
	b.awaitOwner(1)
	load.awaitMore(1)
	wantNextSucceeds(b, owner)
	load.awaitMore(3)
	res := load.stop()
	cut := res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	if res.Refused != 0 || res.Failed() != cut || cut > int64(res.Workers) || res.ClientFault != 0 {
		t.Errorf("%d refused, %d cut off, %d failed in all; want none refused, and at most %d cut off by the death", res.Refused, cut, res.Failed(), res.Workers)
	}
	t.Logf("%d of %d requests were in the successor when it was killed", cut, res.Requests)
}

// The predecessor dies in its successor's probation: there is nobody left to
// take the sockets back, and probation is over.
func TestPredecessorKilledInProbation(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	successor := b.takeover("--probation=30m")
	b.awaitPhase(2, handover.PhaseProbation)
	owner.kill()
	b.awaitOwner(2)
	b.wantGeneration(2)
	wantNextSucceeds(b, successor)
}

// When nobody is left alive, a fresh start works without manual clean-up.
func TestFreshStartAfterTheLastOneWasKilled(t *testing.T) {
	b := newBench(t)
	b.serve().kill()
	b.wantRun(3, "nobody to take over from", "takeover")
	b.serve()
	b.wantGeneration(1)
}
