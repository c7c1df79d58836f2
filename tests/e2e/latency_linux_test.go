package e2e

import (
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/load"
)

// BenchmarkLatencyAroundTakeover compares the latency in the 500 ms from the
// start of a takeover's process on, in which it gets ready, takes over, and has
// all connections moved to it, with that of as many milliseconds just before.
func BenchmarkLatencyAroundTakeover(b *testing.B) {
	const window = 500 * time.Millisecond
	for _, tt := range []struct {
		name string
		spec loadSpec
	}{
		{"keep-alive with pauses", loadSpec{KeepAlive: true, PostRatio: .5, Think: 20 * time.Millisecond, Workers: 128}},
		{"a connection for each request with pauses", loadSpec{PostRatio: .5, Think: 20 * time.Millisecond, Workers: 128}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			p := newBench(b)
			p.serve()
			tt.spec.Address = p.address("web")
			g := makeLoad(b, p.client, tt.spec)
			var steady, around load.Histogram
			last := g.snapshot().Latency
			until := func(end time.Time, into *load.Histogram) {
				time.Sleep(time.Until(end))
				now := g.snapshot().Latency
				if d := now.Since(&last); into != nil {
					into.Merge(&d)
				}
				last = now
			}
			for generation := uint64(2); b.Loop(); generation++ {
				until(time.Now().Add(window), nil) // whatever the last one has left behind
				until(time.Now().Add(window), &steady)
				begin := time.Now()
				p.takeover("--probation=100ms")
				p.awaitPhase(generation, handover.PhaseOwner)
				until(begin.Add(window), &around)
			}
			res := g.stop()
			if err := res.Err(); err != nil {
				b.Error(err)
			}
			b.ReportMetric(0, "ns/op")
			for _, q := range []struct {
				name string
				q    float64
			}{{"p50", .5}, {"p99", .99}, {"p99.9", .999}} {
				s, a := steady.Quantile(q.q), around.Quantile(q.q)
				b.ReportMetric(float64(s)/1e3, q.name+"-steady-us")
				b.ReportMetric(float64(a)/1e3, q.name+"-around-us")
				b.ReportMetric(float64(a)/float64(s), q.name+"-ratio")
			}
		})
	}
}
