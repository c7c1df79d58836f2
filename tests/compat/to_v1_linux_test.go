package compat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// A successor of version 1 takes everything over from a present owner, is in
// probation, commits, hears how the drain goes, and is the last one.
func TestTakeoverByVersion1(t *testing.T) {
	for _, name := range []string{"1 socket", "300 sockets", "every kind"} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			set := sets(filepath.Dir(path))[name]
			cfg := currentConfig(path)
			cfg.Mode, cfg.Revision = handover.StartOnly, 5
			cfg.Stats = func() handover.Stats {
				return handover.Stats{Connections: map[string]int64{"active": 2}, Oldest: time.Second}
			}
			ev := watch(&cfg)
			g, err := handover.Start(t.Context(), cfg)
			must(t, err)
			s := serve(t, g)
			s.listenAll(set)
			must(t, g.Adopt("note", note(t)))
			f, err := g.File("note")
			must(t, err)
			f.Close()
			for name, blob := range states() {
				must(t, g.OfferState(name, func(context.Context) ([]byte, error) { return blob, nil }))
			}
			must(t, g.Ready(t.Context()))
			want := identitiesToldBy(t, path)
			delete(want, "note")

			fc := frozenConfig(path)
			fc.Revision = 5
			p := takeOver(t, fc)
			w := p.Welcome
			if p.Number != 2 || w.Protocol != 1 || w.Generation != 1 || w.Attempt != 0 || w.Program != "app" || w.Build != "current" ||
				w.PID != os.Getpid() || w.Revision != 5 || w.Probation != time.Minute.Milliseconds() ||
				w.ReadyTimeout != v1.Patience.Milliseconds() || w.AliveEvery < 1 || w.AliveEvery > v1.Patience.Milliseconds() {
				t.Errorf("welcome: %+v", w)
			}
			if v1.Died(p.Pidfd, 0) || p.Pidfd < 0 {
				t.Error("welcome came without the pidfd of its sender")
			}
			areStates(t, p.States)
			got := identitiesOf(p.Set)
			delete(got, "note")
			same(t, "sockets", want, got)
			for _, k := range set {
				if it := p.Get(k.name); it.Asked != k.address {
					t.Errorf("%s was asked for as %q, not %q", k.name, it.Asked, k.address)
				}
			}
			isNote(t, os.NewFile(uintptr(dup(t, p.Get("note").FD)), "note"))
			wordIs(t, p.Word, v1.Settled(1, 0))
			acceptsNothing(t, p.Set, set[0].name)
			greetsOnAll(t, want, 1)

			settled, err := p.Ready()
			if err != nil || settled {
				t.Fatalf("ready: %v, settled %v", err, settled)
			}
			ev.phase(t, handover.PhaseStandby)
			for name, id := range want {
				if id.Kind == "listener" {
					servesFrozen(t, p.Set, name)
				}
			}
			must(t, p.Alive())
			must(t, p.Commit())
			await(t, "superseded", g.Superseded())
			if err := g.Cause(); !errors.Is(err, handover.ErrSuperseded) {
				t.Errorf("cause: %v", err)
			}
			wordIs(t, p.Word, v1.Settled(2, 0))
			drainsTo(t, p, g)
			o := p.Own()
			t.Cleanup(o.Close)
			for name, id := range want {
				if id.Kind == "listener" {
					servesFrozen(t, o.Set, name)
				}
			}
			o.Stop()
			isEmpty(t, filepath.Dir(path))
		})
	}
}

// drainsTo drains a present generation, and hears it in a frozen one.
func drainsTo(t *testing.T, p *v1.Successor, g *handover.Generation) {
	t.Helper()
	f, _, err := p.Pred.Recv()
	must(t, err)
	pr, ok := f.(*v1.Progress)
	if !ok || pr.Generation != 1 || pr.Connections["active"] != 2 || pr.Oldest != int64(time.Second) {
		t.Fatalf("progress: %+v", f)
	}
	must(t, g.Drained(map[string]int{"closed": 2}))
	closing := call(g.Close)
	report, err := awaitDrained(p.Pred)
	if err != nil || string(report) != `{"closed":2}` {
		t.Fatalf("report %s: %v", report, err)
	}
	must(t, p.Pred.AwaitEnd())
	closing.wait(t)
}

