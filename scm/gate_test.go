package scm

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// newGate returns a gate that records its deadlines.
func newGate() (*gate, *[]time.Time) {
	var set []time.Time
	g := new(gate)
	g.init(func(d time.Time) error {
		set = append(set, d)
		return nil
	})
	return g, &set
}

func enter(t *testing.T, g *gate, ctx context.Context) *watch {
	t.Helper()
	if err := g.enter(ctx); err != nil {
		t.Fatal(err)
	}
	return g.active
}

// A registration can fire long after it was dropped. Called here by hand at
// the worst moments, it must not touch the call that is inside.
func TestLateFire(t *testing.T) {
	g, set := newGate()
	first, cancelFirst := context.WithCancel(context.Background())
	defer cancelFirst()
	second, cancelSecond := context.WithCancel(context.Background())
	defer cancelSecond()

	w := enter(t, g, first)
	g.leave()
	w.fire() // nobody inside
	enter(t, g, second)
	w.fire() // another context inside
	g.leave()
	if enter(t, g, context.Background()) != nil {
		t.Fatal("a context without end has a watch")
	}
	w.fire() // one without end inside
	g.leave()
	if len(*set) != 0 {
		t.Fatalf("deadlines were set: %v", *set)
	}
}

// A fire that comes after the operation but before leave leaves no deadline.
func TestFireBeforeLeave(t *testing.T) {
	g, set := newGate()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := enter(t, g, ctx)
	w.fire()
	g.leave()
	if len(*set) != 2 || !(*set)[0].Equal(past) || !(*set)[1].IsZero() {
		t.Fatalf("deadlines = %v, want the past and then none", *set)
	}
}

// The same context, also in a derived context that ends with it, is registered
// once.
func TestSameContext(t *testing.T) {
	g, _ := newGate()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := enter(t, g, ctx)
	g.leave()
	type key struct{}
	if enter(t, g, context.WithValue(ctx, key{}, 1)) != w {
		t.Error("registered again")
	}
	g.leave()
	g.close()
	if g.cached != nil {
		t.Error("a closed gate keeps the context")
	}
	if err := g.enter(ctx); !errors.Is(err, net.ErrClosed) {
		t.Errorf("enter of a closed gate = %v", err)
	}
}
