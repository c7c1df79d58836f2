package faults

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/load"
	"github.com/handoverd/handoverd/tests/faults/agent"
)

// Labels of the processes, in the ledger and in their answers.
const (
	labelP byte = 1 + iota
	labelS
	labelN // the next successor
)

// program starts a process of a kind of program: here, the one of package
// program, whose path TestMain has set.
type program func(r *run, name string, spec agent.Spec, mustTakeOver bool, with timing) *process

func libraryProgram(r *run, name string, spec agent.Spec, mustTakeOver bool, with timing) *process {
	args := []string{
		os.Getenv(programVariable), "-socket", r.socket(), "-host", r.host, "-port", strconv.Itoa(firstPort),
		"-sockets", strconv.Itoa(r.sockets), "-step", with.step.String(), "-ready", with.ready.String(),
		"-alive", with.alive.String(), "-probation", with.probation.String(),
	}
	if mustTakeOver {
		args = append(args, "-takeover")
	}
	return launch(r.t, r.logs, name, spec, args...)
}

const (
	firstPort = 20000
	workers   = 8
)

// hosts gives each run an address of its own, so that no connection of one
// that has ended is in the way.
var hosts atomic.Uint32

// run is one try of a cell.
type run struct {
	cell
	t       testing.TB
	program program
	dir     *directory
	logs    string
	host    string
	ledger  *agent.Ledger
	p, s, n *process
	load    *load.Run
	dials   atomic.Uint32
	totals  []load.Result
	undo    func() // of a fault that lasts
	watch   *watch

	nextKilled int // how often the next one was, in probation

	res   *result
	doing problem // what it is if the run cannot go on
}

// result is what a cell came to.
type result struct {
	owner       owner
	recovery    time.Duration
	requests    int64
	failed      int64 // refused ones besides
	refused     int64
	lost        int      // requests in processes that were killed
	want, after holdings // what the owner holds at rest: without a fault, and afterwards
	problems    []problem
}

// problem is a way in which a cell can fail.
type problem string

const (
	unreached  problem = "the step was not reached"
	noOwner    problem = "no owner within the bound"
	outOfTurn  problem = "two that accept"
	wrongOwner problem = "another owner, or reason, than there has to be"
	turnedAway problem = "refused while somebody held the sockets"
	cutOff     problem = "failed without having been in a process that was killed"
	leaked     problem = "the owner held more, or less, afterwards"
	noNext     problem = "the next takeover failed, or left something"
)

// fail notes a problem, and goes on.
func (r *run) fail(kind problem, format string, args ...any) {
	r.t.Helper()
	r.res.problems = append(r.res.problems, kind)
	r.t.Errorf(format, args...)
}

// conclude notes a problem that has ended the run.
func (r *run) conclude() {
	if r.t.Failed() && len(r.res.problems) == 0 {
		r.res.problems = append(r.res.problems, r.doing)
	}
}

func newRun(t testing.TB, c cell, program program, res *result) *run {
	n := hosts.Add(1)
	r := &run{
		cell: c, t: t, program: program, res: res, doing: unreached, dir: newDirectory(t), logs: t.TempDir(),
		host: fmt.Sprintf("127.%d.%d.1", 1+n/250, 1+n%250), undo: func() {},
	}
	var err error
	if r.ledger, err = agent.OpenLedger(filepath.Join(r.logs, "ledger")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.ledger.Close() })
	t.Cleanup(func() { r.watch.end() })
	return r
}

func (r *run) socket() string { return filepath.Join(r.dir.path, "s") }

func (r *run) spec(label byte) agent.Spec {
	return agent.Spec{Label: label, Ledger: filepath.Join(r.logs, "ledger")}
}

// specs are those of the predecessor and the successor: the one whose step it
// is stays there, or does at once what the fault is.
func (r *run) specs(ref reference) (p, s agent.Spec) {
	p, s = r.spec(labelP), r.spec(labelS)
	who := &p
	if r.point.at() == successor {
		who = &s
	}
	who.Step, who.Nth, who.Action = r.point.step, ref.nth(r.point), agent.Block
	switch r.fault {
	case hungUp:
		who.Action = agent.Close
	case slow:
		who.Action, who.Delay = agent.Slow, 50*time.Millisecond
	}
	return p, s
}