func awaitDrained(c *v1.Conn) (json.RawMessage, error) {
	for {
		f, _, err := c.Recv()
		if err != nil {
			return nil, err
		}
		switch f := f.(type) {
		case *v1.Progress:
		case *v1.Drained:
			return f.Report, nil
		default:
			return nil, fmt.Errorf("%T instead of drained", f)
		}
	}
}

// Without probation ownership is settled at once.
func TestTakeoverByVersion1WithoutProbation(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	s, _ := currentOwner(t, currentConfig(path))
	fc := frozenConfig(path)
	fc.Probation = 0
	p := takeOver(t, fc)
	settled, err := p.Ready()
	if err != nil || !settled {
		t.Fatalf("ready: %v, settled %v", err, settled)
	}
	wordIs(t, p.Word, v1.Settled(2, 0))
	await(t, "superseded", s.g.Superseded())
	servesFrozen(t, p.Set, "app")
}

// A successor of version 1 gives back in probation. The owner serves on, and
// hands over again, to a number that was not used yet.
func TestRollbackByVersion1(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	s, addr := currentOwner(t, currentConfig(path))
	p := inProbation(t, frozenConfig(path))
	servesFrozen(t, p.Set, "app")
	waiting := dial(t, "tcp", addr.String()) // in the queue of the one, served by the other
	must(t, p.Rollback())
	wordIs(t, p.Word, v1.Settled(1, 1))
	acceptsNothing(t, p.Set, "app")
	hears(t, waiting, 1)
	if ph := s.g.Phase(); ph != handover.PhaseOwner {
		t.Errorf("the owner is %v", ph)
	}
	p.Close()
	p = inProbation(t, frozenConfig(path))
	if p.Number != 3 || p.Welcome.Generation != 1 || p.Welcome.Attempt != 1 {
		t.Errorf("after a rollback: %+v", p.Welcome)
	}
	servesFrozen(t, p.Set, "app")
	must(t, p.Commit())
	await(t, "superseded", s.g.Superseded())
}

// A successor of version 1 that is silent in probation is revoked. It is in this
// process, and so it is not killed: see TestSilentVersion1IsKilled.
func TestSilentVersion1IsRevoked(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	cfg := currentConfig(path)
	cfg.AliveTimeout = 100 * time.Millisecond
	s, addr := currentOwner(t, cfg)
	p := takeOver(t, frozenConfig(path))
	if p.Welcome.AliveEvery < 1 || p.Welcome.AliveEvery >= 100 {
		t.Errorf("heartbeats every %d ms, with a timeout of 100", p.Welcome.AliveEvery)
	}
	must(t, p.SayReady())
	f, _, err := p.Pred.Recv()
	if _, ok := f.(*v1.Granted); !ok || err != nil {
		t.Fatalf("instead of granted: %T, %v", f, err)
	}
	if typ, err := p.Pred.Await(); err != nil || typ != "revoked" {
		t.Fatalf("instead of revoked: %s, %v", typ, err)
	}
	wordIs(t, p.Word, v1.Settled(1, 1))
	if err := p.Commit(); !errors.Is(err, v1.ErrNotOwner) {
		t.Errorf("commit after it: %v", err)
	}
	acceptsNothing(t, p.Set, "app")
	greeted(t, "tcp", addr.String(), 1)
	if ph := s.g.Phase(); ph != handover.PhaseOwner {
		t.Errorf("the owner is %v", ph)
	}
}

// A successor of version 1 that says that it is alive is not revoked, for much
// longer than it may be silent.
func TestHeartbeatsOfVersion1AreHeard(t *testing.T) {
	leak.Check(t)
	const timeout = 2 * time.Second
	for try := 1; ; try++ {
		if onTime := heartbeats(t, timeout); onTime || t.Failed() {
			return
		}
		if try == 10 {
			lack(t, "this machine is too busy to say anything every %v", timeout/2)
		}
	}
}

