package faults

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/tests/faults/agent"
	"golang.org/x/sys/unix"
)

// process is a program under test with its agent.
type process struct {
	t      testing.TB
	name   string
	label  byte
	cmd    *exec.Cmd
	orders *os.File
	log    string
	ended  chan struct{} // closed when it has been reaped and its last event is known

	// Touched by the test only.
	stopped bool // by SIGSTOP
	killed  bool // by the test

	mu       sync.Mutex
	steps    map[string]int
	trace    []string
	phases   []string
	acted    bool
	end      *agent.Event
	reports  int
	reported agent.Event
}

// launch starts args with an agent that does what spec says. Its output goes
// to a file in dir.
func launch(t testing.TB, dir, name string, spec agent.Spec, args ...string) *process {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{
		t: t, name: name, label: spec.Label, steps: map[string]int{},
		log: filepath.Join(dir, name+".log"), ended: make(chan struct{}),
	}
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	events, eventsEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer eventsEnd.Close()
	ordersEnd, orders, err := os.Pipe()
	if err != nil {
		events.Close()
		t.Fatal(err)
	}
	defer ordersEnd.Close()
	p.orders = orders
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = append(environment(), agent.Variable+"="+string(text))
	p.cmd.ExtraFiles = []*os.File{eventsEnd, ordersEnd} // agent.EventsFD, agent.OrdersFD
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		events.Close()
		orders.Close()
		t.Fatal(err)
	}
	go p.follow(events)
	t.Cleanup(p.tearDown)
	return p
}

// environment is that of the processes: without what would change their behaviour.
func environment() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "HANDOVERD_") && !strings.HasPrefix(v, "LISTEN_") && !strings.HasPrefix(v, "NOTIFY_SOCKET=") {
			env = append(env, v)
		}
	}
	return env
}

// follow reads the events until the process has ended.
func (p *process) follow(events *os.File) {
	defer close(p.ended)
	defer p.cmd.Wait()
	defer events.Close()
	r := bufio.NewReader(events)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var e agent.Event
		if json.Unmarshal(line, &e) == nil {
			p.hear(e)
		}
	}
}

func (p *process) hear(e agent.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.Kind {
	case agent.Stepped:
		p.steps[e.Step] = e.Nth
		p.trace = append(p.trace, e.Step)
	case agent.Acted:
		p.acted = true
	case agent.Phased:
		p.phases = append(p.phases, e.Phase)
	case agent.Ended:
		p.end = &e
	case agent.Reported:
		p.reports++
		p.reported = e
	}
}

func (p *process) tearDown() {
	p.cmd.Process.Kill()
	<-p.ended
	p.orders.Close()
	if p.t.Failed() {
		text, _ := os.ReadFile(p.log)
		const most = 24 << 10
		if len(text) > most {
			text = append([]byte("...\n"), text[len(text)-most:]...)
		}
		p.t.Logf("%v\n%s", p, text)
	}
}

func (p *process) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := fmt.Sprintf("%s (pid %d): phases %v", p.name, p.cmd.Process.Pid, p.phases)
	if len(p.trace) > 0 {
		s += ", last step " + p.trace[len(p.trace)-1]
	}
	if p.stopped {
		s += ", stopped"
	}
	if p.hasEnded() {
		s += ", " + p.cmd.ProcessState.String()
	}
	if p.end != nil && p.end.Error != "" {
		s += ": " + p.end.Error
	}
	return s
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// phase is the last one told, or empty.
func (p *process) phase() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.phases) == 0 {
		return ""
	}
	return p.phases[len(p.phases)-1]
}

// wentBack tells whether a takeover from p has failed.
func (p *process) wentBack() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.phases)
	return n > 2 && p.phases[n-1] == "owner" && p.phases[n-2] != "preparing"
}

func (p *process) reached(step string, nth int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.steps[step] >= nth
}

func (p *process) hasActed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acted
}

// class is why it ended, by the name of the error.
func (p *process) class() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end == nil {
		return ""
	}
	return p.end.Class
}

// order does nothing for a process that has ended.
func (p *process) order(text string) { fmt.Fprintln(p.orders, text) }

func (p *process) kill() {
	p.killed = true
	p.cmd.Process.Kill()
	<-p.ended
}

// stop stops the process, and returns when all its threads stand still.
func (p *process) stop() {
	p.t.Helper()
	p.stopped = true
	p.cmd.Process.Signal(syscall.SIGSTOP)
	await(p.t, p.name+" is stopped", func() bool { return p.hasEnded() || p.standsStill() })
}

func (p *process) standsStill() bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	for _, task := range tasks {
		// The state comes after the name, which is in parentheses: proc_pid_stat(5).
		b, err := os.ReadFile(task)
		if i := strings.LastIndexByte(string(b), ')'); err == nil && !strings.HasPrefix(string(b[i+1:]), " T") {
			return false
		}
	}
	return len(tasks) > 0
}

func (p *process) resume() {
	p.stopped = false
	p.cmd.Process.Signal(syscall.SIGCONT)
}

// starve takes the right to open descriptors: of what is open, nothing is lost.
// Standard input, output and error stay below the limit, and poll(2) works.
func (p *process) starve() (restore func()) {
	p.t.Helper()
	var old unix.Rlimit
	pid := p.cmd.Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		p.t.Fatalf("RLIMIT_NOFILE of %s: %v", p.name, err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}, nil); err != nil {
		p.t.Fatalf("RLIMIT_NOFILE of %s: %v", p.name, err)
	}
	return func() { unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil) }
}

// holdings is what a process has in hand.
type holdings struct{ descriptors, goroutines int }

func (p *process) holdings() holdings {
	p.t.Helper()
	p.mu.Lock()
	n := p.reports
	p.mu.Unlock()
	p.order(agent.Report)
	var h holdings
	await(p.t, p.name+" reports", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		h.goroutines = p.reported.Goroutines
		return p.reports > n
	})
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	h.descriptors = len(entries)
	return h
}

// patience bounds every wait of the tests. A cell's bound is this.
const patience = 30 * time.Second

// await polls until cond is true.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !within(cond) {
		t.Fatalf("not within %v: %s", patience, what)
	}
}

func within(cond func() bool) bool {
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
