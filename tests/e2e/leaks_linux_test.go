package e2e

import (
	"os"
	"strings"
	"testing"
	"time"
)

// The twentieth successor has as many open files as the second, and the
// directory of the control socket no more files.
func TestTakeoversLeakNothing(t *testing.T) {
	b := newBench(t)
	owner := b.serve("--listen", b.listener(), "--listen", "local=unix://"+b.path("local"), "--listen", "dns=udp://"+b.server.addr+":0")
	var early []string
	n := uint64(scale(20, 6))
	for generation := uint64(2); generation <= n+1; generation++ {
		successor := b.succeed(generation)
		b.wantGeneration(generation) // descriptors that a first request needs
		owner.wantCode(0)
		owner = successor
		if generation == 3 {
			early = settled(t, owner)
		}
	}
	if late := atMost(t, owner, len(early)); len(late) > len(early) {
		t.Errorf("generation 3 has %d open files, generation %d has %d:\n%s\nand\n%s", len(early), n+1, len(late),
			strings.Join(early, "\n"), strings.Join(late, "\n"))
	} else {
		t.Logf("generation 3 has %d open files, generation %d has %d", len(early), n+1, len(late))
	}
	if files := b.files(); len(files) != 3 { // s, s.lock, local
		t.Errorf("files in the directory: %v", files)
	}
}

// files are the names in the directory, without the logs of the processes.
func (b *bench) files() []string {
	b.t.Helper()
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "log") {
			names = append(names, e.Name())
		}
	}
	return names
}

// settled returns the descriptors of a process when their number has been the
// same for a second.
func settled(t testing.TB, p *process) []string {
	t.Helper()
	last := descriptors(t, p.pid())
	since := time.Now()
	for end := since.Add(patience); time.Now().Before(end) && time.Since(since) < time.Second; time.Sleep(20 * time.Millisecond) {
		if now := descriptors(t, p.pid()); len(now) != len(last) {
			last, since = now, time.Now()
		}
	}
	return last
}

// atMost returns the descriptors of a process as soon as they are no more than
// most: conversations that have ended hold theirs for a moment.
func atMost(t testing.TB, p *process, most int) []string {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if now := descriptors(t, p.pid()); len(now) <= most || time.Now().After(end) {
			return now
		}
	}
}