// heartbeats says for a while that it is alive. It tells whether it was on time,
// so that it must not have been revoked.
func heartbeats(t *testing.T, timeout time.Duration) (onTime bool) {
	path := controlPath(t)
	cfg := currentConfig(path)
	cfg.AliveTimeout = timeout
	s, _ := currentOwner(t, cfg)
	defer s.close()
	p := takeOver(t, frozenConfig(path))
	defer p.Close()
	last := time.Now() // before the owner's clock starts
	must(t, p.SayReady())
	_, err := p.AwaitGranted()
	onTime = time.Since(last) < timeout/2
	for end := time.Now().Add(2 * timeout); err == nil && onTime && time.Now().Before(end); {
		time.Sleep(time.Duration(p.Welcome.AliveEvery) * time.Millisecond) // as often as it was told to
		err = p.Alive()
		onTime, last = time.Since(last) < timeout/2, time.Now()
	}
	if err == nil {
		err = p.Commit()
	}
	if onTime && time.Since(last) < timeout/2 && err != nil {
		t.Errorf("revoked, though it was never silent for %v: %v", timeout/2, err)
	}
	return onTime
}

// A successor of version 1 gives up: the owner serves on, and tells why.
func TestVersion1Withdraws(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	cfg := currentConfig(path)
	ev := watch(&cfg)
	s, addr := currentOwner(t, cfg)
	p := takeOver(t, frozenConfig(path))
	must(t, p.Withdraw("the cache is cold"))
	failed := ev.await(t, "the failure", func(e handover.Event) bool { return e.Phase == handover.PhaseOwner && e.Cause != nil })
	if !strings.Contains(failed.Cause.Error(), "the cache is cold") {
		t.Errorf("cause: %v", failed.Cause)
	}
	must(t, p.Pred.AwaitEnd())
	wordIs(t, p.Word, v1.Settled(1, 1))
	p.Close()
	greeted(t, "tcp", addr.String(), 1)
	p = inProbation(t, frozenConfig(path))
	if p.Number != 2 {
		t.Errorf("generation %d, though 2 was never granted", p.Number)
	}
	must(t, p.Commit())
	await(t, "superseded", s.g.Superseded())
}

// A successor of version 1 that hangs up, before or in probation.
func TestVersion1HangsUp(t *testing.T) {
	for name, until := range map[string]func(testing.TB, v1.Config) *v1.Successor{
		"before it is ready": takeOver,
		"in probation":       inProbation,
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			cfg := currentConfig(path)
			ev := watch(&cfg)
			_, addr := currentOwner(t, cfg)
			p := until(t, frozenConfig(path))
			waiting := dial(t, "tcp", addr.String())
			p.Close()
			ev.await(t, "the failure", func(e handover.Event) bool { return e.Phase == handover.PhaseOwner && e.Cause != nil })
			hears(t, waiting, 1)
		})
	}
}

// A successor of version 1 that commits without having moved the word is broken.
func TestCommitOfVersion1NeedsTheWord(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	_, addr := currentOwner(t, currentConfig(path))
	p := inProbation(t, frozenConfig(path))
	must(t, p.Pred.Send(v1.Simple{Type: "commit"}))
	if typ, err := p.Pred.Await(); err != nil || typ != "revoked" {
		t.Errorf("instead of revoked: %s, %v", typ, err)
	}
	greeted(t, "tcp", addr.String(), 1)
}

// A present owner is told to stop while a successor of version 1 prepares: that
// one gets ownership early, for good.
func TestOwnerLeavesBeforeVersion1IsReady(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	s, _ := currentOwner(t, currentConfig(path))
	p := takeOver(t, frozenConfig(path))
	must(t, s.g.Stop(t.Context()))
	settled, err := p.AwaitGranted() // unasked
	if err != nil || !settled {
		t.Fatalf("granted: %v, settled %v", err, settled)
	}
	wordIs(t, p.Word, v1.Settled(2, 0))
	if err := s.g.Cause(); !errors.Is(err, handover.ErrSuperseded) {
		t.Errorf("cause: %v", err)
	}
	servesFrozen(t, p.Set, "app")
}

