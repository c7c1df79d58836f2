// Package leak finds goroutines and file descriptors that tests leave behind.
//
// Main checks a whole test binary, Check one test. Both compare with what
// existed before, so that what the environment holds open does not count.
// Whatever is found gets some time to end, since a goroutine or a child
// process is often still on its way out when the test returns.
//
// Descriptors are seen on Linux only, through /proc/self/fd; elsewhere only
// goroutines are checked.
package leak

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long a leak may take to end by itself, on a machine that has
// other things to do.
const patience = 30 * time.Second

// Main runs the tests of m and exits. The exit code is 1 if they passed but
// left goroutines or descriptors behind; these are then printed to stderr.
// It is for TestMain:
//
//	func TestMain(m *testing.M) { leak.Main(m) }
func Main(m *testing.M) {
	before := take()
	code := m.Run()
	if code == 0 {
		if found := before.wait(patience); len(found) > 0 {
			fmt.Fprintf(os.Stderr, "leak: left behind by the tests:\n\n%s\n", strings.Join(found, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// Check makes t fail if, when it ends, goroutines or descriptors are left that
// did not exist at the time of the call. Call it first: cleanups run in
// reverse order. It is not for parallel tests, which would see each other's.
func Check(t testing.TB) {
	t.Helper()
	check(t, patience)
}

func check(t testing.TB, patience time.Duration) {
	t.Helper()
	before := take()
	t.Cleanup(func() {
		t.Helper()
		if found := before.wait(patience); len(found) > 0 {
			t.Errorf("left behind by the test:\n\n%s", strings.Join(found, "\n\n"))
		}
	})
}

// A snapshot is what exists at one time, each with a text for the report. A
// key is never used for two things, except that a descriptor number is: its
// key has the link target too.
type snapshot struct {
	goroutines map[string]string
	fds        map[string]string
}

func take() snapshot {
	startPoller()
	return snapshot{goroutines: goroutines(), fds: descriptors()}
}

// wait returns what exists now and did not exist in s, as soon as that is
// nothing, or else when patience has run out.
func (s snapshot) wait(patience time.Duration) []string {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		found := append(added(s.goroutines, goroutines()), added(s.fds, descriptors())...)
		if len(found) == 0 || time.Now().After(deadline) {
			return found
		}
		time.Sleep(pause)
	}
}

func added(before, after map[string]string) []string {
	var texts []string
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if _, ok := before[key]; !ok {
			texts = append(texts, after[key])
		}
	}
	return texts
}

// startPoller makes the runtime open the descriptors of its network poller,
// which it keeps for ever, before they are counted.
func startPoller() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// goroutines returns the stacks of all goroutines but the caller's and those
// of the runtime and the testing package, by goroutine id.
func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	found := make(map[string]string)
	stacks := strings.Split(strings.TrimSpace(string(buf)), "\n\n")
	for _, stack := range stacks[1:] { // the first one is the caller
		if ours(stack) {
			continue
		}
		id, _, _ := strings.Cut(stack, " [")
		found[id] = stack
	}
	return found
}

// ours reports whether a stack belongs to the runtime, to package testing, or
// to something else that lives as long as the process.
func ours(stack string) bool {
	for _, frame := range []string{
		"testing.Main(",
		"testing.(*M).",
		"testing.(*T).Run(",
		"testing.(*F).",
		"testing.runFuzz",
		"testing.runTests",
		"testing.tRunner(", // another test; what it starts has its own stack
		"created by testing.",
		"created by internal/fuzz.",
		"internal/fuzz.",
		"os/signal.signal_recv",
		"os/signal.loop",
		"runtime.ensureSigM",
		"runtime.ReadTrace",
		"runtime.goexit0",
	} {
		if strings.Contains(stack, frame) {
			return true
		}
	}
	return false
}
