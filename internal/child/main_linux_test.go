package child

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

const (
	controlEnv = "CHILD_TEST_CONTROL" // a program that obeys who listens there
	modeEnv    = "CHILD_TEST_MODE"    // or does something of its own
)

func TestMain(m *testing.M) {
	Shim()
	if mode := os.Getenv(modeEnv); mode != "" {
		os.Exit(modes[mode]())
	}
	if path := os.Getenv(controlEnv); path != "" {
		os.Exit(actorMain(path))
	}
	leak.Main(m)
}

// modes are programs that do one thing.
var modes map[string]func() int

func init() {
	modes = map[string]func() int{
		"supervisor": supervisorMain,
		"init":       initMain,
		"exit0":      func() int { return 0 },
		"exit9":      func() int { return 9 },
	}
}

// patience ends what hangs.
const patience = time.Minute

// A hello is what a program finds when it starts.
type hello struct {
	PID, PPID, PGID int
	Argv            []string
	Env             []string
	Dir             string
	FDs             map[int]string // with what they refer to
}

func newHello() hello {
	h := hello{
		PID: os.Getpid(), PPID: os.Getppid(), PGID: unix.Getpgrp(),
		Argv: os.Args, Env: os.Environ(), FDs: map[int]string{},
	}
	h.Dir, _ = os.Getwd()
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		// That of the directory is gone. The runtime of Go has some of its own.
		if err == nil && !strings.HasPrefix(link, "/sys/fs/cgroup/") {
			fd, _ := strconv.Atoi(e.Name())
			h.FDs[fd] = link
		}
	}
	return h
}

func (h hello) env(name string) string {
	v, ok := variable(h.Env, name)
	if !ok {
		return "(unset)"
	}
	return v
}

// actorMain is a program that says what it finds, and then obeys: it answers
// each line with one that begins with ok or error.
func actorMain(control string) int {
	found := newHello()
	c, err := net.Dial("unix", control)
	if err != nil {
		fmt.Fprintln(os.Stderr, "actor:", err)
		return 100
	}
	b, _ := json.Marshal(found)
	fmt.Fprintf(c, "%s\n", b)
	in := bufio.NewScanner(c)
	for in.Scan() {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		said, err := act(c, verb, arg)
		if err != nil {
			fmt.Fprintln(c, "error", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Fprintln(c, "ok", said)
	}
	return 0
}

func act(c net.Conn, verb, arg string) (said string, err error) {
	switch verb {
	case "notify":
		text, err := strconv.Unquote(arg)
		if err != nil {
			return "", err
		}
		return "", sendNotify(os.Getenv("NOTIFY_SOCKET"), text)
	case "barrier":
		return "", barrier(os.Getenv("NOTIFY_SOCKET"))
	case "exit":
		n, _ := strconv.Atoi(arg)
		os.Exit(n)
	case "kill":
		s, err := ParseSignal(arg)
		if err != nil {
			return "", err
		}
		unix.Kill(os.Getpid(), s)
		select {}
	case "say":
		_, err = fmt.Fprintln(os.Stderr, arg)
	case "flood": // so many numbered lines, then it ends
		n, _ := strconv.Atoi(arg)
		for i := range n {
			fmt.Fprintf(os.Stderr, "line %d\n", i)
		}
		os.Exit(0)
	case "ignore":
		s, err := ParseSignal(arg)
		if err != nil {
			return "", err
		}
		signal.Ignore(s)
	case "catch":
		s, err := ParseSignal(arg)
		if err != nil {
			return "", err
		}
		got := make(chan os.Signal, 1)
		signal.Notify(got, s)
		go func() {
			<-got
			fmt.Fprintln(c, "got", signalName(s))
			os.Exit(5)
		}()
	case "child":
		cmd := exec.Command("/proc/self/exe")
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: arg == "setsid"}
		if err := cmd.Start(); err != nil {
			return "", err
		}
		go cmd.Wait()
		said = strconv.Itoa(cmd.Process.Pid)
	case "serve": // one line, the pid, to everybody who connects to socket 0
		ln, err := net.FileListener(os.NewFile(firstFD, "listener"))
		if err != nil {
			return "", err
		}
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					os.Exit(101)
				}
				fmt.Fprintln(conn, os.Getpid())
				conn.Close()
			}
		}()
	case "http":
		ln, err := net.FileListener(os.NewFile(firstFD, "listener"))
		if err != nil {
			return "", err
		}
		status, _ := strconv.Atoi(arg)
		go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if status/100 == 3 {
				w.Header().Set("Location", "http://127.0.0.1:1/")
			}
			w.WriteHeader(status)
		}))
	case "listen":
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		said = ln.Addr().String()
	default:
		err = errors.New("unknown command")
	}
	return said, err
}

