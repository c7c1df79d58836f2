package e2e

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// Generations take over while all earlier ones still drain, since each has a
// request that takes long. The status tells of each, and each request is
// answered by the generation that accepted it.
func TestTakeoverWhileEarlierGenerationsDrain(t *testing.T) {
	b := newBench(t)
	const last = 6
	all := []*process{b.serve()}
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), Workers: 16})
	keepAlive := makeLoad(t, b.client, loadSpec{Address: b.address("web"), KeepAlive: true, PostRatio: .5, Think: think, Workers: 16})
	var slow []*rawConn
	var want []uint64
	for generation := uint64(1); ; generation++ {
		st := b.awaitDraining(want)
		if st.Generation != generation {
			t.Fatalf("generation %d is the owner, want %d", st.Generation, generation)
		}
		if generation == last {
			break
		}
		slow = append(slow, b.beginSlowRequest())
		all = append(all, b.succeed(generation+1))
		load.awaitMore(generation + 1)
		keepAlive.awaitMore(generation + 1)
		want = append(want, generation)
	}
	// They end in another order than they began.
	for len(want) > 0 {
		i := len(want) / 2
		c, generation := slow[i], want[i]
		c.send("dy")
		c.wantEcho(strconv.FormatUint(generation, 10), false)
		all[generation-1].wantCode(0)
		slow, want = slices.Delete(slow, i, i+1), slices.Delete(want, i, i+1)
		b.awaitDraining(want)
		c.send(echoRequest) // the connection goes on
		c.wantEcho(strconv.Itoa(last), false)
	}
	load.wantPerfect(last)
	if res := keepAlive.wantPerfect(last); res.Reconnects() != 0 {
		t.Errorf("%d clients had to connect anew, want none", res.Reconnects())
	}
	all[last-1].wantAlive()
}

// beginSlowRequest sends a request but for its last two bytes, and waits until
// a handler has begun with it.
func (b *bench) beginSlowRequest() *rawConn {
	b.t.Helper()
	c := b.connect("web")
	c.send("POST /echo HTTP/1.1\r\nHost: slow\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	const goOn = "HTTP/1.1 100 Continue\r\n\r\n"
	got := make([]byte, len(goOn))
	if _, err := io.ReadFull(c.br, got); err != nil || string(got) != goOn {
		b.t.Fatalf("%q, error %v", got, err)
	}
	c.send("bo")
	return c
}

// awaitDraining waits until the status command tells of exactly these earlier
// generations, and each of one request at work.
func (b *bench) awaitDraining(want []uint64) *handover.Status {
	b.t.Helper()
	active := map[uint64]int64{}
	for _, generation := range want {
		active[generation] = 1
	}
	var st *handover.Status
	awaitEvery(b.t, 50*time.Millisecond, fmt.Sprintf("the status tells that generations %v drain, and no others", want), func() bool {
		var err error
		if st, err = b.status(); err != nil {
			b.t.Fatal(err)
		}
		got := map[uint64]int64{}
		for _, p := range st.Draining {
			if p.Phase == handover.PhaseDraining {
				got[p.Generation] = p.Stats.Connections["active"]
			}
		}
		return maps.Equal(got, active)
	})
	return st
}
