package e2e

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
)

// BenchmarkProgram measures a program that handoverd has started beside the
// same one that it has not. They take turns, so that whatever else the machine
// does is fair to both, and a third one, which handoverd has not started either,
// shows what the machine makes of two equal ones. A ratio of 1 is no overhead:
// the program accepts on the very socket.
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

// A contender is a program that is measured.
type contender struct {
	pid     int
	address string
	rates   []float64 // answers per second
	ticks   uint64    // of processor time, all in all
	answers int64
}

func compareProgram(b *testing.B, spec loadSpec) {
	s := &stage{bench: newBench(b)}
	b.Cleanup(s.sweep)
	path := s.path("program")
	buildProgram(b, path)
	direct, again := s.startDirectly(path, webPort+1), s.startDirectly(path, webPort+2)
	p := s.serve("--listen", s.listener(), "--", path)
	handed := &contender{pid: s.master(p), address: webAddress(s.bench)}
	all := []*contender{direct, handed, again}
	own := ticks(b, p.pid())
	for i := 0; b.Loop(); i++ {
		// Whoever goes first may have it better.
		for j := range all {
			all[(i+j)%len(all)].measure(s, spec)
		}
	}
	own = ticks(b, p.pid()) - own
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(direct.rates), "direct-req/s")
	b.ReportMetric(median(handed.rates), "handoverd-req/s")
	b.ReportMetric(medianRatio(handed, direct), "ratio")
	b.ReportMetric(medianRatio(again, direct), "equals-ratio")
	b.ReportMetric(handed.cost()/direct.cost(), "cpu-ratio")
	b.ReportMetric(again.cost()/direct.cost(), "equals-cpu-ratio")
	b.ReportMetric(float64(own)/float64(handed.ticks), "handoverd-cpu-share")
}

// measure has clients of the program at work until they have enough answers.
func (c *contender) measure(s *stage, spec loadSpec) {
	s.t.Helper()
	spec.Address = c.address
	before := ticks(s.t, c.pid)
	g := makeLoad(s.t, s.client, spec)
	g.awaitAnswers("", answersEach)
	res := g.ask("stop")
	if err := res.Err(); err != nil {
		s.t.Fatal(err)
	}
	g.tearDown()
	c.ticks += ticks(s.t, c.pid) - before
	c.answers += res.OK
	c.rates = append(c.rates, float64(res.OK)/res.Elapsed.Seconds())
}

// cost is the processor time of an answer, in ticks.
func (c *contender) cost() float64 { return float64(c.ticks) / float64(c.answers) }

// ticks is the processor time of a process: utime and stime of
// proc_pid_stat(5).
func ticks(t testing.TB, pid int) (n uint64) {
	t.Helper()
	f, ok := stat(pid)
	if !ok || len(f) < 13 {
		t.Fatalf("process %d has ended", pid)
	}
	for _, field := range f[11:13] {
		x, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		n += x
	}
	return n
}

// medianRatio is that of measurements which were made next to each other.
func medianRatio(a, b *contender) float64 {
	all := make([]float64, len(a.rates))
	for i := range all {
		all[i] = a.rates[i] / b.rates[i]
	}
	return median(all)
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// startDirectly starts the program with a listener of its own.
func (s *stage) startDirectly(path string, port int) *contender {
	s.t.Helper()
	address := net.JoinHostPort(s.server.addr, strconv.Itoa(port))
	f := s.listen(address)
	defer f.Close()
	cmd := exec.Command(path)
	cmd.Env = environment("LISTEN_FDS=1", "HANDOVERD_GENERATION=1")
	cmd.ExtraFiles = []*os.File{f}
	p := launch(s.t, s.server, s.dir, cmd)
	p.awaitText("program: serves")
	return &contender{pid: p.pid(), address: address}
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
