package handover

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// acceptLoop accepts and closes until the listener ends.
func acceptLoop(wg *sync.WaitGroup, ln net.Listener) {
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
}

// BenchmarkTakeover measures a takeover from the successor's dial to granted,
// both sides warm and in one process, with an accept pending on each listener.
func BenchmarkTakeover(b *testing.B) {
	for _, n := range []int{1, 16, 1000} {
		b.Run(fmt.Sprintf("listeners=%d", n), func(b *testing.B) { benchTakeover(b, n) })
	}
}

func benchTakeover(b *testing.B, n int) {
	cfg := testConfig(b)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx := context.Background()
	claim := func(g *Generation) {
		for i := range n {
			ln, err := g.Listen(fmt.Sprintf("l%d", i), "tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			acceptLoop(&wg, ln)
		}
	}
	last := begin(b, cfg)
	claim(last)
	if err := last.Ready(ctx); err != nil {
		b.Fatal(err)
	}
	// The timer runs through all of it: stopping it would stop the world, and
	// what is reported is measured here.
	var sockets, listening, granted, whole []time.Duration
	for b.Loop() {
		t0 := time.Now()
		next, err := Start(ctx, cfg)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		claim(next)
		t2 := time.Now()
		if err := next.Ready(ctx); err != nil {
			b.Fatal(err)
		}
		t3 := time.Now()
		sockets = append(sockets, t1.Sub(t0))
		listening = append(listening, t2.Sub(t1))
		granted = append(granted, t3.Sub(t2))
		whole = append(whole, t3.Sub(t0))
		<-last.Superseded()
		last.Close()
		last = next
	}
	b.StopTimer()
	last.Close()
	b.ReportMetric(0, "ns/op")
	for _, m := range []struct {
		name string
		d    []time.Duration
	}{{"dial-to-sockets", sockets}, {"listen", listening}, {"ready-to-granted", granted}, {"dial-to-granted", whole}} {
		slices.Sort(m.d)
		b.ReportMetric(float64(m.d[len(m.d)/2])/1e3, m.name+"-us(median)")
	}
}
