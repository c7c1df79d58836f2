//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// A manager is a service manager's end of NOTIFY_SOCKET.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	all  []string
}

func (b *bench) listenAsManager() *manager {
	b.t.Helper()
	path := b.path("notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	b.env = append(b.env, "NOTIFY_SOCKET="+path)
	return &manager{t: b.t, conn: conn}
}

// await reads messages until one has all these lines, each a pattern.
func (m *manager) await(patterns ...string) string {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		n, err := m.conn.Read(buf)
		if err != nil {
			m.t.Fatalf("no message with %q: %v; there were %q", patterns, err, m.all)
		}
		text := string(buf[:n])
		m.all = append(m.all, text)
		if !slices.ContainsFunc(patterns, func(p string) bool {
			return !regexp.MustCompile("(?m)^" + p + "$").MatchString(text)
		}) {
			return text
		}
	}
}

// rest reads what is there already.
func (m *manager) rest() {
	m.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	buf := make([]byte, 4096)
	for {
		n, err := m.conn.Read(buf)
		if err != nil {
			return
		}
		m.all = append(m.all, string(buf[:n]))
	}
}

// wantNone checks that no message had this text.
func (m *manager) wantNone(text string) {
	m.t.Helper()
	m.rest()
	if strings.Contains(strings.Join(m.all, "\n"), text) {
		m.t.Errorf("%s was said: %q", text, m.all)
	}
}

func TestServiceManagerIsTold(t *testing.T) {
	b := newBench(t)
	m := b.listenAsManager()
	first := b.start("serve", "--listen", loopback, quick)
	if text := m.await("READY=1", "STATUS=generation 1: owner"); strings.Contains(text, "MAINPID") {
		t.Errorf("a first start says %q", text)
	}
	second := b.start("takeover", quick, "--probation=200ms")
	m.await("READY=1", fmt.Sprintf("MAINPID=%d", second.cmd.Process.Pid))
	m.await("STATUS=generation 2: owner")
	first.wantCode(exitDone)
	m.wantNone("STOPPING=1")

	// What was handed over in vain comes back with the main pid.
	third := b.start("takeover", quick, "--probation=5m")
	m.await("READY=1", fmt.Sprintf("MAINPID=%d", third.cmd.Process.Pid))
	b.wantRun(exitDone, "", "rollback")
	m.await("READY=1", fmt.Sprintf("MAINPID=%d", second.cmd.Process.Pid))
	third.wantCode(exitRolledBack)
	m.wantNone("STOPPING=1")

	b.wantRun(exitDone, "", "stop")
	m.await("STOPPING=1")
	second.wantCode(exitDone)
}

// linked makes a symbolic link to the program under test.
func (b *bench) linked() string {
	b.t.Helper()
	link := b.path("program")
	b.relink(link, b.command("x").Path)
	return link
}

// relink points link to target, in one step as an update does.
func (b *bench) relink(link, target string) {
	b.t.Helper()
	if err := os.Symlink(target, link+".new"); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		b.t.Fatal(err)
	}
}

