package e2e

import (
	"context"
	"syscall"
	"testing"

	"github.com/handoverd/handoverd/handover"
)

// wantBackAt1 checks that, under load, a successor on probation ended as
// undo says, that generation 1 serves again, and that nobody noticed.
func wantBackAt1(t *testing.T, spec loadSpec, undo func(b *bench, successor *process)) {
	b := newBench(t)
	owner := b.serve()
	spec.Address = b.address("web")
	successor := b.takeover("--probation=30m")
	b.awaitPhase(2, handover.PhaseProbation)
	load := makeLoad(t, b.client, spec)
	load.awaitAnswers("2", 100)
	undo(b, successor)
	successor.wantCode(6)
	b.awaitOwner(1)
	load.awaitMore(1)
	b.wantGeneration(1)
	wantNextSucceeds(b, owner)
	load.awaitMore(3)
	res := load.stop()
	if res.Err() != nil {
		t.Errorf("requests failed")
	}
}

func TestRollback(t *testing.T) {
	undo := func(b *bench, _ *process) { b.wantRun(0, "rolled back", "rollback") }
	t.Run("a connection for each request", func(t *testing.T) { wantBackAt1(t, loadSpec{}, undo) })
	t.Run("keep-alive", func(t *testing.T) { wantBackAt1(t, loadSpec{KeepAlive: true, PostRatio: .5}, undo) })
}

// SIGTERM to an owner on probation gives the sockets back: the predecessor is
// there, and serves.
func TestTermInProbation(t *testing.T) {
	wantBackAt1(t, loadSpec{}, func(_ *bench, successor *process) { successor.signal(syscall.SIGTERM) })
}

// SIGTERM to the predecessor in its successor's probation lets it go: the
// successor owns the sockets for good.
func TestTermOfPredecessorInProbation(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web")})
	successor := b.takeover("--probation=30m")
	load.awaitAnswers("2", 1)
	owner.signal(syscall.SIGTERM)
	b.awaitOwner(2)
	owner.wantCode(0)
	load.awaitMore(2)
	load.wantPerfect(2)
	successor.wantAlive()
}

func TestCommit(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	b.wantRun(0, "committed", "commit") // an owner for good stays that
	successor := b.takeover("--probation=30m")
	b.awaitPhase(2, handover.PhaseProbation)
	owner.wantAlive()
	b.wantRun(0, "committed", "commit")
	b.awaitOwner(2)
	owner.wantCode(0)
	b.wantRun(4, "not in probation", "rollback")
	b.wantGeneration(2)
	successor.wantAlive()
}

// The successor of an owner that is stopped with a successor on probation is
// not asked: stop ends probation, and then the service.
func TestStopInProbation(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	successor := b.takeover("--probation=30m")
	b.awaitPhase(2, handover.PhaseProbation)
	b.wantRun(0, "stopped", "stop")
	successor.wantCode(0)
	owner.wantCode(0)
	if _, err := b.operator().Status(context.Background()); err == nil {
		t.Error("somebody owns the control socket after the stop")
	}
}
