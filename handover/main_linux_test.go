package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv("HANDOVER_TEST_CHILD") != "" {
		os.Exit(childMain())
	}
	leak.Main(m)
}

// childMain is a server in a process of its own. It obeys the lines on its
// standard input and answers each with one line: "ok ..." or "error ...". It
// ends with its input.
func childMain() int {
	cfg := Config{Socket: os.Getenv("HANDOVER_TEST_CHILD"), StepTimeout: 20 * time.Second}
	if os.Getenv("HANDOVER_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("pid", os.Getpid())
	}
	var (
		g       *Generation
		e       *echo
		dialed  []net.Conn
		serving sync.WaitGroup
		ctx     = context.Background()
	)
	if os.Getenv("HANDOVER_TEST_GC") != "" {
		go func() {
			for {
				runtime.GC()
			}
		}()
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word := strings.Fields(in.Text())
		var said string
		err := func() (err error) {
			switch word[0] {
			case "probation", "alive", "readytimeout", "step":
				d, err := time.ParseDuration(word[1])
				if err != nil {
					return err
				}
				switch word[0] {
				case "probation":
					cfg.Probation = d
				case "alive":
					cfg.AliveTimeout = d
				case "readytimeout":
					cfg.ReadyTimeout = d
				case "step":
					cfg.StepTimeout = d
				}
				return nil
			case "mode":
				cfg.Mode = map[string]Mode{"takeover": TakeOverOnly, "start": StartOnly}[word[1]]
				return nil
			case "start":
				if g, err = Start(ctx, cfg); err == nil {
					said = fmt.Sprint(g.Number())
				}
				return err
			case "listen":
				ln, err := g.Listen(word[1], word[2], word[3])
				if err != nil {
					return err
				}
				said = ln.Addr().String()
				serving.Go(func() {
					for {
						c, err := ln.Accept()
						if err != nil {
							return
						}
						serving.Go(func() { answerLine(c, g.Number()) })
					}
				})
				return nil
			case "echo":
				ln, err := g.Listen(word[1], word[2], word[3])
				if err != nil {
					return err
				}
				said = ln.Addr().String()
				e = serveEcho(g, ln)
				return nil
			case "move":
				moved, stayed := e.move()
				said = fmt.Sprint(moved, stayed)
				return nil
			case "empty":
				e.empty()
				return nil
			case "conns":
				said = fmt.Sprint(e.count())
				return nil
			case "dial": // so many connections, that stay open
				var n int
				fmt.Sscan(word[1], &n)
				if err := limitDescriptors(uint64(n + 100)); err != nil {
					return err
				}
				for range n {
					c, err := net.Dial("tcp", word[2])
					if err != nil {
						return err
					}
					dialed = append(dialed, c)
				}
				return nil
			case "room": // for so many descriptors more
				var n uint64
				fmt.Sscan(word[1], &n)
				return limitDescriptors(n)
			case "nomove":
				cfg.NoMove = true
				return nil
			case "many": // listeners, by name
				var n int
				fmt.Sscan(word[1], &n)
				for i := range n {
					if _, err := g.Listen(fmt.Sprintf("name-%d", i), "tcp", "127.0.0.1:0"); err != nil {
						return err
					}
				}
				return nil
			case "warm": // takeovers within this process, on a set of its own
				var n int
				fmt.Sscan(word[1], &n)
				dir, err := os.MkdirTemp("", "hd")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				own := Config{Socket: filepath.Join(dir, "s"), Probation: -1}
				var last *Generation
				for range 5 {
					next, _, err := timedTakeover(own, n, &serving)
					if err != nil {
						return err
					}
					if last != nil {
						<-last.Superseded()
						last.Close()
					}
					last = next
				}
				return last.Close()
			case "measure":
				var n int
				fmt.Sscan(word[1], &n)
				var d takeoverTimes
				g, d, err = timedTakeover(cfg, n, &serving)
				said = fmt.Sprint(int64(d.sockets), int64(d.listening), int64(d.granted), int64(d.whole))
				return err
			case "ready":
				return g.Ready(ctx)
			case "superseded":
				<-g.Superseded()
				said = g.Cause().Error()
				return nil
			case "rollback":
				return g.pred.command(ctx, cmdRollback)
			case "stop":
				return g.Stop(ctx)
			case "close":
				g.Drained(map[string]int{"generation": int(g.Number())})
				return g.Close()
			case "exit":
				os.Exit(len(word) - 1)
			case "phase":
				said = g.Phase().String()
				return nil
			}
			return errors.New("unknown command")
		}()
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok", said)
	}
	return 0
}

// answerLine answers each line of a connection with the generation.
func answerLine(c net.Conn, generation uint64) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		if _, err := r.ReadString('\n'); err != nil {
			return
		}
		if _, err := fmt.Fprintln(c, generation); err != nil {
			return
		}
	}
}

// limitDescriptors leaves this process room for n descriptors.
func limitDescriptors(n uint64) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	free, err := os.Open(os.DevNull) // gets the lowest number
	if err != nil {
		return err
	}
	defer free.Close()
	lim.Cur = uint64(free.Fd()) + n
	lim.Max = max(lim.Max, lim.Cur)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
}

// child is such a process, seen from the test.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startChild(t testing.TB, socket string, env ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = append(append(os.Environ(), "HANDOVER_TEST_CHILD="+socket), env...)
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill() })
	return c
}

// ask sends one command and gives its whole answer.
func (c *child) ask(command string) string {
	c.t.Helper()
	c.tell(command)
	return c.hear()
}

func (c *child) tell(command string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, command); err != nil {
		c.t.Fatalf("child: %s: %v", command, err)
	}
}

func (c *child) hear() string {
	c.t.Helper()
	timer := time.AfterFunc(2*time.Minute, func() { c.cmd.Process.Kill() })
	defer timer.Stop()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("child: no answer: %v", err)
	}
	return strings.TrimSpace(line)
}

// do is ask for what must succeed.
func (c *child) do(commands ...string) (said string) {
	c.t.Helper()
	for _, command := range commands {
		said = c.ask(command)
		rest, ok := strings.CutPrefix(said, "ok")
		if !ok {
			c.t.Fatalf("child: %s: %s", command, said)
		}
		said = strings.TrimSpace(rest)
	}
	return said
}

func (c *child) signal(sig syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
	if sig != syscall.SIGSTOP {
		return
	}
	// All its threads have to have stopped before it cannot accept any more.
	eventually(c.t, "stopped", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.cmd.Process.Pid))
		for _, name := range tasks {
			b, err := os.ReadFile(name)
			if err != nil || !strings.Contains(string(b), ") T ") {
				return false
			}
		}
		return len(tasks) > 0
	})
}

// kill ends the process with SIGKILL and reaps it.
func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
	c.in.Close()
}

// line asks whoever listens at address which generation it is, on a
// connection that stays open.
type line struct {
	net.Conn
	r *bufio.Reader
}

func dialLine(t testing.TB, address string) *line {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &line{c, bufio.NewReader(c)}
}

func (l *line) who(t testing.TB) string {
	t.Helper()
	if _, err := fmt.Fprintln(l, "who"); err != nil {
		t.Fatal(err)
	}
	s, err := l.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

// eventually polls a condition that something else brings about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond) // between two looks, not in place of one
	}
}

// lack skips a test that needs something this machine does not have; in CI
// that is a failure.
func lack(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func openFDs(t testing.TB, pid int) int {
	t.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// execProgram runs a program, and returns when it has been executed.
func execProgram(t testing.TB, name string, args ...string) (pid int) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}
