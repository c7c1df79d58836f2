package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// later makes frozen peers speak as a later version might: each object that
// they send has members that version 1 does not know. It remembers which frames
// were changed.
type later struct {
	first bool // the unknown ones come first, so that the type does not

	mu   sync.Mutex
	seen map[string]bool
}

const (
	unknownFirst = `"a_later_member":{"type":"refuse","items":[{"name":7}],"count":-1},"another":null,`
	unknownLast  = `,"a_later_member":["type",{"code":1}],"Another \u00fc":1e300,"":true}`
)

func (l *later) config(path string) v1.Config {
	fc := frozenConfig(path)
	fc.OnConn = func(c *v1.Conn) { c.Rewrite = l.rewrite }
	return fc
}

func (l *later) rewrite(p []byte) []byte {
	var f map[string]any
	d := json.NewDecoder(bytes.NewReader(p))
	d.UseNumber() // inodes and cookies have 64 bits
	if err := d.Decode(&f); err != nil {
		panic(err)
	}
	typ := f["type"].(string)
	l.mu.Lock()
	l.seen[typ] = true
	l.mu.Unlock()
	// The inner objects first, that the items of a frame still fit it.
	for _, name := range []string{"items", "sockets"} {
		l.addTo(f[name])
	}
	if st, ok := f["status"].(map[string]any); ok {
		l.addTo(st["sockets"])
		l.add(st)
	}
	b, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	// In the order that version 1 writes, with the type first.
	if !l.first {
		delete(f, "type")
		rest, _ := json.Marshal(f)
		b = fmt.Appendf(nil, `{"type":%q,%s`, typ, rest[1:])
		if len(f) == 0 {
			b = fmt.Appendf(nil, `{"type":%q}`, typ)
		}
		return append(b[:len(b)-1], unknownLast...)
	}
	return append([]byte("{"+unknownFirst), b[1:]...)
}

// addTo adds members to the objects of a list.
func (l *later) addTo(list any) {
	objects, _ := list.([]any)
	for _, o := range objects {
		l.add(o.(map[string]any))
	}
}

func (l *later) add(o map[string]any) {
	o["a_later_member"] = map[string]any{"name": 7}
}

func (l *later) saw(t *testing.T, want ...string) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	same(t, "frames with unknown members", want, slices.Sorted(maps.Keys(l.seen)))
}

// Who may send what, by the table of docs/protocol.md.
var (
	fromOwners     = []string{"refuse", "welcome", "sockets", "granted", "commit", "revoked", "progress", "connections", "drained", "status", "ok"}
	fromSuccessors = []string{"hello", "received", "ready", "alive", "commit", "rollback", "adopted"}
)

// both runs a test with the unknown members last and first.
func both(t *testing.T, f func(t *testing.T, l *later)) {
	for name, first := range map[string]bool{"last": false, "first": true} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			f(t, &later{first: first, seen: map[string]bool{}})
		})
	}
}

