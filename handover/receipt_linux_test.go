package handover

import (
	"encoding/json"
	"net"
	"testing"
	"time"
)

func receipt(t testing.TB, g *Generation) Receipt {
	t.Helper()
	r, err := g.Receipt()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReceipt(t *testing.T) {
	cfg := testConfig(t)
	cfg.Record = true
	cfg.Probation = time.Minute
	cfg.Program = "first"
	a := begin(t, cfg)
	ln := listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	if r := receipt(t, a); r.From != nil || r.Steps.Ready.IsZero() || r.Steps.Owner.IsZero() || !r.Steps.Connected.IsZero() {
		t.Fatalf("first generation: %+v", r)
	}
	dial := func() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	accept := func(ln net.Listener) {
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	dial()
	accept(ln)
	dial()
	dial() // wait in the queue

	cfg.Program = "second"
	b := begin(t, cfg)
	next := listen(t, b, "app", "", "")
	ready(t, b)
	accept(next)
	if err := b.pred.command(testContext(t), cmdCommit); err != nil {
		t.Fatal(err)
	}
	<-a.Superseded()
	a.Drained(map[string]int{"moved": 3})
	a.Close()
	var r Receipt
	eventually(t, "the predecessor's end is known", func() bool {
		r = receipt(t, b)
		return !r.Steps.Drained.IsZero()
	})
	if r.Generation != 2 || r.Program != "second" || r.From == nil || r.From.Program != "first" || string(r.From.Report) != `{"moved":3}` {
		t.Errorf("%+v from %+v", r, r.From)
	}
	s := r.Steps
	last := time.Time{}
	for i, at := range []time.Time{s.Connected, s.Welcomed, s.Received, s.Ready, s.Paused, s.Owner, s.FirstAccept, s.Committed, s.Drained} {
		if at.IsZero() || at.Before(last) {
			t.Errorf("step %d at %v after %v", i, at, last)
		}
		last = at
	}
	if s.LastAccept.IsZero() || s.LastAccept.After(s.Owner) {
		t.Errorf("last accept %v", s.LastAccept)
	}
	if len(r.Sockets) != 1 || r.Sockets[0].Cookie == 0 || r.Sockets[0].Queue == nil || *r.Sockets[0].Queue != 2 {
		t.Errorf("sockets %+v", r.Sockets)
	}
	text, err := json.Marshal(r)
	var again Receipt
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil || again.From.Program != "first" {
		t.Error(string(text), err)
	}
}

// A predecessor may tell any number.
func TestReceiptTakesNoFutureTimes(t *testing.T) {
	var s steps
	s.hear(&frameGranted{Paused: time.Now().Add(time.Hour).UnixNano(), LastAccept: -5})
	if !s.paused.IsZero() || !s.lastAccept.IsZero() {
		t.Errorf("%+v", s)
	}
}

// A successor that hears of its predecessor's departure before it is ready has
// nobody to give anything back to.
func TestRollbackWithoutPredecessor(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	b := begin(t, cfg)
	a.Close()
	<-b.pred.over
	if err := b.pred.command(testContext(t), cmdRollback); err != errKept {
		t.Fatal(err)
	}
	if err := b.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := b.Cause(); err != ErrStopRequested {
		t.Fatal(err)
	}
}
