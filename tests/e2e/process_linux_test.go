package e2e

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A process runs the program under test, or a library program.
type process struct {
	t     testing.TB
	cmd   *exec.Cmd
	log   string // path of its output
	ended chan struct{}
	code  int // valid when ended is closed; -1: by a signal
}

// launch starts cmd on h, its output going to a file in dir: a pipe would
// stay open as long as a successor lives.
func launch(t testing.TB, h *host, dir string, cmd *exec.Cmd) *process {
	t.Helper()
	f, err := os.CreateTemp(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	p := &process{t: t, cmd: cmd, log: f.Name(), ended: make(chan struct{})}
	if err := h.start(cmd); err != nil {
		t.Fatal(err)
	}
	go p.reap()
	t.Cleanup(p.tearDown)
	return p
}

func (p *process) reap() {
	defer close(p.ended)
	p.cmd.Wait() // its error is in the state
	p.code = p.cmd.ProcessState.ExitCode()
}

func (p *process) tearDown() {
	select {
	case <-p.ended:
	default:
		p.cmd.Process.Kill()
		<-p.ended
	}
	text := p.text()
	if strings.Contains(text, "DATA RACE") {
		p.t.Errorf("%v: data race", p.cmd.Args[1:])
	}
	if p.t.Failed() {
		const most = 8 << 10
		if len(text) > most {
			text = "...\n" + text[len(text)-most:]
		}
		p.t.Logf("pid %d, exit code %d, %s:\n%s", p.pid(), p.code, strings.Join(p.cmd.Args[1:], " "), text)
	}
}

// text is the output so far.
func (p *process) text() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// kill kills the process and waits for its death.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	p.await()
}

func (p *process) await() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("pid %d has not ended: %v", p.pid(), p.cmd.Args[1:])
	}
}

// wantCode waits for the end and checks the exit code.
func (p *process) wantCode(want int) {
	p.t.Helper()
	p.await()
	if p.code != want {
		p.t.Fatalf("pid %d: exit code %d, want %d: %v", p.pid(), p.code, want, p.cmd.Args[1:])
	}
}

// wantAlive checks that the process has not ended.
func (p *process) wantAlive() {
	p.t.Helper()
	select {
	case <-p.ended:
		p.t.Fatalf("pid %d has ended with exit code %d: %v", p.pid(), p.code, p.cmd.Args[1:])
	default:
	}
}

// awaitText waits until the output has text.
func (p *process) awaitText(text string) {
	p.t.Helper()
	await(p.t, "the output has "+strconv.Quote(text), func() bool { return strings.Contains(p.text(), text) })
}

// descriptors are the targets of the open file descriptors of a process.
func descriptors(t testing.TB, pid int) []string {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			all = append(all, e.Name()+" "+target)
		}
	}
	return all
}