// A later owner says more than is known: a present successor and operator take
// what they know. All frames that an owner may send are sent.
func TestUnknownMembersFromAnOwner(t *testing.T) {
	both(t, func(t *testing.T, l *later) {
		path := controlPath(t)
		o := frozenOwner(t, l.config(path))
		o.States = map[string][]byte{"tickets": []byte("t")}
		cfg := currentConfig(path)
		ev := watch(&cfg)
		op := handover.Operator{Socket: path, Timeout: patience}

		asking := async(func() (*handover.Status, error) { return op.Status(t.Context()) })
		must(t, o.TellStatus(hear(t, o.Set, v1.IntentStatus)))
		if st := asking.wait(t); st.Generation != 1 || len(st.Sockets) != 1 || st.Sockets[0].Address != o.Get("app").Address {
			t.Errorf("status: %+v", st)
		}
		ordering := call(func() error { return op.Commit(t.Context()) })
		must(t, hear(t, o.Set, v1.IntentCommit).Ok())
		ordering.wait(t)
		stopping := async(func() (json.RawMessage, error) { return op.Stop(t.Context(), nil) })
		c := hear(t, o.Set, v1.IntentStop)
		must(t, o.Progress(c))
		must(t, o.Drained(c, `"r"`))
		if r := stopping.wait(t); string(r) != `"r"` {
			t.Errorf("report: %s", r)
		}
		cfg.Force = true
		starting := call(func() error { _, err := handover.Start(t.Context(), cfg); return err })
		hear(t, o.Set, v1.Takeover).Refuse("busy", "later")
		var refused *handover.RefusedError
		if err := starting.fails(t); !errors.As(err, &refused) || refused.Code != handover.CodeBusy || refused.Message != "later" {
			t.Errorf("refused: %v", err)
		}

		h, s := probation(t, o, cfg)
		if ok, err := h.Revoke(); !ok || err != nil {
			t.Fatalf("not taken back: %v", err)
		}
		await(t, "superseded", s.g.Superseded())
		if err := s.g.Cause(); !errors.Is(err, handover.ErrRevoked) {
			t.Errorf("cause: %v", err)
		}
		h.Close()

		clients, servers := connected(t, o.Set, 1)
		h, s = start(t, o, cfg)
		if blob, err := s.g.State("tickets"); err != nil || string(blob) != "t" {
			t.Errorf("state: %q, %v", blob, err)
		}
		ln, err := s.g.Listen("app", "", "")
		must(t, err)
		grant(t, h, s)
		must(t, h.Leave())
		ev.phase(t, handover.PhaseOwner)
		_, err = h.AwaitCommit()
		must(t, err)
		must(t, o.SendConnections(h.Conn, moving(0, servers[0])))
		_, err = h.AwaitAdopted()
		must(t, err)
		servers[0].Close()
		through(t, clients[0], arrives(t, ln, 0))
		hearsDrain(t, ev, o, h)
		l.saw(t, fromOwners...)
	})
}

// A later successor, operator or draining generation says more than is known: a
// present owner takes what it knows. All frames that these may send are sent.
func TestUnknownMembersFromASuccessor(t *testing.T) {
	both(t, func(t *testing.T, l *later) {
		path := controlPath(t)
		fc := l.config(path)
		x := currentConfig(path)
		x.Mode = handover.StartOnly
		g, err := handover.Start(t.Context(), x)
		must(t, err)
		serve(t, g)
		ln, err := g.Listen("app", "tcp", "127.0.0.1:0")
		must(t, err)
		must(t, g.Ready(t.Context()))
		client := dial(t, "tcp", ln.Addr().String())
		server := async(ln.Accept).wait(t)
		defer server.Close()

		if st, _, err := v1.AskStatus(fc); err != nil || st.Generation != 1 {
			t.Errorf("status: %+v, %v", st, err)
		}
		must(t, v1.Order(fc, v1.IntentCommit))
		p := takeOver(t, fc)
		must(t, p.Withdraw("no"))
		must(t, p.Pred.AwaitEnd())
		p.Close()
		p = inProbation(t, fc)
		must(t, p.Rollback())
		p.Close()
		p = inProbation(t, fc)
		must(t, p.Alive())
		must(t, p.Commit())
		await(t, "superseded", g.Superseded())
		move := call(func() error { return ln.(mover).MoveConn(t.Context(), server, []byte("u"), []byte("s")) })
		f, fds := connections(t, p.Pred)
		all, err := p.Adopt(p.Pred, p.Sender(), f, fds, "")
		if err != nil || len(all) != 1 || string(all[0].Unread) != "u" || string(all[0].State) != "s" {
			t.Fatalf("arrived %v: %v", all, err)
		}
		defer all[0].Close()
		move.wait(t)
		server.Close()
		through(t, client, all[0])
		must(t, g.Drained(nil))
		_, err = awaitDrained(p.Pred)
		must(t, err)
		l.saw(t, fromSuccessors...)
	})
}

// What the two tests above send is each frame that there is.
func TestEachFrameHasASender(t *testing.T) {
	sent := slices.Concat(fromOwners, fromSuccessors)
	slices.Sort(sent)
	same(t, "frames", slices.Sorted(slices.Values(v1.Types)), slices.Compact(sent))
}