func TestSignalStartsASuccessor(t *testing.T) {
	b := newBench(t)
	m := b.listenAsManager()
	link := b.linked()
	cmd := b.program("./"+filepath.Base(link), "serve", "--socket", b.socket, "--listen", "a="+loopback, "--listen="+"b=udp://127.0.0.1:0",
		"--probation=200ms", "--revision", "3", quick)
	cmd.Dir = b.dir
	first := b.startCommand(cmd)
	before := b.awaitOwner(1)

	// What the path leads to now is what is run, and its failure changes nothing.
	script := b.path("script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$0 $*\" > "+b.path("said")+"\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.relink(link, script)
	first.signal(syscall.SIGUSR2)
	m.await("RELOADING=1", "MONOTONIC_USEC=[1-9][0-9]*")
	m.await("READY=1")
	await(t, "the failure is logged", func() bool { return strings.Contains(first.text(), "exit status 7") })
	said, err := os.ReadFile(b.path("said"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" takeover ", "--socket=" + b.socket, "--listen=a=" + loopback, "--listen=b=udp://", "--revision=3", "--drain-timeout=10s"} {
		if !strings.Contains(string(said), want) {
			t.Errorf("no %q in %s", want, said)
		}
	}
	b.awaitOwner(1)

	// A path that leads nowhere.
	b.relink(link, b.path("nowhere"))
	first.signal(syscall.SIGUSR2)
	await(t, "no successor is logged", func() bool { return strings.Contains(first.text(), "no successor started") })
	m.await("RELOADING=1", "MONOTONIC_USEC=[1-9][0-9]*")
	m.await("READY=1")

	b.relink(link, b.command("x").Path)
	first.signal(syscall.SIGUSR2)
	m.await("RELOADING=1", "MONOTONIC_USEC=[1-9][0-9]*")
	m.await("READY=1", "MAINPID=[1-9][0-9]*")
	st := b.awaitOwner(2)
	first.wantCode(exitDone)
	if address(t, st, "a") != address(t, before, "a") || address(t, st, "b") != address(t, before, "b") {
		t.Fatalf("%+v", st.Sockets)
	}
	if session, err := getsid(st.PID); err != nil || session != st.PID {
		t.Errorf("the successor, pid %d, is in session %d, %v", st.PID, session, err)
	}
	// And the successor starts the next one the same way.
	if err := syscall.Kill(st.PID, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	b.awaitOwner(3)
	m.wantNone("STOPPING=1")
}

func getsid(pid int) (int, error) {
	sid, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sid), nil
}

func TestOneSuccessorAtATime(t *testing.T) {
	b := newBench(t)
	link := b.linked()
	first := b.startCommand(b.program(link, "serve", "--socket", b.socket, "--listen", loopback, quick))
	b.awaitOwner(1)
	script := b.path("script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho x >> "+b.path("started")+"\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.relink(link, script)
	first.signal(syscall.SIGUSR2)
	var child int
	await(t, "the first is started", func() bool {
		_, err := fmt.Sscanf(after(first.text(), "successor started\" pid="), "%d", &child)
		return err == nil
	})
	defer syscall.Kill(child, syscall.SIGKILL)
	first.signal(syscall.SIGUSR2)
	await(t, "the second is ignored", func() bool { return strings.Contains(first.text(), "still on its way") })
	syscall.Kill(child, syscall.SIGKILL)
	await(t, "the end of the first is noticed", func() bool { return strings.Contains(first.text(), "ended without taking over") })
	b.relink(link, b.command("x").Path)
	first.signal(syscall.SIGUSR2)
	b.awaitOwner(2)
}

// after is what follows the first sep in text, or "".
func after(text, sep string) string {
	_, rest, _ := strings.Cut(text, sep)
	return rest
}

// activated starts serve the way systemd does, with the shell in between, which
// alone can know the pid. pid is what LISTEN_PID is set to.
func (b *bench) activated(pid, names string, files []*os.File, args ...string) *process {
	b.t.Helper()
	inner := b.command(args...)
	cmd := b.program("/bin/sh", append([]string{"-c", `LISTEN_PID=` + pid + ` exec "$0" "$@"`}, inner.Args...)...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
	cmd.ExtraFiles = files
	p := b.startCommand(cmd)
	for _, f := range files {
		f.Close()
	}
	return p
}

// listenFile is a listener as a socket activator holds it.
func listenFile(t *testing.T) (f *os.File, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if f, err = ln.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	return f, ln.Addr().String()
}

func TestSocketActivation(t *testing.T) {
	b := newBench(t)
	f1, a1 := listenFile(t)
	f2, a2 := listenFile(t)
	f3, a3 := listenFile(t)
	first := b.activated("$$", "app.socket:app.socket:we b", []*os.File{f1, f2, f3},
		"serve", "--listen", "app.socket=tcp://"+a1, "--listen", "extra="+loopback, "--probation=200ms", quick)
	st := b.awaitOwner(1)
	c := newClient(t)
	for name, want := range map[string]string{"app.socket": a1, "app.socket-2": a2, "we-b": a3} {
		if got := address(t, st, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
		wantGeneration(t, c, "http://"+want, "1")
	}
	wantGeneration(t, c, "http://"+address(t, st, "extra"), "1")

	// Nothing of it is passed on to a successor, which inherits.
	first.signal(syscall.SIGUSR2)
	st = b.awaitOwner(2)
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", st.PID))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "LISTEN_PID") || strings.Contains(string(env), "LISTEN_FD") {
		t.Errorf("the successor's environment: %q", env)
	}
	wantGeneration(t, c, "http://"+a1, "2")

	// One that is activated and takes over uses what it inherits.
	f4, a4 := listenFile(t)
	third := b.activated("$$", "new", []*os.File{f4}, "takeover", "--probation=0", quick)
	st = b.awaitOwner(3)
	if slices.ContainsFunc(st.Sockets, func(s handover.SocketStatus) bool { return s.Name == "new" }) {
		t.Errorf("%+v", st.Sockets)
	}
	if _, err := net.Dial("tcp", a4); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the ignored socket is open: %v", err)
	}
	if !strings.Contains(third.text(), "it is closed") {
		t.Error("nothing was said about the ignored socket")
	}
}

func TestActivationOfAnotherProcessIsIgnored(t *testing.T) {
	b := newBench(t)
	f, _ := listenFile(t)
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	inode := info.Sys().(*syscall.Stat_t).Ino
	first := b.activated("1", "web", []*os.File{f}, "serve", "--listen", loopback, "--probation=0", quick)
	st := b.awaitOwner(1)
	if len(st.Sockets) != 1 || st.Sockets[0].Name != defaultName {
		t.Fatalf("%+v", st.Sockets)
	}
	// Nor does a program that it starts get that socket.
	first.signal(syscall.SIGUSR2)
	st = b.awaitOwner(2)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", st.PID))
	if err != nil || len(links) == 0 {
		t.Fatal(err, links)
	}
	for _, l := range links {
		if to, _ := os.Readlink(l); to == fmt.Sprintf("socket:[%d]", inode) {
			t.Errorf("%s is a socket meant for another process", l)
		}
	}
}
