package deploy

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/load"
)

// A generator makes load that is never repeated: what fails has failed.
type generator struct {
	t   testing.TB
	run *load.Run
}

// makeLoad begins: 16 clients with a new connection for each request, or with
// one that they keep.
func makeLoad(t testing.TB, address string, keepAlive bool) *generator {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	run, err := load.Start(ctx, load.Config{
		Address: address, KeepAlive: keepAlive, PostRatio: .5, Workers: 16,
		Think:   20 * time.Millisecond, // leaves the engine time to work
		Timeout: patience, MaxRequests: 10_000_000,
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	g := &generator{t: t, run: run}
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	await(t, "a first answer", func() bool { return run.Snapshot().OK > 0 })
	return g
}

// awaitMore waits until a generation gives answers from now on.
func (g *generator) awaitMore(generation int) {
	g.t.Helper()
	name := strconv.Itoa(generation)
	before := g.run.Snapshot().Generations[name]
	await(g.t, "answers of generation "+name, func() bool { return g.run.Snapshot().Generations[name] > before })
}

func (g *generator) stop() load.Result {
	g.t.Helper()
	res := g.run.Stop()
	g.t.Log(res)
	return res
}

// wantPerfect stops the load and checks that no request failed, that nobody
// went back to an older generation, and that generations 1 to n have answered.
func (g *generator) wantPerfect(n int) {
	g.t.Helper()
	res := g.stop()
	if err := res.Err(); err != nil {
		g.t.Errorf("requests failed: %d refused, %d reset, %d failed", res.Refused, res.Reset, res.Failed())
	}
	if res.Aborted != 0 || res.UnannouncedReconnects != 0 || res.WentBack != 0 {
		g.t.Errorf("%d aborted, %d unannounced reconnects, %d went back to a lower generation; want none",
			res.Aborted, res.UnannouncedReconnects, res.WentBack)
	}
	for i := 1; i <= n; i++ {
		if res.Generations[strconv.Itoa(i)] == 0 {
			g.t.Errorf("generation %d has answered nothing", i)
		}
	}
	if len(res.Generations) != n {
		g.t.Errorf("%d generations have answered, want %d", len(res.Generations), n)
	}
}

// wantOnlyCut stops the load and checks that nothing was refused, and that
// what failed is what deaths processes had accepted: at most one request of
// each client for each of them.
func (g *generator) wantOnlyCut(deaths int) {
	g.t.Helper()
	res := g.stop()
	cut := res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	most := int64(deaths * res.Workers)
	g.t.Logf("%d refused, %d cut off by %d deaths", res.Refused, cut, deaths)
	if res.Refused != 0 || res.Failed() != cut || cut > most || res.ClientFault != 0 {
		g.t.Errorf("%d refused, %d cut off, %d failed in all; want none refused, and at most %d cut off", res.Refused, cut, res.Failed(), most)
	}
}
