package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// A recorder is a test whose cleanups are run by hand and whose failure is
// looked at.
type recorder struct {
	testing.TB
	cleanups []func()
	report   string
}

func (r *recorder) Helper()                        {}
func (r *recorder) Cleanup(f func())               { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, v ...any) { r.report = fmt.Sprintf(format, v...) }
func (r *recorder) finish()                        { r.cleanups[0]() }

func startCheck(t *testing.T, d time.Duration) *recorder {
	r := &recorder{TB: t}
	check(r, d)
	return r
}

// startLeak starts a goroutine that is in leakyGoroutine when startLeak returns.
func startLeak() (release, ended chan struct{}) {
	release, ended = make(chan struct{}), make(chan struct{})
	started := make(chan struct{})
	go leakyGoroutine(started, release, ended)
	<-started
	return release, ended
}

func leakyGoroutine(started, release, ended chan struct{}) {
	defer close(ended)
	close(started)
	<-release
}

func TestCheckReportsGoroutine(t *testing.T) {
	r := startCheck(t, 0)
	release, ended := startLeak()
	r.finish()
	close(release)
	<-ended
	if !strings.Contains(r.report, "leakyGoroutine") {
		t.Fatalf("report = %q, want the stack of leakyGoroutine", r.report)
	}
}

func TestCheckReportsDescriptor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("descriptors are seen on Linux only")
	}
	r := startCheck(t, 0)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	r.finish()
	f.Close()
	if !strings.Contains(r.report, "-> "+os.DevNull) {
		t.Fatalf("report = %q, want the link to %s", r.report, os.DevNull)
	}
}

func TestCheckWaits(t *testing.T) {
	r := startCheck(t, patience)
	release, _ := startLeak()
	time.AfterFunc(20*time.Millisecond, func() { close(release) })
	r.finish()
	if r.report != "" {
		t.Fatalf("report = %q for a goroutine that ended in time", r.report)
	}
}

func TestCheckIgnoresWhatWasThere(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	release, ended := startLeak()
	r := startCheck(t, 0)
	r.finish()
	close(release)
	<-ended
	if r.report != "" {
		t.Fatalf("report = %q, want none", r.report)
	}
}

// Check must not be used as an excuse: a test that closes passes.
func TestCheckSilent(t *testing.T) {
	Check(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
