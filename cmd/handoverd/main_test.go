//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/child"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/internal/site"
)

// asProgram in the environment makes the test binary the program under test.
const asProgram = "HANDOVERD_TEST_AS_PROGRAM"

// patience bounds every wait in these tests.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	child.Shim()
	if len(os.Args) > 2 && os.Args[1] == testProgram {
		programMain(os.Args[2:])
	}
	if os.Getenv(asProgram) != "" {
		main()
	}
	leak.Main(m)
}

// A bench is a directory with a control socket, where one set of generations
// lives.
type bench struct {
	t      *testing.T
	dir    string
	socket string
	env    []string // of every process, besides the usual
}

func newBench(t *testing.T) *bench {
	t.Helper()
	// t.TempDir has the name of the test, which may be too long for a socket.
	dir, err := os.MkdirTemp("", "hd")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, socket: filepath.Join(dir, "s")}
	t.Cleanup(b.tearDown)
	return b
}

// tearDown ends whoever owns the socket still, which need not be a child of
// this process.
func (b *bench) tearDown() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	op := b.operator()
	st, err := op.Status(ctx)
	if err == nil {
		_, err = op.Stop(ctx, nil)
		if err != nil && !errors.Is(err, handover.ErrNoOwner) {
			syscall.Kill(st.PID, syscall.SIGKILL)
		}
	}
	os.RemoveAll(b.dir)
}

func (b *bench) operator() handover.Operator { return handover.Operator{Socket: b.socket} }

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// A process is the program under test, running.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   string // path of its standard error
	ended chan struct{}
	code  int
}

// command makes a command line for this bench's socket.
func (b *bench) command(args ...string) *exec.Cmd {
	args = append([]string{args[0], "--socket", b.socket}, args[1:]...)
	return b.program(os.Args[0], args...)
}

func (b *bench) program(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "HANDOVERD_") && !strings.HasPrefix(v, "LISTEN_") && !strings.HasPrefix(v, "NOTIFY_SOCKET=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	// The race detector makes each process sleep a second at its end.
	cmd.Env = append(cmd.Env, asProgram+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, b.env...)
	return cmd
}

// start starts a process that serves.
func (b *bench) start(args ...string) *process { return b.startCommand(b.command(args...)) }

func (b *bench) startCommand(cmd *exec.Cmd) *process {
	b.t.Helper()
	// A file, since a pipe would stay open as long as a successor lives.
	f, err := os.CreateTemp(b.dir, "log")
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	return b.startTo(f, cmd)
}

// startTo starts a process with f as its standard output and error.
func (b *bench) startTo(f *os.File, cmd *exec.Cmd) *process {
	b.t.Helper()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	p := &process{t: b.t, cmd: cmd, log: f.Name(), ended: make(chan struct{})}
	go p.reap()
	b.t.Cleanup(p.tearDown)
	return p
}

func (p *process) reap() {
	defer close(p.ended)
	p.cmd.Wait()
	p.code = p.cmd.ProcessState.ExitCode()
}

func (p *process) tearDown() {
	select {
	case <-p.ended:
	default:
		p.cmd.Process.Signal(syscall.SIGCONT)
		p.cmd.Process.Kill()
		<-p.ended
	}
	if p.t.Failed() && filepath.IsAbs(p.log) {
		p.t.Logf("%s:\n%s", strings.Join(p.cmd.Args[1:], " "), p.text())
	}
}

func (p *process) text() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// wantCode waits for the end and checks the exit code.
func (p *process) wantCode(want int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("%v has not ended", p.cmd.Args[1:])
	}
	if p.code != want {
		p.t.Fatalf("%v: exit code %d, want %d", p.cmd.Args[1:], p.code, want)
	}
}

// run runs a command to its end.
func (b *bench) run(args ...string) (stdout, stderr string, code int) {
	b.t.Helper()
	return b.runCommand(b.command(args...))
}

func (b *bench) runCommand(cmd *exec.Cmd) (stdout, stderr string, code int) {
	b.t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer kill.Stop()
	cmd.Wait()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// wantRun runs a command and checks its exit code and what it says.
func (b *bench) wantRun(want int, says string, args ...string) string {
	b.t.Helper()
	stdout, stderr, code := b.run(args...)
	if code != want || !strings.Contains(stdout+stderr, says) {
		b.t.Fatalf("%v: exit code %d, want %d, and %q in the output:\n%s%s", args, code, want, says, stdout, stderr)
	}
	errors := 0
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "time=") { // the log
			errors++
		}
	}
	if want != exitDone && errors != 1 {
		b.t.Errorf("%v: an error of %d lines:\n%s", args, errors, stderr)
	}
	return stdout
}

// await polls until cond is true.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// awaitStatus polls until the owner's status is as wanted, and returns it.
func (b *bench) awaitStatus(what string, cond func(*handover.Status) bool) *handover.Status {
	b.t.Helper()
	var st *handover.Status
	await(b.t, what, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var err error
		st, err = b.operator().Status(ctx)
		return err == nil && cond(st)
	})
	return st
}

// awaitOwner polls until a generation owns the sockets for good.
func (b *bench) awaitOwner(generation uint64) *handover.Status {
	b.t.Helper()
	return b.awaitStatus(fmt.Sprintf("generation %d is the owner", generation), func(st *handover.Status) bool {
		return st.Generation == generation && st.Phase == handover.PhaseOwner
	})
}

// awaitPhase polls until a generation is in a phase.
func (b *bench) awaitPhase(generation uint64, phase handover.Phase) *handover.Status {
	b.t.Helper()
	return b.awaitStatus(fmt.Sprintf("generation %d is in phase %v", generation, phase), func(st *handover.Status) bool {
		return st.Generation == generation && st.Phase == phase
	})
}

// address is where a socket is bound.
func address(t *testing.T, st *handover.Status, name string) string {
	t.Helper()
	for _, s := range st.Sockets {
		if s.Name == name {
			return s.Address
		}
	}
	t.Fatalf("no socket %q in %+v", name, st.Sockets)
	return ""
}

// newClient is an HTTP client that keeps no connection.
func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// get fetches url and returns the answer's body and generation.
func get(t *testing.T, c *http.Client, url string) (body, generation string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", url, res.Status, b)
	}
	return string(b), res.Header.Get(site.GenerationHeader)
}

// wantGeneration checks who answers.
func wantGeneration(t *testing.T, c *http.Client, url string, want string) {
	t.Helper()
	if _, gen := get(t, c, url); gen != want {
		t.Fatalf("%s: answered by generation %q, want %s", url, gen, want)
	}
}

const (
	loopback = "tcp://127.0.0.1:0"
	// quick keeps what is not the subject of a test from taking long.
	quick = "--drain-timeout=10s"
)
