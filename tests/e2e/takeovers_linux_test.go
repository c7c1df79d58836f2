package e2e

import (
	"flag"
	"net/http"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/load"
)

var (
	soakTakeovers = flag.Int("soak", 0, "takeovers of each part of TestSoak, which is skipped if that is 0, and of the other tests that can go on for long")
	seed          = flag.Uint64("seed", 0, "of what tests do at random; 0: another one each time, which is printed")
	soakRequests  = flag.Int64("soak-requests", 0, "requests of each part of TestSoak, at least")
	soakWorkers   = flag.Int("soak-workers", 128, "clients of TestSoak")
)

// A loadCase is a kind of load.
type loadCase struct {
	name      string
	takeovers int
	tls       bool
	spec      loadSpec
}

// loadCases are what a handover must not be noticed by. Clients never repeat a
// request. Without TLS and with HTTP/1.1 they keep their connections.
func loadCases() []loadCase {
	const think = 20 * time.Millisecond
	return []loadCase{
		{"a connection for each request", scale(50, 6), false, loadSpec{PostRatio: .5}},
		{"keep-alive without pauses", scale(50, 6), false, loadSpec{KeepAlive: true, PostRatio: .5}},
		{"keep-alive with pauses", scale(50, 6), false, loadSpec{KeepAlive: true, PostRatio: .5, Think: think}},
		// Requests cross with closes on a connection with a round trip.
		{"keep-alive with pauses over a distance", scale(10, 2), false, loadSpec{
			KeepAlive: true, PostRatio: .5, Think: think, Delay: 10 * time.Millisecond,
		}},
		{"keep-alive in odd pieces", scale(20, 4), false, loadSpec{
			KeepAlive: true, PostRatio: .5, Think: think / 4, PipelineRatio: .2, CutRatio: .5, CutPause: 2 * time.Millisecond,
		}},
		{"HTTP/2", scale(15, 3), false, loadSpec{HTTP2: true, KeepAlive: true, PostRatio: .5, Think: think}},
		{"TLS, a connection for each request", scale(8, 3), true, loadSpec{Workers: 16}},
		{"TLS, keep-alive", scale(8, 3), true, loadSpec{KeepAlive: true, PostRatio: .5, Think: think, Workers: 16}},
		{"TLS, HTTP/2", scale(8, 3), true, loadSpec{HTTP2: true, KeepAlive: true, PostRatio: .5, Think: think, Workers: 16}},
	}
}

// Dozens of times in a row an independently started process takes over, while
// clients have the server busy. None of them may notice.
func TestTakeoversUnderLoad(t *testing.T) {
	for _, tt := range loadCases() {
		t.Run(tt.name, func(t *testing.T) { newBench(t).underLoad(tt, 0) })
	}
}

// The same for long: go test ./tests/e2e -run Soak -soak 1000 -timeout 0
func TestSoak(t *testing.T) {
	if *soakTakeovers == 0 {
		t.Skip("takes long: asked for with -soak")
	}
	for _, tt := range loadCases() {
		t.Run(tt.name, func(t *testing.T) {
			tt.takeovers = *soakTakeovers
			tt.spec.Workers = *soakWorkers
			newBench(t).underLoad(tt, *soakRequests)
		})
	}
}

func (b *bench) underLoad(tt loadCase, atLeast int64) {
	b.t.Helper()
	var flags []string
	if tt.tls {
		tt.spec.CA, flags = newCertificate(b.t, b.dir, b.server.addr)
	}
	takeoversUnderLoad(b, tt.takeovers, atLeast, tt.spec, flags...)
}

// takeoversUnderLoad makes load on the listener web, and n takeovers, or as
// many more as it takes for atLeast requests. Each generation has to answer
// before the next one takes over.
func takeoversUnderLoad(b *bench, n int, atLeast int64, spec loadSpec, flags ...string) {
	b.t.Helper()
	owner := b.serve(flags...)
	if spec.Address == "" {
		spec.Address = b.address("web")
	}
	load := makeLoad(b.t, b.client, spec)
	begin := time.Now()
	last := uint64(1)
	for ; last <= uint64(n) || load.snapshot().Requests < atLeast; last++ {
		successor := b.succeed(last+1, flags...)
		load.awaitMore(last + 1)
		owner.wantCode(0)
		owner = successor
	}
	took := time.Since(begin)
	res := load.wantPerfect(int(last))
	if moves := spec.KeepAlive && spec.CA == nil && !spec.HTTP2; moves && res.Reconnects() != 0 {
		b.t.Errorf("%d clients had to connect anew, want none", res.Reconnects())
	}
	b.t.Logf("%d takeovers in %v", last-1, took.Round(time.Millisecond))
	b.wantRun(0, "stopped", "stop")
	owner.wantCode(0)
}

// No request is executed twice, in whatever pieces it comes and on whatever
// connection.
func TestNoRequestIsExecutedTwice(t *testing.T) {
	b := newBench(t)
	ledger := new(load.Ledger)
	ln := b.server.listen(t)
	backend := &http.Server{Handler: ledger}
	served := make(chan error, 1)
	go func() { served <- backend.Serve(ln) }()
	defer func() {
		backend.Close()
		<-served
	}()
	takeoversUnderLoad(b, scale(20, 4), 0, loadSpec{
		KeepAlive: true, PostRatio: .5, Think: 5 * time.Millisecond,
		PipelineRatio: .2, CutRatio: .5, CutPause: 2 * time.Millisecond, Workers: 32,
	}, "--proxy", "http://"+ln.Addr().String())
	report := ledger.Report()
	if report.Duplicated != 0 || report.Foreign != 0 || report.Seen == 0 {
		t.Errorf("%+v", report)
	}
	t.Logf("%d requests, %d of them twice", report.Seen, report.Duplicated)
}