// process is the one of a side.
func (r *run) process(s side) *process {
	if s == predecessor {
		return r.p
	}
	return r.s
}

// carryOut is the whole of a cell. It tells false if the step was not reached
// because a deadline had passed before.
func (r *run) carryOut(ref reference, stretch time.Duration) bool {
	r.t.Helper()
	defer r.conclude()
	pTiming, sTiming := r.timings(stretch)
	pSpec, sSpec := r.specs(ref)
	r.p = r.program(r, "predecessor", pSpec, false, pTiming)
	await(r.t, "the predecessor owns", func() bool { return r.p.phase() == "owner" })
	r.awaitHoldings(r.p, ref.first)
	r.startLoad(r.p)
	// A successor whose conversation is cut off may start again by itself. Here
	// it is to fail, so that there is one outcome.
	mustTakeOver := r.fault == hungUp || r.fault == stopped
	r.s = r.program(r, "successor", sSpec, mustTakeOver, sTiming)
	if !r.reachStep(ref) {
		r.stopLoad()
		return false
	}
	r.doing = noOwner
	r.inflict()
	who := r.settle()
	r.overcome(who)
	r.judge(who)
	r.stopLoad()
	r.res.want = ref.first
	if r.res.owner == theSuccessor {
		r.res.want = ref.later
	}
	if who != nil {
		r.res.after = r.awaitHoldings(who, r.res.want)
	}
	r.doing = noNext
	r.takeOverAgain(who, ref)
	r.account()
	return true
}

// reachStep waits until the step is reached and the other process stands
// where it waits for it.
func (r *run) reachStep(ref reference) bool {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	var ordering sync.WaitGroup
	defer ordering.Wait()
	defer cancel()
	if what := r.ordered(); what != "" {
		ordering.Go(func() { r.orderWhenInProbation(ctx, what) })
	}
	who, other := r.process(r.point.at()), r.process(r.point.at().other())
	otherNth := 1
	if r.point.stage == complete && (r.point.other == "owner/sockets" || r.point.other == "owner/received") {
		otherNth = ref.batches
	}
	leaves := other == r.p && r.point.otherLeaves()
	missed := false
	await(r.t, fmt.Sprintf("%s is reached", r.point), func() bool {
		if who.hasActed() && (!r.blocks() || other.reached(r.point.other, otherNth)) {
			return true
		}
		missed = !who.hasActed() && (r.p.wentBack() || r.s.hasEnded()) || r.blocks() && other.hasEnded() && !leaves
		return missed
	})
	if missed || !r.blocks() {
		return !missed
	}
	return !(other.hasEnded() && !leaves) && !who.hasEnded() && !r.p.wentBack()
}

// blocks tells whether the process stays at its step.
func (r *run) blocks() bool { return r.fault != hungUp && r.fault != slow }

// orderWhenInProbation is an operator.
func (r *run) orderWhenInProbation(ctx context.Context, what string) {
	for !r.s.reached("successor/alive", 1) || !r.p.reached("owner/alive", 1) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
	op := handover.Operator{Socket: r.socket(), Timeout: patience}
	if what == "rollback" {
		op.Rollback(ctx) // its error is no concern here: the outcome is looked at
	} else {
		op.Commit(ctx)
	}
}

// inflict lets the fault happen, and the process at its step go on.
func (r *run) inflict() {
	r.t.Helper()
	victim, blocked := r.process(r.victim), r.process(r.point.at())
	switch r.fault {
	case killed:
		victim.kill()
	case stopped, paused:
		victim.stop()
	case starved:
		r.undo = victim.starve()
	case readOnly:
		r.undo = r.dir.makeReadOnly()
	case full:
		r.undo = r.dir.fill()
	}
	r.watch = r.watchAccepts()
	if r.fault == paused {
		victim.resume()
	}
	if r.blocks() && !(blocked.stopped || blocked.killed) {
		blocked.order(agent.Release)
	}
}

