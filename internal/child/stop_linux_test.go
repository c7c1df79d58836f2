package child

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

func TestStop(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.StopSignal = unix.SIGQUIT
	events := record(&c)
	p := start(t, c)
	a := s.next()
	a.do("catch QUIT")
	report, err := p.Stop(ctxOf(t))
	if err != nil || report.Killed || report.Exit == nil || *report.Exit != (Exit{Status: 5}) || report.Took <= 0 {
		t.Errorf("%+v %v", report, err)
	}
	if got := a.hear(); got != "got SIGQUIT" {
		t.Error(got)
	}
	await(t, "done", p.Done())
	if p.Err() != nil || p.PID() != 0 {
		t.Errorf("%v, pid %d", p.Err(), p.PID())
	}
	if e := events.await(t, EventSignalled, 1); e.Text != "SIGQUIT" || len(events.all(EventKilled)) != 0 {
		t.Errorf("%v", events.events)
	}
	again, err := p.Stop(ctxOf(t))
	if err != nil || again != report {
		t.Errorf("again: %+v %v", again, err)
	}
	if err := p.Ready(ctxOf(t)); err == nil {
		t.Error("a stopped program is ready")
	}
}

// One that ignores the signal is killed with all that it has forked.
func TestStubbornProgramIsKilledWithItsChildren(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.StopTimeout = 300 * time.Millisecond
	events := record(&c)
	p := start(t, c)
	a := s.next()
	a.do("ignore TERM")
	a.do("child")
	b := s.next()
	b.do("ignore TERM")
	b.do("child")
	d := s.next()
	report, err := p.Stop(ctxOf(t))
	if err != nil || !report.Killed || *report.Exit != (Exit{Signal: unix.SIGKILL}) || report.Exit.Code() != 137 {
		t.Errorf("%+v %v", report, err)
	}
	if report.Took < c.StopTimeout {
		t.Errorf("killed after %v", report.Took)
	}
	b.awaitEnd()
	d.awaitEnd()
	events.await(t, EventKilled, 1)
}

func TestStopIsCutShort(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	p := start(t, s.config())
	s.next().do("ignore TERM")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if report, err := p.Stop(ctx); err != nil || !report.Killed {
		t.Errorf("%+v %v", report, err)
	}
}

func TestStopWithoutTimeKills(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.StopTimeout = -1
	p := start(t, c)
	s.next().do("catch TERM")
	if report, err := p.Stop(ctxOf(t)); err != nil || !report.Killed || report.Exit.Signal != unix.SIGKILL {
		t.Errorf("%+v %v", report, err)
	}
}

// A process that is stopped (SIGSTOP) gets the signal when it is continued.
func TestStopOfAStoppedProcess(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	p := start(t, s.config())
	a := s.next()
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stopped", func() bool { _, state := statOf(a.PID); return state == 'T' })
	if report, err := p.Stop(ctxOf(t)); err != nil || report.Killed || report.Exit.Signal != unix.SIGTERM {
		t.Errorf("%+v %v", report, err)
	}
}

// The time to stop can be extended too.
func TestTimeToStopIsExtended(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready = mustReadiness(t, "notify")
	events := record(&c)
	p := start(t, c)
	a := s.next()
	a.do("ignore TERM")
	done := make(chan Report, 1)
	ctx := ctxOf(t)
	go func() {
		r, _ := p.Stop(ctx)
		done <- r
	}()
	events.await(t, EventSignalled, 1)
	a.do("notify %q", "STOPPING=1\nEXTEND_TIMEOUT_USEC=7200000000")
	a.do("barrier")
	p.call(func() {
		if left := time.Until(p.killTimer.at); left < time.Hour {
			t.Errorf("%v left", left)
		}
	})
	a.tell("exit 0")
	if r := <-done; r.Killed || *r.Exit != (Exit{}) {
		t.Errorf("%+v", r)
	}
	if all := events.all(EventStopping); len(all) != 0 {
		t.Errorf("not by itself: %v", all)
	}
}

// What a dead program has forked must not accept beside the next one.
func TestRestOfTheGroupIsKilled(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	p := start(t, s.config())
	a := s.next()
	a.do("child")
	worker := s.next()
	a.do("child setsid")
	elsewhere := s.next()
	a.tell("exit 0")
	await(t, "done", p.Done())
	worker.awaitEnd()
	elsewhere.do("catch TERM") // it lives: it is not in the group
	elsewhere.tell("exit 0")
	elsewhere.awaitEnd()
}

func TestStandardErrorIsPassedUnchanged(t *testing.T) {
	leak.Check(t)
	const lines = 30000
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := newStage(t)
	c := s.config()
	c.Stderr = w
	p := start(t, c)
	s.next().tell("flood %d", lines)
	all := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(r)
		all <- b
	}()
	await(t, "done", p.Done())
	w.Close()
	var want bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := <-all; !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got), want.Len())
	}
}

