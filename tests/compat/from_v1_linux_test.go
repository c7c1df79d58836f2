package compat

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// A present successor takes everything over from an owner of version 1, is in
// probation, commits, hears how the drain goes, and is the last one.
func TestTakeoverFromVersion1(t *testing.T) {
	for _, name := range []string{"1 socket", "300 sockets", "every kind"} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			set := sets(filepath.Dir(path))[name]
			fc := frozenConfig(path)
			fc.AliveEvery = time.Millisecond
			o, err := v1.Start(fc)
			must(t, err)
			t.Cleanup(o.Close)
			for _, k := range set {
				must(t, o.Listen(k.name, k.network, k.address))
			}
			want := identitiesOf(o.Set)
			must(t, o.AddFile("note", note(t)))
			o.States = states()
			cfg := currentConfig(path)
			ev := watch(&cfg)
			clients := queue(t, want)

			h, s := start(t, o, cfg)
			if s.g.Number() != 2 {
				t.Fatalf("generation %d", s.g.Number())
			}
			got := map[string][]byte{}
			for name := range states() {
				got[name], err = s.g.State(name)
				must(t, err)
			}
			areStates(t, got)
			f, err := s.g.File("note")
			must(t, err)
			isNote(t, f)
			s.listenAll(set)
			wordIs(t, o.Word, v1.Settled(1, 0))
			grant(t, h, s)
			wordIs(t, o.Word, v1.Settled(2, 0)|v1.Probation)
			ev.phase(t, handover.PhaseProbation)
			for name, c := range clients {
				if hears(t, c, 2); t.Failed() {
					t.Fatalf("%s: the queue was lost", name)
				}
			}
			acceptsNothing(t, o.Set, set[0].name)
			for range 3 {
				if typ, err := h.Await(); err != nil || typ != "alive" {
					t.Fatalf("in probation: %s, %v", typ, err)
				}
			}
			committing := call(func() error { return handover.Operator{Socket: path, Timeout: patience}.Commit(t.Context()) })
			_, err = h.AwaitCommit()
			must(t, err)
			committing.wait(t)
			wordIs(t, o.Word, v1.Settled(2, 0))

			hearsDrain(t, ev, o, h)
			o.Close()
			greetsOnAll(t, want, 2)
			told := identitiesToldBy(t, path)
			delete(told, "note")
			same(t, "sockets after the takeover", want, told)
			s.close()
			isEmpty(t, filepath.Dir(path))
		})
	}
}

// hearsDrain drains a frozen owner, of which its successor tells.
func hearsDrain(t *testing.T, ev *events, o *v1.Owner, h *v1.Handover) {
	t.Helper()
	o.Stats = v1.Stats{
		Connections: map[string]int64{"active": 2, "idle": 1}, Ended: map[string]int64{"finished": 5},
		Oldest: int64(time.Second), Remaining: int64(time.Minute),
	}
	must(t, o.Progress(h.Conn))
	tells := func(p handover.Phase) func(handover.Event) bool {
		return func(ev handover.Event) bool {
			return ev.Peer != nil && ev.Peer.Generation == o.Number && ev.Peer.Phase == p && (p == handover.PhaseDone || ev.Peer.Stats.Total() > 0)
		}
	}
	same(t, "progress", handover.Stats{
		Connections: map[string]int64{"active": 2, "idle": 1}, Ended: map[string]int64{"finished": 5},
		Oldest: time.Second, Remaining: time.Minute,
	}, ev.await(t, "progress", tells(handover.PhaseDraining)).Peer.Stats)
	must(t, o.Drained(h.Conn, `{"closed":3}`))
	last := ev.await(t, "the report", tells(handover.PhaseDone)).Peer
	if string(last.Report) != `{"closed":3}` || last.Lost || last.Program != "app" || last.Build != "v1" || last.PID == 0 {
		t.Errorf("last word of generation %d: %+v", o.Number, last)
	}
	must(t, h.Close())
}