// settle waits until it is decided who owns, and returns that one, or nil if
// both have ended. The one that is stopped may own.
func (r *run) settle() (who *process) {
	r.t.Helper()
	var (
		committing sync.WaitGroup
		committed  bool
	)
	ctx, cancel := context.WithCancel(r.t.Context())
	defer committing.Wait()
	defer cancel()
	over := func(p *process) bool { return p.hasEnded() || p.phase() == "draining" || p.phase() == "done" }
	if !within(func() bool {
		if !committed && r.s.phase() == "probation" && r.fault != starved && slices.Contains(r.expect(), theSuccessor) {
			committed = true
			committing.Go(func() {
				op := handover.Operator{Socket: r.socket(), Timeout: patience}
				op.Commit(ctx) // its error is no concern here: the outcome is looked at
			})
		}
		switch {
		case r.p.hasEnded() && r.s.hasEnded():
			return true
		case r.s.hasEnded() && (r.p.stopped || r.p.phase() == "owner"),
			r.s.stopped && r.p.phase() == "owner":
			who = r.p
			return true
		case r.s.hasEnded():
		case (over(r.p) || r.p.stopped) && r.s.phase() == "owner",
			r.s.stopped && over(r.p):
			who = r.s
			return true
		}
		return false
	}) {
		r.t.Fatalf("nobody owns within %v:\n  %v\n  %v", patience, r.p, r.s)
	}
	return who
}

// overcome ends what can be ended of the fault, and waits for the loser's end.
func (r *run) overcome(who *process) {
	r.t.Helper()
	loser := r.p
	if who == r.p {
		loser = r.s
	}
	victim := r.process(r.victim)
	if r.fault == stopped && who != victim {
		r.awaitAnswers(who) // while the other one is still stopped
	}
	if who == victim && (r.fault == stopped || r.fault == starved) {
		r.watch = r.watchAccepts() // from here on it can recover
	}
	if r.fault == stopped {
		victim.resume()
		if r.process(r.point.at()) == victim {
			victim.order(agent.Release)
		}
	}
	if r.fault == starved {
		r.undo()
		r.undo = func() {}
	}
	if who == nil {
		return
	}
	await(r.t, loser.name+" has ended", loser.hasEnded)
	r.awaitAnswers(who)
}

// judge compares the owner with what it has to be.
func (r *run) judge(who *process) {
	r.t.Helper()
	is := none
	switch who {
	case r.p:
		is = thePredecessor
	case r.s:
		is = theSuccessor
		if !r.s.reached("successor/received", 1) {
			is = afresh
		}
	}
	r.res.owner = is
	if who != nil {
		r.watch.end()
		r.res.recovery = r.watch.longest
		r.wantStatus(who)
	}
	if !slices.Contains(r.expect(), is) {
		r.fail(wrongOwner, "the owner is %s, want %v:\n  %v\n  %v", is, r.expect(), r.p, r.s)
	}
	r.wantReason(is)
}

// wantReason checks why the loser has ended.
func (r *run) wantReason(is owner) {
	r.t.Helper()
	switch {
	case is == theSuccessor && !r.p.killed:
		if code := r.p.cmd.ProcessState.ExitCode(); code != 0 {
			r.fail(wrongOwner, "the predecessor has not ended well: %v", r.p)
		}
	case is == thePredecessor && r.fault == stopped && r.victim == predecessor && r.stage() <= complete:
		if got := r.s.class(); got != "ErrStuck" {
			r.fail(wrongOwner, "the successor of a stopped owner says %q, want ErrStuck: %v", got, r.s)
		}
	case is == thePredecessor && r.fault == stopped && r.victim == successor && r.diesStopped():
		if st := r.s.cmd.ProcessState.Sys().(syscall.WaitStatus); st.Signal() != syscall.SIGKILL {
			r.fail(wrongOwner, "the successor that fell silent was not killed: %v", r.s)
		}
	case is == thePredecessor && !r.s.killed && r.s.class() == "" && r.s.cmd.ProcessState.ExitCode() == 0:
		r.fail(wrongOwner, "the successor has ended without an error: %v", r.s)
	}
}

