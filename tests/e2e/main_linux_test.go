package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	// roleVariable in the environment makes the test binary another program.
	roleVariable = "HANDOVERD_E2E_ROLE"
	// specVariable tells that program what to do, as JSON.
	specVariable = "HANDOVERD_E2E_SPEC"

	roleLoad    = "load"
	roleLibrary = "library"

	// patience bounds every single wait in these tests. It only ends what
	// hangs: a machine that is busy with other things may take its time.
	patience = time.Minute
)

// program is the handoverd under test. TestMain sets it before any test runs.
var program string

// The first thread stays with TestMain: a namespace is held by a thread that
// ends, which the first one never does.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleLoad:
		os.Exit(loadMain())
	case roleLibrary:
		os.Exit(libraryMain())
	}
	if code, done := inUserNamespace(); done {
		os.Exit(code)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "handoverd-e2e")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755) // other users run the program too
	}
	program = filepath.Join(dir, "handoverd")
	if err == nil {
		err = build(program, raceEnabled)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

// build builds the program: statically, or with the race detector, which
// needs cgo.
func build(path string, race bool) error {
	args := []string{"build", "-buildvcs=false", "-o", path}
	cgo := "CGO_ENABLED=0"
	if race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, "github.com/handoverd/handoverd/cmd/handoverd")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build handoverd: %w\n%s", err, out)
	}
	return nil
}

// environment is that of every process of the tests: without what would
// change the program's behaviour.
func environment(more ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "HANDOVERD_") && !strings.HasPrefix(v, "LISTEN_") && !strings.HasPrefix(v, "NOTIFY_SOCKET=") {
			env = append(env, v)
		}
	}
	// The race detector makes each process sleep a second at its end.
	return append(append(env, "GORACE=atexit_sleep_ms=0"), more...)
}

// lacking ends a test that needs something this machine does not have.
func lacking(t testing.TB, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must be able to run this test: %s", text)
	}
	t.Skip(text)
}

// scale is the number of times that something is done in a full run, or the
// smaller one in a short run.
func scale(full, short int) int {
	if testing.Short() {
		return short
	}
	return full
}

// rounds is scale, or what -soak says.
func rounds(full, short int) int {
	if *soakTakeovers > 0 {
		return *soakTakeovers
	}
	return scale(full, short)
}

// chance is where a test takes its random numbers from. It prints how to have
// the same ones again.
func chance(t testing.TB) *rand.Rand {
	t.Helper()
	s := *seed
	for s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// await polls until cond is true.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	awaitEvery(t, 5*time.Millisecond, what, cond)
}

// awaitEvery is await for conditions that cost something to look at.
func awaitEvery(t testing.TB, pause time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