// Probation ends by itself when its time is over.
func TestProbationAfterVersion1Ends(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	cfg := currentConfig(path)
	cfg.Probation = 50 * time.Millisecond
	ev := watch(&cfg)
	h, _ := probation(t, o, cfg)
	alive, err := h.AwaitCommit()
	if err != nil || alive < 1 {
		t.Fatalf("committed after %d heartbeats: %v", alive, err)
	}
	ev.phase(t, handover.PhaseOwner)
	wordIs(t, o.Word, v1.Settled(2, 0))
}

// Without probation ownership is settled at once.
func TestTakeoverFromVersion1WithoutProbation(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	addr := o.Get("app").Address
	cfg := currentConfig(path)
	cfg.Probation = -1
	ev := watch(&cfg)
	h, s := probation(t, o, cfg)
	wordIs(t, o.Word, v1.Settled(2, 0))
	ev.phase(t, handover.PhaseOwner)
	greeted(t, "tcp", addr, 2)
	// It says nothing more: there is nothing to acknowledge.
	s.close()
	must(t, h.AwaitEnd())
}

// waysBack are how a successor in probation can be made to give back.
func waysBack(path string, g *handover.Generation) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"it is stopped":        g.Stop,
		"it is closed":         func(context.Context) error { return g.Close() },
		"an operator wants it": handover.Operator{Socket: path, Timeout: patience}.Rollback,
	}
}

// A present successor in probation gives back to an owner of version 1, who
// serves on and hands over again, to a number that was not used yet.
func TestRollbackToVersion1(t *testing.T) {
	for name := range waysBack("", nil) {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			o := frozenOwner(t, frozenConfig(path))
			h, s := probation(t, o, currentConfig(path))
			greeted(t, "tcp", o.Get("app").Address, 2)
			back := call(func() error { return waysBack(path, s.g)[name](context.WithoutCancel(t.Context())) })
			must(t, h.AwaitRollback())
			wordIs(t, o.Word, v1.Settled(2, 0)|v1.Probation)
			if ok, err := h.Revoke(); !ok || err != nil {
				t.Fatalf("not taken back: %v", err)
			}
			back.wait(t)
			await(t, "superseded", s.g.Superseded())
			if err := s.g.Cause(); !errors.Is(err, handover.ErrRolledBack) {
				t.Errorf("cause: %v", err)
			}
			must(t, h.AwaitEnd())
			must(t, h.Close())
			wordIs(t, o.Word, v1.Settled(1, 1))
			servesFrozen(t, o.Set, "app")

			addr := o.Get("app").Address
			h, s = probation(t, o, currentConfig(path))
			if s.g.Number() != 3 {
				t.Errorf("after a rollback the next one is generation %d", s.g.Number())
			}
			wordIs(t, o.Word, v1.Settled(3, 1)|v1.Probation)
			greeted(t, "tcp", addr, 3)
			s.giveBack(t, h)
		})
	}
}

// giveBack closes a successor in probation, and has its owner take back.
func (s *server) giveBack(t testing.TB, h *v1.Handover) {
	t.Helper()
	closing := call(s.g.Close)
	must(t, h.AwaitRollback())
	if ok, err := h.Revoke(); !ok || err != nil {
		t.Fatalf("not taken back: %v", err)
	}
	closing.wait(t)
}

// An owner of version 1 takes back unasked.
func TestVersion1Revokes(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	h, s := probation(t, o, currentConfig(path))
	if ok, err := h.Revoke(); !ok || err != nil {
		t.Fatalf("not taken back: %v", err)
	}
	await(t, "superseded", s.g.Superseded())
	if err := s.g.Cause(); !errors.Is(err, handover.ErrRevoked) {
		t.Errorf("cause: %v", err)
	}
	servesFrozen(t, o.Set, "app")
}