// wantStatus checks that the control socket leads to the owner.
func (r *run) wantStatus(who *process) {
	r.t.Helper()
	op := handover.Operator{Socket: r.socket(), Timeout: patience}
	st, err := op.Status(r.t.Context())
	if err != nil {
		r.t.Fatalf("status: %v", err)
	}
	if st.PID != who.cmd.Process.Pid || st.Phase != handover.PhaseOwner || len(st.Sockets) != r.sockets {
		r.fail(wrongOwner, "status: pid %d is %v and has %d sockets, want %v with %d", st.PID, st.Phase, len(st.Sockets), who, r.sockets)
	}
}

// awaitHoldings waits until p holds what it should: connections that have been
// served go away a little later.
func (r *run) awaitHoldings(p *process, want holdings) (h holdings) {
	r.t.Helper()
	if want == (holdings{}) {
		return r.steadyHoldings(p)
	}
	if !within(func() bool { h = p.holdings(); return h == want }) {
		r.fail(leaked, "%s holds %d descriptors and %d goroutines, want %d and %d", p.name, h.descriptors, h.goroutines, want.descriptors, want.goroutines)
	}
	return h
}

// steadyHoldings waits until what p holds does not change any more.
func (r *run) steadyHoldings(p *process) (h holdings) {
	const enough = 20
	same := 0
	await(r.t, p.name+" holds the same for a while", func() bool {
		now := p.holdings()
		if same++; now != h {
			h, same = now, 0
		}
		return same >= enough
	})
	return h
}

// takeOverAgain has the next one take over, under load, and ends everything.
func (r *run) takeOverAgain(who *process, ref reference) {
	r.t.Helper()
	want := ref.later
	if who == nil {
		want = ref.first
		r.startNext(false)
		await(r.t, "the next one owns", func() bool { return r.n.phase() == "owner" })
		r.startLoad(r.n)
	} else {
		r.startLoad(who)
		await(r.t, "the next one owns", r.nextOwns)
	}
	r.awaitAnswers(r.n)
	if who != nil {
		await(r.t, who.name+" has ended", who.hasEnded)
		if code := who.cmd.ProcessState.ExitCode(); code != 0 {
			r.fail(noNext, "replaced by the next one, it has not ended well: %v", who)
		}
	}
	r.stopLoad()
	r.awaitHoldings(r.n, want)
	r.undo()
	r.n.order(agent.Stop)
	await(r.t, "the next one has ended", r.n.hasEnded)
	if left := r.dir.files(); len(left) > 0 {
		r.fail(noNext, "left in the directory of the socket: %v", left)
	}
}

func (r *run) startNext(mustTakeOver bool) {
	relaxed := timing{step: patience, ready: never, alive: patience, probation: never}
	r.n = r.program(r, "next", r.spec(labelN), mustTakeOver, relaxed)
}

// nextOwns gets the next one a step further. Where the owner's deadlines are
// short and this machine is busy, it takes more than one.
func (r *run) nextOwns() bool {
	switch {
	case r.n == nil:
		r.startNext(true)
	case r.n.hasEnded():
		r.t.Logf("again: %v", r.n)
		if r.n.cmd.ProcessState.ExitCode() < 0 {
			r.nextKilled++
		}
		r.startNext(true)
	case r.n.phase() == "probation":
		op := handover.Operator{Socket: r.socket(), Timeout: patience}
		op.Commit(r.t.Context()) // its error is no concern here: the outcome is looked at
	}
	return r.n.phase() == "owner"
}

