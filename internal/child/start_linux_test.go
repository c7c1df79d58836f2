package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

// threeSockets are of three kinds.
func threeSockets(t *testing.T, dir string) []Socket {
	path := filepath.Join(dir, "app")
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer ul.Close()
	ul.SetUnlinkOnClose(false)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return []Socket{
		tcpSocket(t, "web"),
		socketOf(t, "app", "unix", path, ul),
		socketOf(t, "dns", "udp", pc.LocalAddr().String(), pc.(*net.UDPConn)),
	}
}

func TestProgramGetsItsSocketsAndNothingElse(t *testing.T) {
	leak.Check(t)
	// What this process was started with and never looked at.
	stray, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	s := newStage(t)
	sockets := threeSockets(t, filepath.Dir(s.path))
	c := s.config(sockets...)
	c.Env = append(c.Env, "LISTEN_PID=1", "LISTEN_FDS=7", "LISTEN_FDNAMES=x", "NOTIFY_SOCKET=/nowhere",
		"WATCHDOG_USEC=1", "WATCHDOG_PID=1", "NGINX=9;", "EINHORN_FD_9=9", "TWICE=a", "TWICE=b")
	p := start(t, c)
	a := s.next()
	if a.PID != p.PID() || a.env("LISTEN_PID") != strconv.Itoa(a.PID) {
		t.Errorf("pid %d, of Program %d, LISTEN_PID=%s", a.PID, p.PID(), a.env("LISTEN_PID"))
	}
	if a.PPID != os.Getpid() || a.PGID != a.PID {
		t.Errorf("parent %d, group %d, want %d, %d", a.PPID, a.PGID, os.Getpid(), a.PID)
	}
	if !slices.Equal(a.Argv, c.Argv) {
		t.Errorf("argv %q", a.Argv)
	}
	if got, want := sortedKeys(a.FDs), []int{0, 1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("descriptors %v, want %v", a.FDs, want)
	}
	if a.FDs[0] != os.DevNull {
		t.Errorf("standard input is %s", a.FDs[0])
	}
	for i, socket := range sockets {
		if want := linkOf(t, socket); a.FDs[firstFD+i] != want {
			t.Errorf("descriptor %d is %s, want %s", firstFD+i, a.FDs[firstFD+i], want)
		}
	}
	for name, want := range map[string]string{
		"LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:app:dns", "NOTIFY_SOCKET": "(unset)",
		"WATCHDOG_USEC": "(unset)", "WATCHDOG_PID": "(unset)", "NGINX": "(unset)", "EINHORN_FD_9": "(unset)",
		"TWICE": "b",
	} {
		if got := a.env(name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	// Here nothing has changed.
	for _, socket := range sockets {
		fd, err := socket.Duplicate()
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("socket %s: flags %#x, %v: not in non-blocking mode any more", socket.Name, flags, err)
		}
		unix.Close(fd)
	}
}

func TestProgramWithoutSockets(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	start(t, s.config())
	a := s.next()
	if got := sortedKeys(a.FDs); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("descriptors %v", a.FDs)
	}
	if got := a.env("LISTEN_FDS") + a.env("LISTEN_PID"); got != "(unset)(unset)" {
		t.Error(got)
	}
}

func TestManySockets(t *testing.T) {
	leak.Check(t)
	const n = 300
	s := newStage(t)
	one := tcpSocket(t, "")
	var sockets []Socket
	for i := range n {
		socket := one
		socket.Name = fmt.Sprintf("s%d", i)
		sockets = append(sockets, socket)
	}
	start(t, s.config(sockets...))
	a := s.next()
	if len(a.FDs) != firstFD+n || a.FDs[firstFD+n-1] != linkOf(t, one) {
		t.Errorf("%d descriptors, the last is %s", len(a.FDs), a.FDs[firstFD+n-1])
	}
	if names := strings.Split(a.env("LISTEN_FDNAMES"), ":"); len(names) != n || names[n-1] != "s299" {
		t.Errorf("LISTEN_FDNAMES has %d names", len(names))
	}
}