// An owner of version 1 has taken back, and its successor, which has not heard
// of it, wants to commit: the word decides.
func TestVersion1TakesBackBeforeTheCommit(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	cfg := currentConfig(path)
	cfg.Probation = time.Millisecond
	granted, takenBack := make(chan struct{}), make(chan struct{})
	cfg.OnEvent = func(e handover.Event) {
		if e.Phase == handover.PhaseProbation {
			close(granted)
			<-takenBack // so long its probation does not go on
		}
	}
	h, s := start(t, o, cfg)
	s.listen("app", "", "")
	ready := call(func() error { return s.g.Ready(context.WithoutCancel(t.Context())) })
	must(t, h.AwaitReady())
	must(t, h.Grant())
	await(t, "probation", granted)
	ok, err := h.TakeBack()
	close(takenBack)
	if !ok || err != nil {
		t.Fatalf("not taken back: %v", err)
	}
	ready.wait(t) // it owned for a moment
	await(t, "superseded", s.g.Superseded())
	if err := s.g.Cause(); !errors.Is(err, handover.ErrRevoked) {
		t.Errorf("cause: %v", err)
	}
	if alive, err := h.AwaitCommit(); err == nil {
		t.Errorf("committed after %d heartbeats", alive)
	}
	wordIs(t, o.Word, v1.Settled(1, 1))
	servesFrozen(t, o.Set, "app")
}

// An owner of version 1 leaves in probation: its successor owns, and says so.
func TestVersion1LeavesInProbation(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	addr := o.Get("app").Address
	cfg := currentConfig(path)
	ev := watch(&cfg)
	h, _ := probation(t, o, cfg)
	must(t, h.Leave())
	wordIs(t, o.Word, v1.Settled(2, 0))
	_, err := h.AwaitCommit()
	must(t, err)
	ev.phase(t, handover.PhaseOwner)
	must(t, h.Close())
	o.Close()
	greeted(t, "tcp", addr, 2)
}

// An owner of version 1 leaves while its successor prepares: that one owns when
// it is ready.
func TestVersion1LeavesEarly(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	addr := o.Get("app").Address
	h, s := start(t, o, currentConfig(path))
	s.listen("app", "", "")
	h.Probation = 0
	must(t, h.Grant()) // nobody was ready
	wordIs(t, o.Word, v1.Settled(2, 0))
	must(t, h.CloseWrite())
	must(t, s.g.Ready(t.Context()))
	greeted(t, "tcp", addr, 2)
	if p := s.g.Phase(); p != handover.PhaseOwner {
		t.Errorf("%v", p)
	}
}

// A present successor gives up: an owner of version 1 hears why, and serves on.
func TestSuccessorOfVersion1Withdraws(t *testing.T) {
	for name, withdraw := range map[string]func(t *testing.T, h *v1.Handover, s *server) error{
		"before it is ready": func(t *testing.T, h *v1.Handover, s *server) error {
			s.g.Close()
			return h.AwaitReady()
		},
		"when it is ready": func(t *testing.T, h *v1.Handover, s *server) error {
			ctx, cancel := context.WithCancel(t.Context())
			ready := call(func() error { return s.g.Ready(ctx) })
			must(t, h.AwaitReady())
			cancel()
			if err := ready.fails(t); !errors.Is(err, context.Canceled) {
				t.Errorf("ready: %v", err)
			}
			// The word has been declined, before the message was sent: a
			// grant is not possible any more.
			err := h.Grant()
			if typ, e := h.Await(); e != nil || typ != "rollback" {
				t.Errorf("instead of a rollback: %s, %v", typ, e)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			o := frozenOwner(t, frozenConfig(path))
			h, s := start(t, o, currentConfig(path))
			s.listen("app", "", "")
			if err := withdraw(t, h, s); !errors.Is(err, v1.ErrWithdrew) {
				t.Fatalf("the owner was told: %v", err)
			}
			must(t, h.AwaitEnd())
			wordIs(t, o.Word, v1.Settled(1, 1))
			servesFrozen(t, o.Set, "app")
			// The same number again: it was never granted.
			h, s = probation(t, o, currentConfig(path))
			if s.g.Number() != 2 {
				t.Errorf("generation %d", s.g.Number())
			}
			s.giveBack(t, h)
		})
	}
}