// A later peer that speaks version 1 as well is spoken to in version 1, wherever
// in its list that is.
func TestUnknownProtocolsBesideVersion1(t *testing.T) {
	for _, protocols := range [][]int{{1, 1001}, {1001, 1}, {1 << 30, -1, 0, 1, 1001}} {
		t.Run(fmt.Sprint(protocols), func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			_, addr := currentOwner(t, currentConfig(path))
			fc := frozenConfig(path)
			fc.Protocols = protocols
			p := takeOver(t, fc)
			if p.Welcome.Protocol != 1 {
				t.Errorf("protocol %d", p.Welcome.Protocol)
			}
			must(t, p.Withdraw(""))
			if st, _, err := v1.AskStatus(fc); err != nil || st.Protocol != 1 {
				t.Errorf("status: %+v, %v", st, err)
			}
			greeted(t, "tcp", addr.String(), 1)
		})
	}
}

// A peer that does not speak version 1 is told what to do.
func TestOnlyUnknownProtocols(t *testing.T) {
	for _, protocols := range [][]int{{1001}, {1002, 1001}, {}} {
		t.Run(fmt.Sprint(protocols), func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			s, addr := currentOwner(t, currentConfig(path))
			fc := frozenConfig(path)
			fc.Protocols = protocols
			text := fmt.Sprintf("the peer %v: go through a version that speaks both", protocols)
			refusedWith(t, fc, "version", text)
			_, _, err := v1.AskStatus(fc)
			refusedOrder(t, err, "version", text)
			if p := s.g.Phase(); p != handover.PhaseOwner {
				t.Errorf("the owner is %v", p)
			}
			greeted(t, "tcp", addr.String(), 1)
		})
	}
}

// Version 1 refuses a present program that has forgotten it.
func TestVersion1RefusesALaterProtocol(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	fc := frozenConfig(path)
	fc.Protocols = []int{1001}
	refused := call(func() error { _, err := v1.TakeOver(fc); return err })
	if _, _, err := o.AcceptControl(); err == nil {
		t.Error("accepted")
	}
	refusedOrder(t, refused.fails(t), "version", "the owner speaks protocol 1, the peer [1001]")
	servesFrozen(t, o.Set, "app")
}

// unknown is a frame of a later version.
var unknown = []byte(`{"type":"a-later-type","generation":2,"settled":true}`)

// An unknown frame ends the conversation, at whatever step, and the owner stays.
func TestUnknownFrameFromASuccessor(t *testing.T) {
	for name, until := range map[string]func(testing.TB, v1.Config) *v1.Successor{
		"instead of ready": takeOver,
		"in probation":     inProbation,
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			s, addr := currentOwner(t, currentConfig(path))
			p := until(t, frozenConfig(path))
			must(t, p.Pred.SendRaw(unknown))
			f, _, err := p.Pred.Recv()
			must(t, err)
			switch f := f.(type) {
			case *v1.Refuse:
				if name != "instead of ready" || f.Code != "protocol" || !strings.Contains(f.Message, "a-later-type") {
					t.Errorf("refused: %+v", f)
				}
			case *v1.Simple:
				if name != "in probation" || f.Type != "revoked" {
					t.Errorf("answered: %+v", f)
				}
			default:
				t.Errorf("answered: %+v", f)
			}
			must(t, p.Pred.AwaitEnd())
			wordIs(t, p.Word, v1.Settled(1, 1))
			p.Close()
			if p := s.g.Phase(); p != handover.PhaseOwner {
				t.Errorf("the owner is %v", p)
			}
			greeted(t, "tcp", addr.String(), 1)
			// The next one succeeds.
			fc := frozenConfig(path)
			fc.Probation = 0
			next := takeOver(t, fc)
			settled, err := next.Ready()
			if err != nil || !settled {
				t.Errorf("the next one: %v, settled %v", err, settled)
			}
			await(t, "superseded", s.g.Superseded())
		})
	}
}

// The same in place of a hello.
func TestUnknownFrameInPlaceOfAHello(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	_, addr := currentOwner(t, currentConfig(path))
	fc := frozenConfig(path)
	fc.OnConn = func(c *v1.Conn) { c.Rewrite = func([]byte) []byte { return unknown } }
	refusedWith(t, fc, "protocol", "a-later-type")
	greeted(t, "tcp", addr.String(), 1)
}

