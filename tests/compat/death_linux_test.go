package compat

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// An owner of version 1 dies: a present successor has its pidfd, and what it had
// received, and owns it.
func TestVersion1DiesBeforeItGrants(t *testing.T) {
	for name, ready := range map[string]bool{"before its successor is ready": false, "when its successor is ready": true} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			c := startChild(t, path)
			addr := c.do("v1-start")
			c.tell("v1-hand")
			g, err := handover.Start(t.Context(), currentConfig(path))
			must(t, err)
			s := serve(t, g)
			c.hear("v1-hand")
			s.listen("app", "", "")
			waiting := dial(t, "tcp", addr)
			if !ready {
				c.kill()
				must(t, g.Ready(t.Context()))
			} else {
				saying := call(func() error { return g.Ready(t.Context()) })
				c.do("v1-ready")
				c.kill()
				saying.wait(t)
			}
			hears(t, waiting, 2)
			if p := g.Phase(); p != handover.PhaseOwner {
				t.Errorf("%v", p)
			}
		})
	}
}

// An owner of version 1 dies in probation.
func TestVersion1DiesInProbation(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	c := startChild(t, path)
	addr := c.do("v1-start")
	c.tell("v1-hand")
	cfg := currentConfig(path)
	ev := watch(&cfg)
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	s := serve(t, g)
	c.hear("v1-hand")
	s.listen("app", "", "")
	ready := call(func() error { return g.Ready(t.Context()) })
	c.do("v1-ready", "v1-grant", "v1-alive")
	ready.wait(t)
	c.kill()
	ev.phase(t, handover.PhaseOwner)
	greeted(t, "tcp", addr, 2)
}

// A present owner dies: version 1 has its pidfd, and claims what it left.
func TestPresentOwnerDiesOverVersion1(t *testing.T) {
	for _, until := range []string{"sockets", "ready", "granted"} {
		t.Run(until, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			c := startChild(t, path)
			c.do("start", "ready")
			p := takeOver(t, frozenConfig(path))
			if err := p.Claim(0); err == nil {
				t.Fatal("claimed from an owner that lives")
			}
			switch until {
			case "ready":
				// Whether it has granted before it dies is chance.
				must(t, p.SayReady())
			case "granted":
				_, err := p.Ready()
				must(t, err)
			}
			c.kill()
			must(t, p.Claim(v1.Patience))
			wordIs(t, p.Word, v1.Settled(2, 0))
			servesFrozen(t, p.Set, "app")
			o := p.Own()
			t.Cleanup(o.Close)
			// It is a full owner.
			cfg := currentConfig(path)
			cfg.Probation = -1
			probation(t, o, cfg)
			greeted(t, "tcp", o.Get("app").Address, 3)
		})
	}
}

// A successor of version 1 that is silent in probation is killed: it would hold
// its clients for ever.
func TestSilentVersion1IsKilled(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	cfg := currentConfig(path)
	cfg.AliveTimeout = 100 * time.Millisecond
	ev := watch(&cfg)
	_, addr := currentOwner(t, cfg)
	c := startChild(t, path)
	c.do("v1-takeover")
	c.tell("v1-say-ready")
	c.killed()
	failed := ev.await(t, "the failure", func(e handover.Event) bool { return e.Phase == handover.PhaseOwner && e.Cause != nil })
	if !strings.Contains(failed.Cause.Error(), "silent") {
		t.Errorf("cause: %v", failed.Cause)
	}
	greeted(t, "tcp", addr.String(), 1)
}

