// Package generations runs the program of an example as one process after
// another, each taking over from the last, for the tests of the examples.
package generations

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
)

// Patience is how long a test waits for anything.
const Patience = 2 * time.Minute

const variable = "HANDOVERD_EXAMPLE"

// Main is for TestMain: it runs the tests of m, and in the processes that they
// start, the program. It exits.
func Main(m *testing.M, program func()) {
	if os.Getenv(variable) == "" {
		leak.Main(m)
	}
	go exitWithParent()
	program()
	os.Exit(0)
}

// exitWithParent ends a process whose test has ended, in whatever way.
func exitWithParent() {
	io.Copy(io.Discard, os.Stdin)
	os.Exit(3)
}

// A Series is what shares a control socket.
type Series struct {
	// Address is where the newest generation serves.
	Address string

	t      *testing.T
	socket string
	args   []string
}

// New makes a series of processes that get args.
func New(t *testing.T, args ...string) *Series {
	return &Series{t: t, socket: filepath.Join(t.TempDir(), "s"), args: args}
}

// Next starts a generation, and returns when it owns the sockets for good.
// It ends with the test at the latest.
func (s *Series) Next() *Process {
	s.t.Helper()
	p := s.start()
	select {
	case s.Address = <-p.serves:
	case <-p.ended:
		s.t.Fatalf("a new generation ended before it served: %v\n%s", p.err, p.Log())
	case <-time.After(Patience):
		s.t.Fatalf("a new generation does not serve within %v:\n%s", Patience, p.Log())
	}
	op := handover.Operator{Socket: s.socket, Timeout: Patience}
	if err := op.Commit(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *Series) start() *Process {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &Process{
		t:      s.t,
		cmd:    exec.Command(exe, append([]string{"-socket", s.socket, "-listen", "127.0.0.1:0"}, s.args...)...),
		serves: make(chan string, 1),
		ended:  make(chan struct{}),
	}
	// The race detector makes a process that ends sleep for a second.
	p.cmd.Env = append(os.Environ(), variable+"=1", "GORACE=atexit_sleep_ms=0")
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go p.reap()
	s.t.Cleanup(p.kill)
	return p
}

// A Process is one generation.
type Process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	serves chan string   // its address, once
	ended  chan struct{} // closed when it has been reaped
	err    error         // set by then

	mu  sync.Mutex
	log strings.Builder
}

var serving = regexp.MustCompile(`generation \d+ serves (\S+)\n`)

// Write is where its output goes.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.Write(b)
	if m := serving.FindStringSubmatch(p.log.String()); m != nil {
		select {
		case p.serves <- m[1]:
		default: // known already
		}
	}
	return len(b), nil
}

// Log is what it has written.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *Process) reap() {
	p.err = p.cmd.Wait()
	close(p.ended)
}

func (p *Process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
	p.stdin.Close()
	if p.t.Failed() {
		p.t.Logf("process %d:\n%s", p.cmd.Process.Pid, p.Log())
	}
}

// Wait waits until it has ended, with status 0, and returns its log.
func (p *Process) Wait() string {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Patience):
		p.t.Fatalf("a generation has not ended within %v:\n%s", Patience, p.Log())
	}
	if p.err != nil {
		p.t.Fatalf("a generation ended with %v:\n%s", p.err, p.Log())
	}
	return p.Log()
}

// Stop has it end without a successor.
func (p *Process) Stop() string {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	return p.Wait()
}

// Figure finds in a log the number before a text. Without one it is -1.
func Figure(log, text string) int {
	m := regexp.MustCompile(`(\d+) ` + regexp.QuoteMeta(text)).FindStringSubmatch(log)
	if m == nil {
		return -1
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return -1
	}
	return n
}