// A present successor that does not like what it gets says why.
func TestSuccessorTellsVersion1WhatIsWrong(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	o.Get("app").Network = "udp" // it is TCP
	o.Get("app").Kind = "packet"
	starting := async(func() (*handover.Generation, error) { return handover.Start(t.Context(), currentConfig(path)) })
	c, hello, err := o.AcceptControl()
	must(t, err)
	defer c.Close()
	if _, err := o.HandOver(c, hello); !errors.Is(err, v1.ErrWithdrew) {
		t.Errorf("the owner was told: %v", err)
	}
	if err := starting.fails(t); err == nil || !strings.Contains(err.Error(), "app") {
		t.Errorf("start: %v", err)
	}
	wordIs(t, o.Word, v1.Settled(1, 1))
	o.Get("app").Network, o.Get("app").Kind = "tcp", "listener"
	servesFrozen(t, o.Set, "app")
}

// Whatever code version 1 refuses with, and one that came later, arrives as it
// is, with its text.
func TestRefusedByVersion1(t *testing.T) {
	for _, code := range []string{
		"unauthorized", "busy", "not_ready", "version", "revision", "limit", "timeout", "stopping", "protocol", "state", "internal", "a-later-one",
	} {
		t.Run(code, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			o := frozenOwner(t, frozenConfig(path))
			for _, f := range map[string]func() error{
				"start": func() error { _, err := handover.Start(t.Context(), currentConfig(path)); return err },
				"status": func() error {
					_, err := handover.Operator{Socket: path, Timeout: patience}.Status(t.Context())
					return err
				},
				"stop": func() error {
					_, err := handover.Operator{Socket: path, Timeout: patience}.Stop(t.Context(), nil)
					return err
				},
			} {
				asking := call(f)
				c, _, err := o.AcceptControl()
				must(t, err)
				c.Refuse(code, "because of <this>")
				c.Close()
				var refused *handover.RefusedError
				if err := asking.fails(t); !errors.As(err, &refused) || string(refused.Code) != code || refused.Message != "because of <this>" {
					t.Errorf("refused: %v", err)
				}
			}
		})
	}
}

// Version 1 decides by itself who is refused.
func TestVersion1RefusesABusyAndALowerOne(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	fc := frozenConfig(path)
	fc.Revision = 7
	o := frozenOwner(t, fc)
	cfg := currentConfig(path)
	for _, revision := range []uint64{0, 6} {
		cfg.Revision = revision
		refusedBy(t, o, cfg, handover.CodeRevision)
	}
	cfg.Force = true // with the revision 6
	h, s := start(t, o, cfg)
	s.listen("app", "", "")
	cfg.Force, cfg.Revision = false, 8
	refusedBy(t, o, cfg, handover.CodeBusy)
	grant(t, h, s)
	s.giveBack(t, h)
	servesFrozen(t, o.Set, "app")
}

func refusedBy(t *testing.T, o *v1.Owner, cfg handover.Config, code handover.Code) {
	t.Helper()
	starting := async(func() (*handover.Generation, error) { return handover.Start(t.Context(), cfg) })
	c, hello, err := o.AcceptControl()
	must(t, err)
	defer c.Close()
	var said *v1.RefusedError
	if _, err := o.HandOver(c, hello); !errors.As(err, &said) {
		t.Fatalf("not refused: %v", err)
	}
	var heard *handover.RefusedError
	if err := starting.fails(t); !errors.As(err, &heard) || heard.Code != code || heard.Message != said.Message {
		t.Errorf("heard %v, said %v", err, said)
	}
}