// An unknown frame from an owner ends the takeover, and the owner stays. Once
// ownership has moved for good it does no harm.
func TestUnknownFrameFromAnOwner(t *testing.T) {
	for _, when := range []string{"instead of welcome", "instead of sockets", "instead of granted", "in a drain"} {
		t.Run(when, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			frame, at := "", map[string]string{"instead of welcome": "welcome", "instead of sockets": "sockets"}[when]
			fc := frozenConfig(path)
			fc.OnConn = func(c *v1.Conn) {
				c.Rewrite = func(p []byte) []byte {
					if frame != "" && strings.HasPrefix(string(p), `{"type":"`+frame+`"`) {
						return unknown
					}
					return p
				}
			}
			frame = at
			o := frozenOwner(t, fc)
			addr := o.Get("app").Address
			cfg := currentConfig(path)
			cfg.Probation = -1
			starting := async(func() (*handover.Generation, error) { return handover.Start(t.Context(), cfg) })
			c, hello, err := o.AcceptControl()
			must(t, err)
			t.Cleanup(func() { c.Close() })
			h, err := o.HandOver(c, hello)
			if frame != "" {
				if err == nil {
					t.Fatal("the takeover went on")
				}
				if err := starting.fails(t); err == nil || !strings.Contains(err.Error(), "unknown") {
					t.Errorf("start: %v", err)
				}
				servesFrozen(t, o.Set, "app")
				return
			}
			must(t, err)
			t.Cleanup(func() { h.Close() })
			s := serve(t, starting.wait(t))
			s.listen("app", "", "")
			ready := call(func() error { return s.g.Ready(context.WithoutCancel(t.Context())) })
			must(t, h.AwaitReady())
			if when == "instead of granted" {
				must(t, h.SendRaw(unknown))
				if err := ready.fails(t); err == nil || !strings.Contains(err.Error(), "unknown") {
					t.Errorf("ready: %v", err)
				}
				if err := h.Grant(); !errors.Is(err, v1.ErrWithdrew) {
					t.Errorf("granted: %v", err)
				}
				servesFrozen(t, o.Set, "app")
				return
			}
			must(t, h.Grant())
			ready.wait(t)
			must(t, h.SendRaw(unknown))
			must(t, h.AwaitEnd())
			o.Close()
			greeted(t, "tcp", addr, 2)
			if p := s.g.Phase(); p != handover.PhaseOwner {
				t.Errorf("%v", p)
			}
		})
	}
}

// An unknown answer to a present operator is an error.
func TestUnknownFrameToAnOperator(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	op := handover.Operator{Socket: path, Timeout: patience}
	for intent, ask := range map[string]func(context.Context) error{
		v1.IntentStatus:   func(ctx context.Context) error { _, err := op.Status(ctx); return err },
		v1.IntentStop:     func(ctx context.Context) error { _, err := op.Stop(ctx, nil); return err },
		v1.IntentCommit:   op.Commit,
		v1.IntentRollback: op.Rollback,
	} {
		asking := call(func() error { return ask(t.Context()) })
		must(t, hear(t, o.Set, intent).SendRaw(unknown))
		if err := asking.fails(t); err == nil || !strings.Contains(err.Error(), "a-later-type") {
			t.Errorf("%s: %v", intent, err)
		}
	}
}

// A code, a network or a kind of a later version is no reason to hang.
func TestUnknownKindOfDescriptor(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	o.Get("app").Kind = "a-later-kind"
	cfg := currentConfig(path)
	starting := async(func() (*handover.Generation, error) { return handover.Start(t.Context(), cfg) })
	c, hello, err := o.AcceptControl()
	must(t, err)
	defer c.Close()
	if _, err := o.HandOver(c, hello); !errors.Is(err, v1.ErrWithdrew) {
		t.Errorf("the owner was told: %v", err)
	}
	if err := starting.fails(t); err == nil || !strings.Contains(err.Error(), "a-later-kind") {
		t.Errorf("start: %v", err)
	}
}
