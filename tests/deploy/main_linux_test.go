package deploy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// roleVariable in the environment makes the test binary another program.
	roleVariable = "HANDOVERD_DEPLOY_ROLE"
	roleManager  = "manager"

	// patience bounds every single wait. It only ends what hangs: a machine
	// that is busy with other things may take its time.
	patience = time.Minute
)

// watching is how long to look that nothing happens.
var watching = flag.Duration("watch", 0, "look at least this long whether the restarts of an engine change the owner")

// program is the handoverd under test, a static binary that anybody may run.
// TestMain sets it before any test runs.
var program string

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == roleManager {
		fmt.Fprintln(os.Stderr, "manager:", managerMain())
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "handoverd-deploy")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755)
	}
	program = filepath.Join(dir, "dist", "handoverd")
	if err == nil {
		err = build(program)
	}
	if err == nil {
		defer func() { err = errors.Join(err, theImage.remove()) }()
		theImage = &image{dir: dir}
		if code := m.Run(); code != 0 {
			return code
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "deploy:", err)
		return 1
	}
	return 0
}

// build builds the program statically, as it is in an image, with the
// dependencies that its own module has.
func build(path string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/handoverd")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
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
	return append(env, more...)
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

// await polls until cond is true.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	awaitEvery(t, 20*time.Millisecond, what, cond)
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

// deployed is a file of the directory deploy.
func deployed(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "deploy", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return path
}
