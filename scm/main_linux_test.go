package scm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/scm"
)

// childEnv names the function that the test binary runs instead of the tests.
const childEnv = "SCM_TEST_CHILD"

var children = map[string]func() error{
	"nofile":      childNofile,
	"toomanyrefs": childTooManyRefs,
	"dial":        childDial,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leak.Main(m)
}

func child(t *testing.T, name string, arg string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, arg)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

// need skips the test if err says that the kernel lacks what it is about. On
// CI, where the kernel is chosen, that is a failure.
func need(t testing.TB, err error, what string) {
	t.Helper()
	switch {
	case err == nil:
	case !errors.Is(err, errors.ErrUnsupported):
		t.Fatal(err)
	case os.Getenv("CI") == "true":
		t.Fatalf("this kernel lacks %s: %v", what, err)
	default:
		t.Skipf("this kernel lacks %s: %v", what, err)
	}
}

var socketTypes = []struct {
	name string
	typ  int
}{
	{"stream", unix.SOCK_STREAM},
	{"seqpacket", unix.SOCK_SEQPACKET},
}

// eachType runs f for both kinds of socket, each with a pair of its own.
func eachType(t *testing.T, f func(t *testing.T, a, b *scm.Conn)) {
	for _, st := range socketTypes {
		t.Run(st.name, func(t *testing.T) {
			a, b := pair(t, st.typ)
			f(t, a, b)
		})
	}
}

// pair returns two connected Conns that are closed at the end of the test, and
// checks that the test leaks nothing.
func pair(t testing.TB, typ int) (a, b *scm.Conn) {
	t.Helper()
	leak.Check(t)
	ua, ub := unixPair(t, typ)
	return newConn(t, ua), newConn(t, ub)
}

func newConn(t testing.TB, uc *net.UnixConn) *scm.Conn {
	t.Helper()
	c, err := scm.NewConn(uc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func unixPair(t testing.TB, typ int) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = unixConn(t, fds[0]), unixConn(t, fds[1])
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func unixConn(t testing.TB, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

// withFD calls f with the descriptor of c.
func withFD(t testing.TB, c *net.UnixConn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var opErr error
	if err := raw.Control(func(fd uintptr) { opErr = f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if opErr != nil {
		t.Fatal(opErr)
	}
}

// A witness tells whether anybody holds a descriptor: it is the read end of a
// pipe whose write end is sent around, and reads EOF once all are closed.
type witness struct {
	r, w *os.File
}

func newWitness(t testing.TB) *witness {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return &witness{r, w}
}

// fds returns n times the descriptor of the write end. They are one file: a
// message takes as many references as it has descriptors.
func (w *witness) fds(t testing.TB, n int) []int {
	t.Helper()
	raw, err := w.w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fds := make([]int, n)
	raw.Control(func(fd uintptr) {
		for i := range fds {
			fds[i] = int(fd)
		}
	})
	return fds
}

// gone fails the test if, once ours is closed, somebody still holds the write
// end. A holder would make the read wait, so the deadline decides nothing but
// how long a failure takes.
func (w *witness) gone(t testing.TB) {
	t.Helper()
	w.w.Close()
	w.r.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := w.r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the descriptor is still open somewhere: read %d, %v", n, err)
	}
}

func closeAll(t testing.TB, fds []int) {
	t.Helper()
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			t.Errorf("close %d: %v", fd, err)
		}
	}
}

func send(t testing.TB, c *scm.Conn, p string, fds ...int) {
	t.Helper()
	if err := c.Send(context.Background(), []byte(p), fds); err != nil {
		t.Fatalf("Send: %v", err)
	}
}

// recv expects a message with nfds descriptors and returns them.
func recv(t testing.TB, c *scm.Conn, want string, nfds int) []int {
	t.Helper()
	p, fds := make([]byte, len(want)+64), make([]int, scm.MaxFDs)
	n, got, err := c.Recv(context.Background(), p, fds)
	if err != nil {
		t.Fatalf("Recv: %v", err)
	}
	if string(p[:n]) != want || got != nfds {
		t.Fatalf("Recv = %q with %d descriptors, want %q with %d", p[:n], got, want, nfds)
	}
	return fds[:got]
}

// wantErr fails the test unless the call failed with target and returned
// nothing.
func wantErr(t testing.TB, n, nfds int, err, target error) {
	t.Helper()
	if n != 0 || nfds != 0 || !errors.Is(err, target) {
		t.Fatalf("got %d, %d, %v; want 0, 0, %v", n, nfds, err, target)
	}
}

// awaitBlocked returns when a goroutine waits for the poller in method.
func awaitBlocked(t testing.TB, method string) {
	t.Helper()
	awaitStack(t, "[IO wait", "scm.(*Conn)."+method+"(")
}

// awaitStack returns when a goroutine has all parts in its stack.
func awaitStack(t testing.TB, parts ...string) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		stacks := string(buf[:runtime.Stack(buf, true)])
	next:
		for _, stack := range strings.Split(stacks, "\n\n") {
			for _, part := range parts {
				if !strings.Contains(stack, part) {
					continue next
				}
			}
			return
		}
		runtime.Gosched()
	}
	t.Fatalf("no goroutine has come to %q", parts)
}
