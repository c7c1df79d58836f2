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
			early = settled(t, owner, 0)
		}
	}
	if late := settled(t, owner, len(early)); len(late) != len(early) {
		t.Errorf("generation 3 has %d open files, generation %d has %d:\n%s\nand\n%s", len(early), n+1, len(late),
			strings.Join(early, "\n"), strings.Join(late, "\n"))
	} else {
		t.Logf("generation 3 and generation %d have %d open files each", n+1, len(late))
	}
	var files []string
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "log") {
			files = append(files, e.Name())
		}
	}
	if len(files) != 3 { // s, s.lock, local
		t.Errorf("files in the directory: %v", files)
	}
}

// settled returns the descriptors of a process as soon as they are want, or
// have been the same for a second.
func settled(t testing.TB, p *process, want int) []string {
	t.Helper()
	last := descriptors(t, p.pid())
	since := time.Now()
	for end := since.Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		now := descriptors(t, p.pid())
		if len(now) != len(last) {
			last, since = now, time.Now()
		}
		if len(now) == want || time.Since(since) > time.Second {
			break
		}
	}
	return last
}