// Arguments and variables need not be UTF-8, and what is meant for the program
// must not reach the runtime of the shim before it.
func TestBytesPassUnchanged(t *testing.T) {
	leak.Check(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := Config{
		Argv: []string{"/bin/sh", "-c", `printf '%s|' "$@" "$ODD"; pwd`, "sh", "\xff\xfe", "a\nb"},
		Env:  []string{"ODD=\x80", "GOMEMLIMIT=what", "PATH=/bin:/usr/bin"},
		Dir:  "/", Stdout: w,
	}
	p := start(t, c)
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := "\xff\xfe|a\nb|\x80|/\n"; string(b) != want {
		t.Errorf("%q, want %q", b, want)
	}
	await(t, "end", p.Done())
}

// The shim, which is a Go program, leaves no trace in what is inherited.
func TestProgramInheritsWhatAnyChildDoes(t *testing.T) {
	leak.Check(t)
	const script = `grep -E '^(Sig(Blk|Ign|Cgt)|Cap|Seccomp:|Cpus_allowed:|NoNewPrivs|Threads)' /proc/self/status; ulimit -n -S; ulimit -n -H; umask; nice`
	want, err := exec.Command("/bin/sh", "-c", script).Output()
	if err != nil {
		lack(t, "needs a shell: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	start(t, Config{Argv: []string{"sh", "-c", script}, Stdout: w})
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != string(want) || len(got) == 0 {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}

func TestCustomsReachTheProgram(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config(threeSockets(t, filepath.Dir(s.path))...)
	for _, text := range []string{"no-systemd", "einhorn", "server-starter", "nginx", "ADMIN=fd://{fd:app}", "ALL={fds}"} {
		custom, err := ParseCustom(text)
		if err != nil {
			t.Fatal(err)
		}
		c.Customs = append(c.Customs, custom)
	}
	c.Generation = 7
	start(t, c)
	a := s.next()
	for name, want := range map[string]string{
		"LISTEN_FDS": "(unset)", "LISTEN_PID": "(unset)", "LISTEN_FDNAMES": "(unset)",
		"EINHORN_FD_COUNT": "3", "EINHORN_FD_0": "3", "EINHORN_FD_2": "5", "EINHORN_FDS": "3 4 5",
		"EINHORN_FD_FAMILY_0": "AF_INET", "EINHORN_FD_FAMILY_1": "AF_UNIX",
		"EINHORN_MASTER_PID":        strconv.Itoa(a.PPID),
		"SERVER_STARTER_PORT":       c.Sockets[0].Address + "=3;" + c.Sockets[1].Address + "=4",
		"SERVER_STARTER_GENERATION": "7",
		"NGINX":                     "3;4;5;", "ADMIN": "fd://4", "ALL": "3,4,5",
	} {
		if got := a.env(name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
}

func TestWhatCannotBeExecuted(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "", 0o644)
	orphan := write("orphan", "#!/no/such/interpreter\n", 0o755)
	rubbish := write("rubbish", "\x01\x02\x03", 0o755)
	for name, test := range map[string]struct {
		argv0 string
		want  error
		says  string
	}{
		"not in PATH":          {"no-such-program", exec.ErrNotFound, "no-such-program"},
		"no such file":         {filepath.Join(dir, "nothing"), fs.ErrNotExist, "nothing"},
		"not executable":       {plain, fs.ErrPermission, plain},
		"not executable, PATH": {"plain", fs.ErrPermission, plain},
		"a directory":          {dir, unix.EISDIR, dir},
		"no interpreter":       {orphan, fs.ErrNotExist, "interpreter"},
		"no program":           {rubbish, unix.ENOEXEC, "no program for this machine"},
		"relative":             {"./orphan", fs.ErrNotExist, "interpreter"},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			p, err := Start(ctxOf(t), Config{Argv: []string{test.argv0}, Dir: dir, Env: []string{"PATH=" + dir}, Ready: mustReadiness(t, "notify")})
			if err == nil {
				p.Stop(ctxOf(t))
				t.Fatal("started")
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want %v, and that says %q", err, test.want, test.says)
			}
		})
	}
}

func mustReadiness(t testing.TB, text string) Readiness {
	t.Helper()
	r, err := ParseReadiness(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An executable that is still being written is waited for.
func TestBusyExecutable(t *testing.T) {
	leak.Check(t)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(self); err != nil {
		t.Fatal(err)
	}
	cfg, err := Config{Argv: []string{path}, Env: []string{modeEnv + "=exit0"}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p := &Program{cfg: cfg, thread: newThread()}
	defer p.release()
	inst, err := p.spawn(ctxOf(t), func(*instance) {
		time.AfterFunc(100*time.Millisecond, func() { f.Close() }) // so that it is busy at first
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "end", inst.exited)
	if !inst.exit.Success() {
		t.Error(inst.exit)
	}
}

func TestStartIsCancelled(t *testing.T) {
	leak.Check(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s := newStage(t)
	if _, err := Start(ctx, s.config()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The ctx of Start is for Start.
func TestContextEndsAfterStart(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	ctx, cancel := context.WithCancel(context.Background())
	p, err := Start(ctx, s.config())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	a := s.next()
	a.do("say I am still here")
	if err := p.Ready(ctxOf(t)); err != nil {
		t.Error(err)
	}
	if _, err := p.Stop(ctxOf(t)); err != nil {
		t.Error(err)
	}
}

func TestConfigIsRefused(t *testing.T) {
	leak.Check(t)
	good := tcpSocket(t, "web")
	bad := func(name string) Socket { s := good; s.Name = name; return s }
	for name, c := range map[string]Config{
		"no command":       {},
		"empty command":    {Argv: []string{""}},
		"zero byte":        {Argv: []string{"a\x00b"}},
		"colon in a name":  {Argv: []string{"true"}, Sockets: []Socket{bad("a:b")}},
		"long name":        {Argv: []string{"true"}, Sockets: []Socket{bad(strings.Repeat("x", 256))}},
		"socket w/o file":  {Argv: []string{"true"}, Sockets: []Socket{{Name: "x"}}},
		"unknown name":     {Argv: []string{"true"}, Sockets: []Socket{good}, Customs: []Custom{mustCustom(t, "X={fd:y}")}},
		"ambiguous socket": {Argv: []string{"true"}, Sockets: []Socket{good, good}, Customs: []Custom{mustCustom(t, "X={fd}")}},
	} {
		if p, err := Start(ctxOf(t), c); err == nil {
			p.Stop(ctxOf(t))
			t.Errorf("%s: started", name)
		}
	}
}

func mustCustom(t testing.TB, text string) Custom {
	t.Helper()
	c, err := ParseCustom(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// If the shim is not there, that is said, and the fork does not go on.
func TestMissingShimIsTold(t *testing.T) {
	leak.Check(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Close() // as when such a process ends
	gone := &instance{pidfd: -1, exited: make(chan struct{})}
	close(gone.exited)
	if err := gone.awaitExec(ctxOf(t), r, "/bin/x"); err == nil || !strings.Contains(err.Error(), "child.Shim") {
		t.Error(err)
	}
}