func sendNotify(socket, text string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(text), 0, &unix.SockaddrUnix{Name: socket})
}

// barrier is sd_notify_barrier(3).
func barrier(socket string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: socket}, 0)
	w.Close()
	if err != nil {
		return err
	}
	r.SetReadDeadline(time.Now().Add(patience))
	n, err := r.Read(make([]byte, 1))
	if n != 0 || err != io.EOF {
		return fmt.Errorf("barrier: %d %w", n, err)
	}
	return nil
}

// A stage is where programs report and are told what to do.
type stage struct {
	t    testing.TB
	ln   *net.UnixListener
	path string
}

func newStage(t testing.TB) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "child")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &stage{t: t, path: filepath.Join(dir, "c")}
	if s.ln, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: s.path}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ln.Close() })
	return s
}

// config runs an actor.
func (s *stage) config(sockets ...Socket) Config {
	return Config{
		Argv:        []string{"/proc/self/exe", "-actor"},
		Env:         append(os.Environ(), controlEnv+"="+s.path),
		Sockets:     sockets,
		StopTimeout: patience,
	}
}

// An actor is a program that has reported.
type actor struct {
	hello
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// next waits for the next program to report.
func (s *stage) next() *actor {
	s.t.Helper()
	s.ln.SetDeadline(time.Now().Add(patience))
	c, err := s.ln.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(3 * patience))
	a := &actor{t: s.t, conn: c, in: bufio.NewReader(c)}
	line, err := a.in.ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(line), &a.hello); err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (a *actor) tell(format string, args ...any) {
	a.t.Helper()
	if _, err := fmt.Fprintf(a.conn, format+"\n", args...); err != nil {
		a.t.Fatal(err)
	}
}

func (a *actor) hear() string {
	a.t.Helper()
	line, err := a.in.ReadString('\n')
	if err != nil {
		a.t.Fatalf("actor %d: %v", a.PID, err)
	}
	return strings.TrimSpace(line)
}

// do tells a command that must succeed.
func (a *actor) do(format string, args ...any) string {
	a.t.Helper()
	a.tell(format, args...)
	said, ok := strings.CutPrefix(a.hear(), "ok")
	if !ok {
		a.t.Fatalf("actor %d: %s: %s", a.PID, fmt.Sprintf(format, args...), said)
	}
	return strings.TrimSpace(said)
}

// awaitEnd waits until the actor has ended, which its connection tells.
func (a *actor) awaitEnd() {
	a.t.Helper()
	for {
		line, err := a.in.ReadString('\n')
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				a.t.Fatalf("actor %d does not end", a.PID)
			}
			return
		}
		a.t.Logf("actor %d: %s", a.PID, strings.TrimSpace(line))
	}
}

// A recorder keeps events.
type recorder struct {
	mu     sync.Mutex
	events []Event
	more   chan struct{}
}

func record(c *Config) *recorder {
	r := &recorder{more: make(chan struct{}, 1)}
	c.OnEvent = func(e Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
		select {
		case r.more <- struct{}{}:
		default:
		}
	}
	return r
}

func (r *recorder) all(kind EventKind) (found []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// await waits for the nth event of a kind.
func (r *recorder) await(t testing.TB, kind EventKind, n int) Event {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		if all := r.all(kind); len(all) >= n {
			return all[n-1]
		}
		select {
		case <-r.more:
		case <-timer.C:
			t.Fatalf("no event %q (%d); there were %v", kind, n, r.events)
		}
	}
}

func (r *recorder) kinds() (all []EventKind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		all = append(all, e.Kind)
	}
	return all
}

// start starts a program, and stops it at the end of the test.
func start(t testing.TB, c Config) *Program {
	t.Helper()
	p, err := Start(ctxOf(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // kill it
		if _, err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return p
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func await(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-c:
	case <-timer.C:
		t.Fatalf("%s: not within %v", what, patience)
	}
}

// eventually polls a condition that something else brings about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
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

// tcpSocket opens a listener that nobody accepts from here.
func tcpSocket(t testing.TB, name string) Socket {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return socketOf(t, name, "tcp", ln.Addr().String(), ln.(*net.TCPListener))
}

func socketOf(t testing.TB, name, network, address string, s interface{ File() (*os.File, error) }) Socket {
	t.Helper()
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return Socket{Name: name, Network: network, Address: address, Duplicate: func() (int, error) { return duplicate(f) }}
}

// linkOf is what /proc shows for a socket.
func linkOf(t testing.TB, s Socket) string {
	t.Helper()
	fd, err := s.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), s.Name)
	defer f.Close()
	return link(t, f)
}

// link is what /proc shows for a descriptor of this process.
func link(t testing.TB, f *os.File) (text string) {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) { text, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func sortedKeys(m map[int]string) []int {
	var keys []int
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