// Either successor dies in probation: the owner, of the other version, takes
// back.
func TestSuccessorDiesInProbation(t *testing.T) {
	t.Run("version 1", func(t *testing.T) {
		leak.Check(t)
		path := controlPath(t)
		cfg := currentConfig(path)
		ev := watch(&cfg)
		_, addr := currentOwner(t, cfg)
		c := startChild(t, path)
		c.do("v1-takeover", "v1-say-ready")
		waiting := dial(t, "tcp", addr.String())
		c.kill()
		ev.await(t, "the failure", func(e handover.Event) bool { return e.Phase == handover.PhaseOwner && e.Cause != nil })
		hears(t, waiting, 1)
	})
	t.Run("the present", func(t *testing.T) {
		leak.Check(t)
		path := controlPath(t)
		o := frozenOwner(t, frozenConfig(path))
		c := startChild(t, path)
		c.tell("takeover")
		h := hand(t, o)
		c.hear("takeover")
		c.tell("ready")
		must(t, h.AwaitReady())
		must(t, h.Grant())
		c.hear("ready")
		if h.Pidfd < 0 || v1.Died(h.Pidfd, 0) {
			t.Fatal("no pidfd of the successor, or it says that it died")
		}
		waiting := dial(t, "tcp", o.Get("app").Address)
		c.kill()
		if err := h.AwaitRollback(); err == nil {
			t.Error("a dead process rolled back")
		}
		if !v1.Died(h.Pidfd, v1.Patience) {
			t.Error("its pidfd does not tell of its death")
		}
		if ok, err := h.TakeBack(); !ok || err != nil {
			t.Fatalf("not taken back: %v", err)
		}
		greetsFrozen(t, o.Set, "app")
		hears(t, waiting, 1)
	})
}

// An owner of version 1 dies over connections on their way: they are its
// successor's, who alone has them, unless it had withdrawn them before.
func TestVersion1DiesOverConnections(t *testing.T) {
	for name, withdraws := range map[string]bool{"sent": false, "sent and withdrawn": true} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			c := startChild(t, path)
			addr := c.do("v1-start")
			client := dial(t, "tcp", addr)
			c.do("v1-accept")
			c.tell("v1-hand")

			cfg := currentConfig(path)
			cfg.Probation = -1
			told, dead := make(chan struct{}), make(chan struct{})
			cfg.OnEvent = func(e handover.Event) {
				if e.Peer != nil && e.Peer.Phase == handover.PhaseDraining {
					close(told)
					<-dead // so long it reads nothing more
				}
			}
			g, err := handover.Start(t.Context(), cfg)
			must(t, err)
			serve(t, g)
			c.hear("v1-hand")
			ln, err := g.Listen("app", "", "")
			must(t, err)
			ready := call(func() error { return g.Ready(context.WithoutCancel(t.Context())) })
			c.do("v1-ready", "v1-grant")
			ready.wait(t)
			c.do("v1-progress")
			await(t, "progress", told)
			c.do("v1-send")
			if withdraws {
				c.do("v1-withdraw")
			}
			c.kill()
			close(dead)
			if withdraws {
				hangsUp(t, client)
				return
			}
			through(t, client, arrives(t, ln, 0))
		})
	}
}

// A present owner dies over connections on their way to version 1.
func TestPresentOwnerDiesOverConnections(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	c := startChild(t, path)
	client := dial(t, "tcp", c.do("start"))
	c.do("ready", "accept")
	fc := frozenConfig(path)
	fc.Probation = 0
	p := takeOver(t, fc)
	if settled, err := p.Ready(); err != nil || !settled {
		t.Fatalf("ready: %v, settled %v", err, settled)
	}
	c.do("superseded", "move")
	f, fds := connections(t, p.Pred)
	c.kill()
	all, err := p.Adopt(p.Pred, p.Sender(), f, fds, "")
	if err != nil || len(all) != 1 {
		t.Fatalf("arrived %d: %v", len(all), err)
	}
	defer all[0].Close()
	through(t, client, all[0])
}

// A cold start beside a live owner of version 1 is refused, and after its death
// it works with nothing to clean up.
func TestColdStartAfterVersion1(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	c := startChild(t, path)
	c.do("v1-start")
	cfg := currentConfig(path)
	cfg.Mode = handover.StartOnly
	if g, err := handover.Start(t.Context(), cfg); !errors.Is(err, handover.ErrOwned) {
		t.Fatalf("started beside a live owner: %v, %v", g, err)
	}
	c.kill()
	currentOwner(t, cfg)
	if _, err := v1.Start(frozenConfig(path)); err == nil {
		t.Error("version 1 started beside a live owner")
	}
}
