package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// firstGeneration starts a child as owner and tells its address.
func firstGeneration(t testing.TB, socket string, before ...string) (*child, string) {
	t.Helper()
	c := startChild(t, socket)
	c.do(before...)
	c.do("start")
	addr := c.do("listen app tcp 127.0.0.1:0")
	c.do("ready")
	return c, addr
}

// successor starts a child that has received the sockets.
func successor(t testing.TB, socket, addr string, before ...string) *child {
	t.Helper()
	c := startChild(t, socket)
	c.do("mode takeover")
	c.do(before...)
	c.do("start", "listen app tcp "+addr)
	return c
}

// serves asserts that a new connection is answered by that generation.
func serves(t testing.TB, addr string, generation int) {
	t.Helper()
	if got := dialLine(t, addr).who(t); got != fmt.Sprint(generation) {
		t.Fatalf("generation %s answers, want %d", got, generation)
	}
}

// takesOver asserts that the next takeover works, by doing it.
func takesOver(t testing.TB, socket, addr string, generation int) *child {
	t.Helper()
	c := successor(t, socket, addr, "probation -1s")
	c.do("ready")
	serves(t, addr, generation)
	return c
}

func TestSuccessorEndsBeforeReady(t *testing.T) {
	for name, end := range map[string]func(*child){
		"exits with 0": func(c *child) { c.tell("exit"); c.cmd.Wait() },
		"exits with 1": func(c *child) { c.tell("exit 1"); c.cmd.Wait() },
		"is killed":    func(c *child) { c.kill() },
		"closes":       func(c *child) { c.do("close") },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			_, addr := firstGeneration(t, cfg.Socket)
			open := dialLine(t, addr)
			for range 3 {
				s := successor(t, cfg.Socket, addr)
				end(s)
				serves(t, addr, 1)
			}
			if got := open.who(t); got != "1" {
				t.Fatalf("open connection: %s", got)
			}
			eventually(t, "takeover over", func() bool {
				st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
				return err == nil && st.Phase == PhaseOwner
			})
			takesOver(t, cfg.Socket, addr, 2)
		})
	}
}

func TestSuccessorKilledInProbation(t *testing.T) {
	cfg := testConfig(t)
	_, addr := firstGeneration(t, cfg.Socket)
	open := dialLine(t, addr)
	if got := open.who(t); got != "1" {
		t.Fatal(got)
	}
	for i := range 3 {
		s := successor(t, cfg.Socket, addr, "probation 1h")
		s.do("ready")
		serves(t, addr, 2+i)
		if got := open.who(t); got != "1" {
			t.Fatalf("open connection in probation: %s", got)
		}
		s.kill()
		serves(t, addr, 1)
	}
	takesOver(t, cfg.Socket, addr, 5)
}

// A successor that is killed while clients keep connecting: nobody is
// refused, and only what the dead process had accepted is lost.
func TestNoConnectionIsRefusedWhenProbationEndsInDeath(t *testing.T) {
	cfg := testConfig(t)
	_, addr := firstGeneration(t, cfg.Socket)
	stop := make(chan struct{})
	var asked, lost int
	done := make(chan error, 1)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := net.Dial("tcp", addr)
			if err != nil {
				done <- err
				return
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			asked++
			fmt.Fprintln(c, "who")
			if n, err := c.Read(make([]byte, 16)); err != nil || n == 0 {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					done <- err
				}
				lost++
			}
			c.Close()
		}
	}()
	for i := range 10 {
		s := successor(t, cfg.Socket, addr, "probation 1h")
		s.do("ready")
		serves(t, addr, 2+i)
		s.kill()
		serves(t, addr, 1)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d connections, %d lost with the process that had accepted them", asked, lost)
	if lost > 10 {
		t.Errorf("%d connections lost, at most one in each of 10 deaths could have been accepted by the dead", lost)
	}
}

func TestSuccessorHangsInProbation(t *testing.T) {
	cfg := testConfig(t)
	_, addr := firstGeneration(t, cfg.Socket, "alive 300ms")
	s := successor(t, cfg.Socket, addr, "probation 1h")
	s.do("ready")
	serves(t, addr, 2)
	s.signal(syscall.SIGSTOP)
	serves(t, addr, 1) // once the owner has noticed
	if err := s.cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the hung successor ended with %v, want killed", err)
	}
	takesOver(t, cfg.Socket, addr, 3)
}

func TestSuccessorHangsBeforeReady(t *testing.T) {
	cfg := testConfig(t)
	_, addr := firstGeneration(t, cfg.Socket, "readytimeout 300ms")
	s := successor(t, cfg.Socket, addr)
	s.signal(syscall.SIGSTOP)
	eventually(t, "ready timeout", func() bool {
		st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
		return err == nil && st.Phase == PhaseOwner
	})
	s.signal(syscall.SIGCONT)
	if got := s.ask("ready"); !strings.Contains(got, "refused (timeout)") {
		t.Fatalf("late ready: %s", got)
	}
	serves(t, addr, 1)
	takesOver(t, cfg.Socket, addr, 2)
}