// Whoever shares our standard error may have put it into non-blocking mode.
func TestStandardErrorInNonBlockingMode(t *testing.T) {
	leak.Check(t)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	if err := unix.SetNonblock(fds[1], true); err != nil { // after NewFile: it does not know
		t.Fatal(err)
	}
	s := newStage(t)
	c := s.config()
	c.Stderr = w
	p := start(t, c)
	s.next().tell("flood 30000")
	eventually(t, "the pipe is full", func() bool {
		p := []unix.PollFd{{Fd: int32(fds[1]), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, 0)
		return err == nil && n == 0
	})
	all := make(chan int, 1)
	go func() {
		b, _ := io.ReadAll(r)
		all <- bytes.Count(b, []byte("\n"))
	}()
	await(t, "done", p.Done())
	w.Close()
	if n := <-all; n != 30000 {
		t.Errorf("%d lines, want 30000", n)
	}
}

// If nobody reads our standard error, the program can still be stopped.
func TestStandardErrorIsStuck(t *testing.T) {
	leak.Check(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := newStage(t)
	c := s.config()
	c.Stderr, c.StopTimeout = w, 100*time.Millisecond
	p := start(t, c)
	a := s.next()
	a.do("ignore TERM")
	a.tell("flood 1000000")
	if report, err := p.Stop(ctxOf(t)); err != nil || !report.Killed {
		t.Errorf("%+v %v", report, err)
	}
	r.Close() // ends the copy
	w.Close()
}

func TestStandardErrorDirect(t *testing.T) {
	leak.Check(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := newStage(t)
	c := s.config()
	c.Stderr, c.DirectStderr = w, true
	start(t, c)
	a := s.next()
	if a.FDs[2] != link(t, w) {
		t.Errorf("standard error is %s, want %s", a.FDs[2], link(t, w))
	}
	w.Close()
}

// supervisorMain is a process that starts a program, and is killed.
func supervisorMain() int {
	c := Config{
		Argv: []string{"/proc/self/exe"},
		Env:  []string{controlEnv + "=" + os.Getenv("CHILD_TEST_PATH")},
	}
	n, _ := strconv.Atoi(os.Getenv("CHILD_TEST_DEATH"))
	c.DeathSignal = unix.Signal(n)
	p, err := Start(context.Background(), c)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	<-p.Done()
	return p.Report().Exit.Code()
}

func TestProgramDoesNotOutliveUs(t *testing.T) {
	for name, test := range map[string]struct {
		signal unix.Signal
		ends   bool
	}{
		"stop signal by default": {0, true},
		"another signal":         {unix.SIGUSR1, true},
		"none":                   {-1, false},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			s := newStage(t)
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), modeEnv+"=supervisor", "CHILD_TEST_PATH="+s.path,
				"CHILD_TEST_DEATH="+strconv.Itoa(int(test.signal)))
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			a := s.next()
			want := test.signal
			if want == 0 {
				want = unix.SIGTERM
			}
			if test.ends {
				a.do("catch %d", want)
			}
			if a.PPID != cmd.Process.Pid {
				t.Errorf("the program's parent is %d, want %d", a.PPID, cmd.Process.Pid)
			}
			cmd.Process.Kill()
			cmd.Wait()
			if test.ends {
				if got := a.hear(); got != "got "+signalName(want) {
					t.Error(got)
				}
			} else {
				a.do("child")
				s.next().tell("exit 0")
				a.tell("exit 0")
			}
			a.awaitEnd()
		})
	}
}

// The kernel takes the thread that forked for the parent: it has to stay.
func TestThreadStays(t *testing.T) {
	leak.Check(t)
	th := newThread()
	defer th.close()
	var first int
	th.do(func() { first = unix.Gettid() })
	for range 200 {
		// All threads that the runtime has at hand end.
		var locked, together sync.WaitGroup
		locked.Add(50)
		for range 50 {
			together.Go(func() {
				if unix.Gettid() != os.Getpid() {
					runtime.LockOSThread() // and the thread ends with the goroutine
				}
				locked.Done()
				locked.Wait()
			})
		}
		together.Wait()
		th.do(func() {
			if now := unix.Gettid(); now != first {
				t.Errorf("thread %d, before %d", now, first)
			}
		})
	}
}

func TestSignal(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	p := start(t, s.config())
	a := s.next()
	a.do("catch HUP")
	if err := p.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if got := a.hear(); got != "got SIGHUP" {
		t.Error(got)
	}
	await(t, "done", p.Done())
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "unasked: exit status 5") {
		t.Error(err)
	}
}
