package e2e

import (
	"testing"
	"time"
)

// Fifty times in a row an independently started process takes over, while 64
// clients have the server busy. None of them may notice.
func TestTakeoversUnderLoad(t *testing.T) {
	tests := []struct {
		name      string
		takeovers int
		spec      loadSpec
	}{
		{"a connection for each request", scale(50, 6), loadSpec{}},
		{"keep-alive without pauses", scale(50, 6), loadSpec{KeepAlive: true, PostRatio: .5}},
		{"keep-alive with pauses", scale(50, 6), loadSpec{KeepAlive: true, PostRatio: .5, Think: 20 * time.Millisecond}},
		// Requests cross with closes on a connection with a round trip.
		{"keep-alive with pauses over a distance", scale(10, 2), loadSpec{
			KeepAlive: true, PostRatio: .5, Think: 20 * time.Millisecond, Delay: 10 * time.Millisecond,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			takeoversUnderLoad(b, tt.takeovers, tt.spec)
		})
	}
}

// takeoversUnderLoad makes load on the listener web, and n takeovers. Each
// generation has to answer before the next one takes over.
func takeoversUnderLoad(b *bench, n int, spec loadSpec, flags ...string) {
	b.t.Helper()
	flags = append(flags, "--drain-timeout=20s")
	owner := b.serve(flags...)
	if spec.Address == "" {
		spec.Address = b.address("web")
	}
	load := makeLoad(b.t, b.client, spec)
	begin := time.Now()
	for generation := uint64(2); generation <= uint64(n)+1; generation++ {
		successor := b.succeed(generation, flags...)
		load.awaitMore(generation)
		owner.wantCode(0)
		owner = successor
	}
	took := time.Since(begin)
	res := load.wantPerfect(n + 1)
	if moves := spec.KeepAlive && spec.CA == nil; moves && res.AnnouncedReconnects != 0 {
		b.t.Errorf("%d clients had to connect anew, want none", res.AnnouncedReconnects)
	}
	b.t.Logf("%d takeovers in %v", n, took.Round(time.Millisecond))
	b.wantRun(0, "stopped", "stop")
	owner.wantCode(0)
}