// The same in probation.
func TestOwnerLeavesInProbationOfVersion1(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	s, _ := currentOwner(t, currentConfig(path))
	p := inProbation(t, frozenConfig(path))
	must(t, s.g.Stop(t.Context()))
	if typ, err := p.Pred.Await(); err != nil || typ != "commit" {
		t.Fatalf("instead of commit: %s, %v", typ, err)
	}
	wordIs(t, p.Word, v1.Settled(2, 0))
	must(t, p.Commit()) // too late, and true
	must(t, s.g.Drained("gone"))
	closing := call(s.g.Close)
	report, err := awaitDrained(p.Pred)
	if err != nil || string(report) != `"gone"` {
		t.Errorf("report %s: %v", report, err)
	}
	closing.wait(t)
	servesFrozen(t, p.Set, "app")
}

// An operator has a successor of version 1 commit, or roll back.
func TestOperatorOfVersion1InProbation(t *testing.T) {
	for _, intent := range []string{v1.IntentCommit, v1.IntentRollback} {
		t.Run(intent, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			s, addr := currentOwner(t, currentConfig(path))
			p := inProbation(t, frozenConfig(path))
			op := handover.Operator{Socket: path, Timeout: patience}
			f := op.Commit
			if intent == v1.IntentRollback {
				f = op.Rollback
			}
			asking := call(func() error { return f(t.Context()) })
			c := hear(t, p.Set, intent)
			if intent == v1.IntentCommit {
				must(t, p.Commit())
			} else {
				must(t, p.Rollback())
			}
			must(t, c.Ok())
			asking.wait(t)
			if intent == v1.IntentCommit {
				await(t, "superseded", s.g.Superseded())
				servesFrozen(t, p.Set, "app")
			} else {
				greeted(t, "tcp", addr.String(), 1)
			}
		})
	}
}

// Whom a present owner refuses, a peer of version 1 understands.
func TestVersion1IsRefused(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	cfg := currentConfig(path)
	cfg.Revision, cfg.Mode = 7, handover.StartOnly
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	s := serve(t, g)
	addr := s.listen("app", "tcp", "127.0.0.1:0").Addr()
	fc := frozenConfig(path)
	fc.Revision = 8
	refusedWith(t, fc, "not_ready", "when it is")
	must(t, g.Ready(t.Context()))
	fc.Revision = 6
	refusedWith(t, fc, "revision", "raise the revision")
	fc.Force = true
	p := takeOver(t, fc)
	refusedWith(t, fc, "busy", "try again later")
	must(t, p.Withdraw(""))
	must(t, p.Pred.AwaitEnd())
	refusedOrder(t, v1.Order(fc, v1.IntentRollback), "state", "nothing to rollback")
	refusedOrder(t, v1.Order(fc, "a later intent"), "protocol", "use a handoverd of the owner's version")
	greeted(t, "tcp", addr.String(), 1)
}

func refusedWith(t *testing.T, fc v1.Config, code, text string) {
	t.Helper()
	p, err := v1.TakeOver(fc)
	if err == nil {
		p.Close()
	}
	refusedOrder(t, err, code, text)
}

func refusedOrder(t *testing.T, err error, code, text string) {
	t.Helper()
	var refused *v1.RefusedError
	if !errors.As(err, &refused) || refused.Code != code || !strings.Contains(refused.Message, text) {
		t.Errorf("refused: %v; want %s: ...%s...", err, code, text)
	}
}

