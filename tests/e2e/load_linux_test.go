package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/load"
)

// loadSpec says what load a load program makes. Zero Workers are 64, or half as
// many under the race detector.
type loadSpec struct {
	Network, Address string
	KeepAlive        bool
	Think            time.Duration
	PostRatio        float64
	Workers          int
	HTTP2            bool
	PipelineRatio    float64
	CutRatio         float64
	CutPause         time.Duration
	CA               []byte        // PEM; makes the connections TLS ones
	Delay            time.Duration // of each byte on its way, in either direction
}

// loadBound is for how long a load program makes load if nobody tells it to
// stop: longer than any run of the tests takes.
const loadBound = 24 * time.Hour

// config is the load's configuration.
func (s loadSpec) config() load.Config {
	cfg := load.Config{
		Network: s.Network, Address: s.Address, KeepAlive: s.KeepAlive, Think: s.Think, PostRatio: s.PostRatio,
		HTTP2: s.HTTP2, PipelineRatio: s.PipelineRatio, CutRatio: s.CutRatio, CutPause: s.CutPause,
		Workers: 64, MaxRequests: 10_000_000_000, Duration: loadBound, Timeout: patience,
	}
	if raceEnabled { // as busy a server, which is slower
		cfg.Workers /= 2
	}
	if s.Workers > 0 {
		cfg.Workers = s.Workers
	}
	if s.CA != nil {
		cfg.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
		cfg.TLS.RootCAs.AppendCertsFromPEM(s.CA)
	}
	return cfg
}

// loadMain is the load program: it makes load until standard input says stop,
// or ends, as it does with this process's parent, and answers each line with
// the counts as JSON. A load that has ended before that proves nothing about
// what comes after it, and is an error.
func loadMain() int {
	var spec loadSpec
	err := json.Unmarshal([]byte(os.Getenv(specVariable)), &spec)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		return 2
	}
	if spec.Delay > 0 {
		relay, err := load.StartRelay(load.RelayConfig{Network: spec.Network, Address: spec.Address, Delay: spec.Delay})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		defer relay.Close()
		spec.Address = relay.Addr().String()
	}
	beNice()
	run, err := load.Start(context.Background(), spec.config())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		select {
		case <-run.Done():
			fmt.Fprintln(os.Stderr, "load: it has ended before it was told to")
			return 1
		default:
		}
		if lines.Text() == "stop" || out.Encode(run.Snapshot()) != nil {
			break
		}
	}
	if out.Encode(run.Stop()) != nil {
		return 1
	}
	return 0
}

// beNice lets the programs under test go first. A successor that is silent for
// seconds loses its ownership, and clients without pauses on a busy machine
// must not be what silences it.
func beNice() {
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil {
			// A thread that has just ended needs nothing; new ones inherit.
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, 5)
		}
	}
}

// A generator is a load program at work.
type generator struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *os.File
	dec *json.Decoder
}

// makeLoad starts a load program on h.
func makeLoad(t testing.TB, h *host, spec loadSpec) *generator {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = environment(roleVariable+"="+roleLoad, specVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	err = h.start(cmd)
	w.Close()
	if err != nil {
		out.Close()
		t.Fatal(err)
	}
	g := &generator{t: t, cmd: cmd, in: in, out: out, dec: json.NewDecoder(out)}
	t.Cleanup(g.tearDown)
	g.awaitAnswers("", 1)
	return g
}

func (g *generator) tearDown() {
	g.in.Close()
	g.cmd.Process.Kill()
	g.cmd.Wait()
	g.out.Close()
}

func (g *generator) ask(word string) load.Result {
	g.t.Helper()
	var res load.Result
	_, err := io.WriteString(g.in, word+"\n")
	if err == nil {
		// A stop waits for requests, which may take that long themselves.
		g.out.SetReadDeadline(time.Now().Add(2 * patience))
		err = g.dec.Decode(&res)
	}
	if err != nil {
		g.t.Fatalf("load program: %v", err)
	}
	return res
}

// snapshot returns the counts so far.
func (g *generator) snapshot() load.Result {
	g.t.Helper()
	return g.ask("snapshot")
}

// awaitAnswers waits for n answers of a generation, or of any if that is
// empty.
func (g *generator) awaitAnswers(generation string, n int64) {
	g.t.Helper()
	var res load.Result
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		res = g.snapshot()
		have := res.OK
		if generation != "" {
			have = res.Generations[generation]
		}
		if have >= n {
			return
		}
		if time.Now().After(end) {
			g.t.Fatalf("no %d answers of generation %q within %v: %v", n, generation, patience, res)
		}
	}
}

// awaitMore waits until a generation gives answers from now on.
func (g *generator) awaitMore(generation uint64) {
	g.t.Helper()
	gen := strconv.FormatUint(generation, 10)
	g.awaitAnswers(gen, g.snapshot().Generations[gen]+1)
}

// stop ends the load, with all requests in flight finished, and returns the
// counts.
func (g *generator) stop() load.Result {
	g.t.Helper()
	res := g.ask("stop")
	g.t.Log(res)
	return res
}

// wantPerfect stops the load and checks that no request failed, that nobody
// went back to an older generation, and that generations 1 to n have answered.
func (g *generator) wantPerfect(n int) load.Result {
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
	return res
}