func TestOwnerKilledAfterTheSockets(t *testing.T) {
	cfg := testConfig(t)
	o, addr := firstGeneration(t, cfg.Socket)
	s := successor(t, cfg.Socket, addr)
	o.kill()
	queued := dialLine(t, addr) // nobody accepts yet
	s.do("ready")
	if got := queued.who(t); got != "2" {
		t.Fatal(got)
	}
	if got := s.do("phase"); got != "owner" {
		t.Fatal(got)
	}
	takesOver(t, cfg.Socket, addr, 3)
}

func TestOwnerKilledInProbation(t *testing.T) {
	cfg := testConfig(t)
	o, addr := firstGeneration(t, cfg.Socket)
	s := successor(t, cfg.Socket, addr, "probation 1h")
	s.do("ready")
	o.kill()
	serves(t, addr, 2)
	eventually(t, "end of probation", func() bool { return s.do("phase") == "owner" })
	takesOver(t, cfg.Socket, addr, 3)
}

func TestOwnerHangsBeforeGranted(t *testing.T) {
	cfg := testConfig(t)
	o, addr := firstGeneration(t, cfg.Socket)
	s := successor(t, cfg.Socket, addr, "step 300ms")
	o.signal(syscall.SIGSTOP)
	if got := s.ask("ready"); !strings.Contains(got, ErrStuck.Error()) {
		t.Fatalf("ready of a stopped owner: %s", got)
	}
	o.signal(syscall.SIGCONT)
	serves(t, addr, 1)
	eventually(t, "owner", func() bool { return o.do("phase") == "owner" })
	// The owner may have granted what was withdrawn already, and so have used
	// up generation 2.
	next := successor(t, cfg.Socket, addr, "probation -1s")
	next.do("ready")
	if got := dialLine(t, addr).who(t); got != "2" && got != "3" {
		t.Fatalf("generation %s answers, want the successor", got)
	}
}

// The owner is stopped, and a whole generation passes before it wakes up: it
// must find out that it is not the owner, without a message to tell it.
func TestOwnerSleepsThroughItsSuccessorsLife(t *testing.T) {
	cfg := testConfig(t)
	o, addr := firstGeneration(t, cfg.Socket)
	s := successor(t, cfg.Socket, addr, "probation 300ms")
	s.do("ready")
	o.signal(syscall.SIGSTOP)
	eventually(t, "commit", func() bool { return s.do("phase") == "owner" })
	s3 := takesOver(t, cfg.Socket, addr, 3)
	s.kill()
	o.signal(syscall.SIGCONT)
	if got := o.do("superseded"); got != ErrSuperseded.Error() {
		t.Fatalf("the old owner's cause: %s", got)
	}
	serves(t, addr, 3)
	if got := s3.do("phase"); got != "owner" {
		t.Fatal(got)
	}
}

// Both die: what they leave behind is no obstacle.
func TestFreshStartAfterACrash(t *testing.T) {
	cfg := testConfig(t)
	o, addr := firstGeneration(t, cfg.Socket)
	s := successor(t, cfg.Socket, addr)
	o.kill()
	s.kill()
	for _, f := range []string{cfg.Socket, cfg.Socket + ".lock"} {
		if _, err := os.Lstat(f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Start(testContext(t), Config{Socket: cfg.Socket, Mode: TakeOverOnly}); !errors.Is(err, ErrNoOwner) {
		t.Fatalf("takeover from the dead: %v", err)
	}
	g := begin(t, cfg)
	if g.Number() != 1 {
		t.Fatal(g.Number())
	}
	listen(t, g, "app", "tcp", addr).Close()
	g.Close()
	if left, _ := filepath.Glob(cfg.Socket + "*"); len(left) != 0 {
		t.Fatal(left)
	}
}

func TestStaleSocketWithoutItsLock(t *testing.T) {
	cfg := testConfig(t)
	o, _ := firstGeneration(t, cfg.Socket)
	o.kill()
	if err := os.Remove(cfg.Socket + ".lock"); err != nil {
		t.Fatal(err)
	}
	if g := begin(t, cfg); g.Number() != 1 {
		t.Fatal(g.Number())
	}
}

// Somebody deletes the lock of a live owner: the next start still finds it.
func TestLockRemovedUnderALiveOwner(t *testing.T) {
	cfg := testConfig(t)
	o, _ := firstGeneration(t, cfg.Socket)
	if err := os.Remove(cfg.Socket + ".lock"); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(testContext(t), Config{Socket: cfg.Socket, Mode: StartOnly}); !errors.Is(err, ErrOwned) {
		t.Fatal(err)
	}
	o.do("close")
	if left, _ := filepath.Glob(cfg.Socket + "*"); len(left) != 0 {
		t.Fatal(left)
	}
}