// Refused after everything was received.
func TestVersion1RefusesWhenItIsReady(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	h, s := start(t, o, currentConfig(path))
	s.listen("app", "", "")
	ready := call(func() error { return s.g.Ready(context.WithoutCancel(t.Context())) })
	must(t, h.AwaitReady())
	h.Fail()
	h.Refuse("timeout", "too late")
	var refused *handover.RefusedError
	if err := ready.fails(t); !errors.As(err, &refused) || refused.Code != handover.CodeTimeout {
		t.Errorf("ready: %v", err)
	}
	wordIs(t, o.Word, v1.Settled(1, 1))
	servesFrozen(t, o.Set, "app")
}

// A present operator and an owner of version 1.
func TestOperatorOfVersion1(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	fc := frozenConfig(path)
	fc.Revision = 3
	o := frozenOwner(t, fc)
	for i := range 60 { // three pages
		must(t, o.Listen("more-"+string(rune('A'+i)), "tcp", "127.0.0.1:0"))
	}
	o.Stats.Connections = map[string]int64{"active": 4}
	op := handover.Operator{Socket: path, Timeout: patience}

	t.Run("status", func(t *testing.T) {
		asking := async(func() (*handover.Status, error) { return op.Status(t.Context()) })
		must(t, o.TellStatus(hear(t, o.Set, v1.IntentStatus)))
		st := asking.wait(t)
		if st.Protocol != 1 || st.Generation != 1 || st.Phase != handover.PhaseOwner || st.Program != "app" || st.Build != "v1" ||
			st.Revision != 3 || st.PID == 0 || st.Started.IsZero() || st.Owner.IsZero() || st.Stats.Total() != 4 {
			t.Errorf("status: %+v", st)
		}
		got := map[string]identity{}
		for _, s := range st.Sockets {
			got[s.Name] = identity{string(s.Kind), s.Network, s.Address, s.Cookie}
			if s.Queue == nil || *s.Queue != 0 || s.Backlog == nil || *s.Backlog <= 0 || s.Netns == 0 {
				t.Errorf("%s: %+v", s.Name, s)
			}
		}
		same(t, "sockets", identitiesOf(o.Set), got)
	})
	for intent, ask := range map[string]func(context.Context) error{v1.IntentCommit: op.Commit, v1.IntentRollback: op.Rollback} {
		t.Run(intent, func(t *testing.T) {
			asking := call(func() error { return ask(t.Context()) })
			c := hear(t, o.Set, intent)
			must(t, c.Ok())
			c.Close()
			asking.wait(t)
		})
	}
	t.Run("stop", func(t *testing.T) {
		var progress []handover.Stats
		asking := async(func() (json.RawMessage, error) {
			return op.Stop(t.Context(), func(s handover.Stats) { progress = append(progress, s) })
		})
		c := hear(t, o.Set, v1.IntentStop)
		must(t, o.Progress(c))
		o.Stats.Connections["active"] = 3
		must(t, o.Progress(c))
		must(t, o.Drained(c, `{"closed":4}`))
		c.Close()
		o.Stop()
		if report := asking.wait(t); string(report) != `{"closed":4}` {
			t.Errorf("report: %s", report)
		}
		if len(progress) != 2 || progress[0].Total() != 4 || progress[1].Total() != 3 {
			t.Errorf("progress: %v", progress)
		}
		isEmpty(t, filepath.Dir(path))
		if _, err := op.Status(t.Context()); !errors.Is(err, handover.ErrNoOwner) {
			t.Errorf("after the stop: %v", err)
		}
	})
}

// hear has a frozen generation hear an operator.
func hear(t testing.TB, s *v1.Set, intent string) *v1.Conn {
	t.Helper()
	c, hello, err := s.AcceptControl()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	if hello.Intent != intent {
		t.Fatalf("intent %q", hello.Intent)
	}
	return c
}