// account checks what clients saw, and who accepted what when.
func (r *run) account() {
	r.t.Helper()
	res := r.res
	first, second := r.totals[0], r.totals[1]
	res.refused = first.Refused
	res.failed = first.Failed() - first.Refused
	res.requests = first.Requests + second.Requests
	if n := first.ClientFault + first.Aborted + second.ClientFault + second.Aborted; n > 0 {
		r.fail(unreached, "the clients ran out of something: %v, %v", first, second)
	}
	if second.Refused > 0 || second.Failed() > int64(workers*r.nextKilled) {
		r.fail(noNext, "after the fault: %v", second)
	}
	labels, err := r.ledger.Labels()
	if err != nil {
		r.t.Fatal(err)
	}
	order, want := accepting(labels), inTurn(res.owner)
	if !want.MatchString(order) {
		r.fail(outOfTurn, "accepted by %s, one after the other; want %v (1: predecessor, 2: successor, 3: next)", order, want)
	}
	if e := r.expect(); slices.Contains(e, afresh) || slices.Contains(e, none) {
		return // the sockets had to die, and what waited in them
	}
	if res.refused > 0 {
		r.fail(turnedAway, "%d requests refused while somebody held the socket: %v", res.refused, first)
	}
	// A process that was killed, or stopped, between accept(2) and the note in
	// the ledger had accepted one more for each socket in use at that moment.
	unnoted := min(workers, r.sockets)
	failed := first.Failed() + second.Failed()
	res.lost = len(labels) - int(first.OK+second.OK)
	died := r.p.killed || r.s.killed || r.s.hasEnded() && r.s.cmd.ProcessState.ExitCode() < 0
	switch {
	case !died && res.failed > 0:
		r.fail(cutOff, "%d requests failed, and nobody was killed: %v", res.failed, first)
	case res.failed > workers || failed > int64(res.lost+unnoted):
		r.fail(cutOff, "%d requests failed, but only %d were in a process that was killed: %v", failed, res.lost, first)
	case int64(res.lost) > failed:
		r.fail(cutOff, "%d connections were accepted and not answered, but only %d requests failed: %v", res.lost, failed, first)
	}
}

// inTurn is the order in which processes may accept.
func inTurn(is owner) *regexp.Regexp {
	switch is {
	case thePredecessor:
		return regexp.MustCompile(`^1(21)?(31)*3$`)
	case none:
		return regexp.MustCompile(`^12?3$`)
	}
	return regexp.MustCompile(`^12(32)*3$`)
}

// accepting gives who accepted after whom.
func accepting(labels []byte) string {
	var b strings.Builder
	last := byte(0)
	for _, l := range labels {
		if l != last && l != 0 {
			b.WriteByte('0' + l)
			last = l
		}
	}
	return b.String()
}

// startLoad starts clients, and returns when who has answered some.
func (r *run) startLoad(who *process) {
	r.t.Helper()
	var d net.Dialer
	var err error
	r.load, err = load.Start(r.t.Context(), load.Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			port := firstPort + int(r.dials.Add(1))%r.sockets
			return d.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", r.host, port))
		},
		Duration: never, Workers: workers, Think: 10 * time.Millisecond, PostRatio: .3, BodyMax: 2000, Timeout: 2 * patience,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.load.Stop() })
	r.awaitAnswers(who)
}

func (r *run) stopLoad() load.Result {
	res := r.load.Stop()
	r.totals = append(r.totals, res)
	return res
}

func answersOf(run *load.Run, p *process) int64 {
	return run.Snapshot().Generations[strconv.Itoa(int(p.label))]
}

// awaitAnswers waits until p has answered some requests more.
func (r *run) awaitAnswers(p *process) {
	r.t.Helper()
	const some = 20
	before := answersOf(r.load, p)
	if !within(func() bool { return answersOf(r.load, p) >= before+some }) {
		r.t.Fatalf("not %d answers within %v of %v\n%v", some, patience, p, r.load.Snapshot())
	}
}

// watch finds the longest time in which nobody accepts, while clients try.
type watch struct {
	longest time.Duration // after end
	over    chan struct{}
	once    sync.Once
	done    sync.WaitGroup
}

// watchAccepts begins to watch, in place of what was watched before.
func (r *run) watchAccepts() *watch {
	r.watch.end()
	w := &watch{over: make(chan struct{})}
	began, count := time.Now(), r.ledger.Count()
	w.done.Go(func() { w.follow(r.ledger, began, count) })
	return w
}

func (w *watch) follow(ledger *agent.Ledger, last time.Time, count uint64) {
	for {
		select {
		case <-w.over:
			return
		case <-time.After(time.Millisecond):
		}
		w.longest = max(w.longest, time.Since(last))
		if n := ledger.Count(); n != count {
			last, count = time.Now(), n
		}
	}
}

func (w *watch) end() {
	if w != nil {
		w.once.Do(func() { close(w.over) })
		w.done.Wait()
	}
}