// An operator of version 1 and a present owner.
func TestVersion1OperatesThePresent(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	first, _ := currentOwner(t, currentConfig(path))
	for i := range 60 { // three pages
		first.listen(fmt.Sprintf("more-%d", i), "tcp", "127.0.0.1:0")
	}
	first.listen("unwanted", "tcp", "127.0.0.1:0")
	cfg := currentConfig(path)
	cfg.Revision = 3
	ev := watch(&cfg)
	cfg.Stats = func() handover.Stats { return handover.Stats{Connections: map[string]int64{"active": 4}} }
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	s := serve(t, g)
	s.listen("app", "", "")
	for i := range 60 {
		s.listen(fmt.Sprintf("more-%d", i), "", "")
	}
	must(t, g.Ready(t.Context()))
	fc := frozenConfig(path)

	st, pages, err := v1.AskStatus(fc)
	must(t, err)
	if pages < 4 || st.Protocol != 1 || st.Generation != 2 || st.Phase != "probation" || st.Program != "app" || st.Build != "current" ||
		st.Revision != 3 || st.PID != os.Getpid() || st.Probation <= 0 || st.Stats.Connections["active"] != 4 || len(st.Sockets) != 61 {
		t.Errorf("status in %d pages: %+v", pages, st)
	}
	if len(st.Unclaimed) != 1 || st.Unclaimed[0].Name != "unwanted" {
		t.Errorf("unclaimed: %v", st.Unclaimed)
	}
	for _, when := range []string{st.Started, st.Owner} {
		if at, err := time.Parse(time.RFC3339Nano, when); err != nil || at.IsZero() {
			t.Errorf("time %q: %v", when, err)
		}
	}
	must(t, v1.Order(fc, v1.IntentCommit))
	ev.phase(t, handover.PhaseOwner)
	must(t, v1.Order(fc, v1.IntentCommit)) // it is committed already
	await(t, "superseded", first.g.Superseded())

	var progress []*v1.Progress
	heard := make(chan struct{})
	stopping := async(func() (json.RawMessage, error) {
		return v1.OrderStop(fc, func(p *v1.Progress) {
			if progress = append(progress, p); len(progress) == 1 {
				close(heard)
			}
		})
	})
	await(t, "progress", heard)
	if err := g.Cause(); !errors.Is(err, handover.ErrStopRequested) {
		t.Errorf("cause: %v", err)
	}
	must(t, g.Drained(map[string]int{"closed": 4}))
	if report := stopping.wait(t); string(report) != `{"closed":4}` {
		t.Errorf("report: %s", report)
	}
	if p := progress[0]; p.Generation != 2 || p.Connections["active"] != 4 {
		t.Errorf("progress: %+v", p)
	}
	s.close()
	first.close()
	isEmpty(t, filepath.Dir(path))
}

// The same in probation: rollback.
func TestVersion1RollsThePresentBack(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	_, addr := currentOwner(t, currentConfig(path))
	g, err := handover.Start(t.Context(), currentConfig(path))
	must(t, err)
	s := serve(t, g)
	s.listen("app", "", "")
	must(t, g.Ready(t.Context()))
	greeted(t, "tcp", addr.String(), 2)
	must(t, v1.Order(frozenConfig(path), v1.IntentRollback))
	if err := g.Cause(); !errors.Is(err, handover.ErrRolledBack) {
		t.Errorf("cause: %v", err)
	}
	greeted(t, "tcp", addr.String(), 1)
}

// Generations of both versions take over from each other in turns.
func TestChainOfVersions(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	o.States = map[string][]byte{"count": []byte("1")}
	addr := o.Get("app").Address
	for n := uint64(1); n < 9; n += 2 {
		cfg := currentConfig(path)
		cfg.Probation = time.Millisecond
		h, s := start(t, o, cfg)
		s.listen("app", "tcp", "127.0.0.1:0") // as it was asked for first
		blob, err := s.g.State("count")
		if err != nil || string(blob) != fmt.Sprint(n) {
			t.Fatalf("state %q, %v", blob, err)
		}
		must(t, s.g.OfferState("count", func(context.Context) ([]byte, error) { return fmt.Append(nil, n+1), nil }))
		grant(t, h, s)
		_, err = h.AwaitCommit()
		must(t, err)
		must(t, o.Drained(h.Conn, ""))
		must(t, h.Close())
		o.Close()
		greeted(t, "tcp", addr, n+1)

		p := inProbation(t, frozenConfig(path))
		if p.Number != n+2 || string(p.States["count"]) != fmt.Sprint(n+1) || p.Get("app").Address != addr || p.Get("app").Asked != "127.0.0.1:0" {
			t.Fatalf("generation %d with %q at %+v", p.Number, p.States["count"], p.Get("app"))
		}
		must(t, p.Commit())
		await(t, "superseded", s.g.Superseded())
		s.close()
		_, err = awaitDrained(p.Pred)
		must(t, err)
		o = p.Own()
		t.Cleanup(o.Close)
		p.Close()
		o.States["count"] = fmt.Append(nil, n+2)
		wordIs(t, o.Word, v1.Settled(n+2, 0))
		servesFrozen(t, o.Set, "app")
	}
	o.Stop()
	isEmpty(t, filepath.Dir(path))
}
