package child

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

// Clients that connect while there is no process wait, and all are served by
// the next one.
func TestCrashIsFollowedByARestartAndNobodyIsRefused(t *testing.T) {
	leak.Check(t)
	const clients = 50
	s := newStage(t)
	socket := tcpSocket(t, "web")
	c := s.config(socket)
	c.Ready = mustReadiness(t, "notify")
	c.MinBackoff = 500 * time.Millisecond
	events := record(&c)
	p := start(t, c)
	a := s.next()
	a.do("serve")
	a.do("notify %q", "READY=1")
	if err := p.Ready(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Supervise(); err != nil {
		t.Fatal(err)
	}
	ask := func(conn net.Conn) string {
		t.Helper()
		conn.SetDeadline(time.Now().Add(patience))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.DialTimeout("tcp", socket.Address, patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	if got := ask(dial()); got != strconv.Itoa(a.PID) {
		t.Fatalf("served by %s, want %d", got, a.PID)
	}
	a.tell("kill KILL")
	e := events.await(t, EventExited, 1)
	if e.Exit.Code() != 128+int(unix.SIGKILL) {
		t.Errorf("%v", e)
	}
	var waiting []net.Conn
	for range clients {
		waiting = append(waiting, dial())
	}
	b := s.next()
	if b.PID == a.PID || b.PID != p.PID() {
		t.Errorf("pids %d, %d, %d", a.PID, b.PID, p.PID())
	}
	if b.env("LISTEN_PID") != strconv.Itoa(b.PID) || b.FDs[firstFD] != linkOf(t, socket) {
		t.Errorf("LISTEN_PID=%s, descriptors %v", b.env("LISTEN_PID"), b.FDs)
	}
	b.do("serve")
	for _, conn := range waiting {
		if got := ask(conn); got != strconv.Itoa(b.PID) {
			t.Errorf("served by %s, want %d", got, b.PID)
		}
	}
	b.do("notify %q", "READY=1") // on the same notify socket
	events.await(t, EventReady, 2)
	if p.Restarts() != 1 {
		t.Errorf("%d restarts", p.Restarts())
	}
	if report, err := p.Stop(ctxOf(t)); err != nil || report.Killed {
		t.Errorf("%+v %v", report, err)
	}
}

func TestBackoff(t *testing.T) {
	c, err := Config{Argv: []string{"x"}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	for failures, want := range map[int]time.Duration{
		0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 5: 3200 * time.Millisecond,
		6: 6400 * time.Millisecond, 7: 10 * time.Second, 8: 10 * time.Second, 1 << 20: 10 * time.Second,
	} {
		if got := c.backoff(failures); got != want {
			t.Errorf("after %d: %v, want %v", failures, got, want)
		}
	}
}

func TestRestartLimit(t *testing.T) {
	leak.Check(t)
	c := Config{
		Argv: []string{"/proc/self/exe"}, Env: append(os.Environ(), modeEnv+"=exit9"),
		MinBackoff: time.Millisecond, RestartLimit: 3,
	}
	var p *Program
	started := make(chan struct{})
	events := record(&c)
	note := c.OnEvent
	c.OnEvent = func(e Event) {
		note(e)
		if e.Kind == EventStarted {
			<-started
		}
	}
	p = start(t, c)
	// The first process may be a zombie by now, and nobody has looked yet.
	supervised := make(chan error)
	go func() { supervised <- p.Supervise() }()
	close(started)
	err := <-supervised
	await(t, "done", p.Done())
	if err != nil {
		return // the end was looked at first, which is right too
	}
	death, ok := errors.AsType[*DeathError](p.Err())
	if !ok || death.Exit.Status != 9 || !strings.Contains(p.Err().Error(), "3 restarts") {
		t.Errorf("%v", p.Err())
	}
	if len(events.all(EventStarted)) != 4 || len(events.all(EventRestarting)) != 3 || len(events.all(EventGaveUp)) != 1 {
		t.Errorf("%v", events.kinds())
	}
}

func TestPolicies(t *testing.T) {
	for name, test := range map[string]struct {
		policy  Policy
		command string
		again   bool
	}{
		"always, status 0":     {RestartAlways, "exit 0", true},
		"on failure, status 0": {RestartOnFailure, "exit 0", false},
		"on failure, status 1": {RestartOnFailure, "exit 1", true},
		"on failure, killed":   {RestartOnFailure, "kill KILL", true},
		"never, status 1":      {RestartNever, "exit 1", false},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			s := newStage(t)
			c := s.config()
			c.Restart, c.MinBackoff = test.policy, time.Millisecond
			p := start(t, c)
			a := s.next()
			if err := p.Supervise(); err != nil {
				t.Fatal(err)
			}
			a.tell(test.command)
			if test.again {
				s.next()
				return
			}
			await(t, "done", p.Done())
			if death, ok := errors.AsType[*DeathError](p.Err()); !ok || !death.Ready {
				t.Errorf("%v", p.Err())
			}
		})
	}
}

// After it was up for a while the pauses begin anew.
func TestBackoffIsReset(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.MinBackoff, c.ResetAfter = time.Millisecond, time.Hour
	events := record(&c)
	p := start(t, c)
	if err := p.Supervise(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.next().tell("exit 1")
	}
	if e := events.await(t, EventRestarting, 3); e.Delay != 4*time.Millisecond {
		t.Errorf("%v", e)
	}
	a := s.next()
	p.call(func() { p.cfg.ResetAfter = time.Nanosecond })
	a.tell("exit 1")
	if e := events.await(t, EventRestarting, 4); e.Delay != time.Millisecond {
		t.Errorf("%v", e)
	}
	s.next()
}

func TestStopInThePauseBeforeARestart(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.MinBackoff = time.Hour
	c.MaxBackoff = time.Hour
	events := record(&c)
	p := start(t, c)
	if err := p.Supervise(); err != nil {
		t.Fatal(err)
	}
	s.next().tell("exit 1")
	events.await(t, EventRestarting, 1)
	if err := p.Signal(unix.SIGHUP); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Signal: %v", err)
	}
	if report, err := p.Stop(ctxOf(t)); err != nil || report.Exit != nil || report.Killed {
		t.Errorf("%+v %v", report, err)
	}
}

// A program that is gone from the disk is looked for again and again: maybe it
// is just being replaced.
func TestRestartOfAProgramThatIsGone(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	path := filepath.Join(filepath.Dir(s.path), "program")
	if err := os.Symlink("/proc/self/exe", path); err != nil {
		t.Fatal(err)
	}
	c := s.config()
	c.Argv, c.MinBackoff, c.MaxBackoff = []string{path}, time.Millisecond, 5*time.Millisecond
	events := record(&c)
	p := start(t, c)
	if err := p.Supervise(); err != nil {
		t.Fatal(err)
	}
	a := s.next()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	a.tell("exit 1")
	for n := range 3 {
		if e := events.await(t, EventFailed, n+1); !errors.Is(e.Err, os.ErrNotExist) {
			t.Errorf("%v", e)
		}
	}
	if err := os.Symlink("/proc/self/exe", path); err != nil {
		t.Fatal(err)
	}
	s.next().do("say back again")
}

// One that hangs after a restart is replaced as a dead one is.
func TestRestartedProgramThatHangs(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready, c.MinBackoff = mustReadiness(t, "notify"), time.Millisecond
	events := record(&c)
	p := start(t, c)
	a := s.next()
	a.do("notify %q", "READY=1")
	if err := p.Ready(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Supervise(); err != nil {
		t.Fatal(err)
	}
	p.call(func() { p.cfg.ReadyTimeout = 300 * time.Millisecond })
	a.tell("exit 1")
	s.next() // and is silent
	events.await(t, EventNotReady, 1)
	s.next()
	if e := events.await(t, EventExited, 2); e.Exit.Signal != unix.SIGKILL {
		t.Errorf("%v", e)
	}
}

// Start and stop race in all ways.
func TestStopRacesDeathAndRestart(t *testing.T) {
	leak.Check(t)
	n := 40
	if testing.Short() {
		n = 8
	}
	self, err := exec.LookPath("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		c := Config{
			Argv: []string{self}, Env: append(os.Environ(), modeEnv+"=exit9"),
			MinBackoff: time.Microsecond, MaxBackoff: time.Microsecond, Ready: mustReadiness(t, "delay=1h"),
		}
		p, err := Start(ctxOf(t), c)
		if err != nil {
			t.Fatal(err)
		}
		p.Supervise()
		time.Sleep(time.Duration(i) * time.Millisecond) // any moment will do
		if _, err := p.Stop(ctxOf(t)); err != nil {
			t.Fatal(err)
		}
		await(t, "done", p.Done())
	}
}
