package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/site"
)

// A successor is killed at a random moment of its probation, again and again.
// Nobody is refused, and no request fails but those that it had accepted: at
// the moment of its death there were at least as many connections in its hands.
//
// The same for long: go test ./tests/e2e -run AnyMoment -soak 200 -timeout 0 -v
func TestSuccessorKilledAtAnyMomentOfProbation(t *testing.T) {
	b := newBench(t)
	random := chance(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), PostRatio: .5})
	witness := b.watch(2)
	n := rounds(10, 3)
	var dead []uint64
	held, before := 0, 0
	for tries := 0; len(dead) < n; tries++ {
		if tries > 10*n {
			t.Fatalf("%d of %d successors were killed in probation", len(dead), tries)
		}
		successor := b.takeover("--probation=30m")
		awaitGrant(successor, random.IntN(2) == 0)
		// Nothing is waited for here: the moment is random, and often early.
		time.Sleep(time.Duration(random.Int64N(int64(100*time.Millisecond) >> random.IntN(10))))
		held += heldBy(successor)
		successor.kill()
		st := b.awaitStatus("the first generation is back", func(st *handover.Status) bool {
			return st.PID == owner.pid() && st.Phase == handover.PhaseOwner && st.Successor == nil && st.LastFailure != ""
		})
		var lost uint64
		if _, err := fmt.Sscanf(st.LastFailure, "generation %d lost ownership in probation", &lost); err != nil || slices.Contains(dead, lost) {
			before++ // the death came before the grant
		} else {
			dead = append(dead, lost)
		}
		load.awaitMore(1)
	}
	next := wantNextSucceeds(b, owner)
	cut := witness.end(dead...)
	res := load.stop()
	failed := res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	if res.Refused != 0 || res.Failed() != failed || res.ClientFault != 0 {
		t.Errorf("%d refused, %d cut off, %d failed in all; want none but those cut off by a death", res.Refused, failed, res.Failed())
	}
	if int(failed)+cut > held {
		t.Errorf("%d requests failed, and %d of the witness, but the dead had accepted %d", failed, cut, held)
	}
	next.wantAlive()
	t.Logf("%d successors killed in probation, %d before; of %d requests %d were refused, %d were cut off, and %d of the witness; the dead held %d connections",
		len(dead), before, res.Requests, res.Refused, failed, cut, held)
}

// awaitGrant waits until a successor says that it has been granted ownership,
// or only until it is about to ask for it.
func awaitGrant(p *process, granted bool) {
	p.t.Helper()
	text := "msg=listening "
	if granted {
		text = `msg="ownership granted"`
	}
	awaitEvery(p.t, 500*time.Microsecond, text, func() bool { return strings.Contains(p.text(), text) })
}

// freeze stops a process, and waits until all of its threads stand still.
func (p *process) freeze() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	await(p.t, "the process has stopped", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid()))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, name := range stats {
			text, err := os.ReadFile(name)
			// The state follows the name, which is in parentheses: proc(5).
			if i := bytes.LastIndexByte(text, ')'); err == nil && i >= 0 && !bytes.HasPrefix(text[i:], []byte(") T")) {
				return false
			}
		}
		return len(stats) > 0
	})
}

// heldBy stops a process, and counts the TCP connections that it has accepted
// and not closed.
func heldBy(p *process) (n int) {
	p.t.Helper()
	p.freeze()
	connected := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.pid(), table))
		if err != nil {
			p.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// sl local remote state ... uid timeout inode: proc(5).
			f := strings.Fields(line)
			const listens = "0A"
			if len(f) > 9 && f[3] != listens {
				connected["socket:["+f[9]+"]"] = true
			}
		}
	}
	for _, d := range descriptors(p.t, p.pid()) {
		if _, target, _ := strings.Cut(d, " "); connected[target] {
			n++
		}
	}
	return n
}

// When a successor on probation is killed, the predecessor accepts again within
// milliseconds. That depends on the machine: it is measured, and not asserted.
func TestDeathIsNoticedAtOnce(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	took := make([]time.Duration, rounds(20, 3))
	for i := range took {
		took[i] = b.timeToTakeBack(owner)
	}
	slices.Sort(took)
	t.Logf("from the death of the successor to the predecessor's first answer, %d times: median %v, max %v",
		len(took), took[len(took)/2], took[len(took)-1])
}

// BenchmarkTakeBack measures how long nobody accepts when a successor dies in
// probation.
func BenchmarkTakeBack(b *testing.B) {
	p := newBench(b)
	owner := p.serve()
	var took []time.Duration
	for b.Loop() {
		took = append(took, p.timeToTakeBack(owner))
	}
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(took[len(took)/2].Seconds()*1e3, "median-ms")
	b.ReportMetric(took[len(took)-1].Seconds()*1e3, "max-ms")
}

// timeToTakeBack kills a successor on probation that never accepts. A client
// whose request is in the accept queue then has its answer from the
// predecessor: that takes a little longer than until it was accepted.
func (b *bench) timeToTakeBack(owner *process) time.Duration {
	b.t.Helper()
	successor := b.library(idles, 30*time.Minute)
	successor.awaitText(saysReady)
	b.awaitStatus("the successor is on probation", func(st *handover.Status) bool {
		return st.PID == successor.pid() && st.Phase == handover.PhaseProbation
	})
	c := b.connect("web")
	defer c.Close()
	c.send("GET /healthz HTTP/1.1\r\nHost: queue\r\nConnection: close\r\n\r\n")
	begin := time.Now()
	successor.signal(syscall.SIGKILL)
	res, err := http.ReadResponse(c.br, nil)
	took := time.Since(begin)
	if err != nil {
		b.t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if gen := res.Header.Get(site.GenerationHeader); gen != strconv.Itoa(1) {
		b.t.Fatalf("generation %q answers, want the predecessor", gen)
	}
	successor.await()
	b.awaitStatus("the predecessor is the owner again", func(st *handover.Status) bool {
		return st.PID == owner.pid() && st.Phase == handover.PhaseOwner
	})
	return took
}
