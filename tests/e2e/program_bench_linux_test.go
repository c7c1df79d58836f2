package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
)

// BenchmarkProgram measures a program that handoverd has started beside the
// same one that it has not. They take turns, so that whatever else the machine
// does is fair to both. A ratio of 1 is no overhead: the program accepts on the
// very socket.
//
//	go test ./tests/e2e -run '^$' -bench BenchmarkProgram -benchtime 20x
func BenchmarkProgram(b *testing.B) {
	for _, tt := range []struct {
		name string
		spec loadSpec
	}{
		{"keep-alive", loadSpec{Workers: 16, KeepAlive: true}},
		{"a connection for each request", loadSpec{Workers: 16}},
	} {
		b.Run(tt.name, func(b *testing.B) { compareProgram(b, tt.spec) })
	}
}

// answersEach is how many answers make one measurement.
const answersEach = 5000

func compareProgram(b *testing.B, spec loadSpec) {
	s := &stage{bench: newBench(b)}
	b.Cleanup(s.sweep)
	path := s.path("program")
	buildProgram(b, path)
	direct := s.startDirectly(path)
	s.serve("--listen", s.listener(), "--", path)
	rate := func(address string) float64 {
		spec.Address = address
		g := makeLoad(b, s.client, spec)
		g.awaitAnswers("", answersEach)
		res := g.ask("stop")
		if err := res.Err(); err != nil {
			b.Fatal(err)
		}
		g.tearDown()
		return float64(res.OK) / res.Elapsed.Seconds()
	}
	var alone, behind, ratios []float64
	for i := 0; b.Loop(); i++ {
		// Who goes first may have it better.
		var d, h float64
		if i%2 == 0 {
			d = rate(direct)
			h = rate(webAddress(s.bench))
		} else {
			h = rate(webAddress(s.bench))
			d = rate(direct)
		}
		alone, behind, ratios = append(alone, d), append(behind, h), append(ratios, h/d)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(alone), "direct-req/s")
	b.ReportMetric(median(behind), "handoverd-req/s")
	b.ReportMetric(median(ratios), "ratio")
}

func median(all []float64) float64 {
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// startDirectly starts the program with a listener of its own.
func (s *stage) startDirectly(path string) (address string) {
	s.t.Helper()
	address = net.JoinHostPort(s.server.addr, strconv.Itoa(webPort+1))
	f := s.listen(address)
	defer f.Close()
	cmd := exec.Command(path)
	cmd.Env = environment("LISTEN_FDS=1", fmt.Sprintf("HANDOVERD_GENERATION=%d", 1))
	cmd.ExtraFiles = []*os.File{f}
	launch(s.t, s.server, s.dir, cmd).awaitText("program: serves")
	return address
}

// A connection that a client has with a program is one between these two:
// handoverd holds the listener that the program accepts from, the same socket,
// and no connection.
func TestProgramAcceptsOnTheVerySocket(t *testing.T) {
	s := &stage{bench: newBench(t)}
	t.Cleanup(s.sweep)
	path := s.path("program")
	buildProgram(t, path)
	p := s.serve("--listen", s.listener(), "--", path)
	const n = 10
	for range n {
		c, err := s.client.dial("tcp", webAddress(s.bench))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	master := s.master(p)
	await(t, "the program has accepted all connections", func() bool { return s.accepted(master) == n })
	s.wantAcceptsNothing(p)
	if ours, its := s.listeners(p.pid()), s.listeners(master); len(its) != 1 || !slices.Contains(ours, its[0]) {
		t.Errorf("handoverd listens on %v, the program on %v; want the same one", ours, its)
	}
	s.end(p)
}
