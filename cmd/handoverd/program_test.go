//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/handoverd/handoverd/handover"
)

// testProgram, as the first argument, makes the test binary a program that
// knows nothing of handoverd: it serves HTTP on the sockets that it gets.
//
//	testProgram NAME [notify] [exit=CODE] [die=CODE]
//
// It answers NAME and its pid. GET /slow takes until the client sends its
// body to the end.
const testProgram = "a-program-of-the-tests"

func programMain(args []string) {
	name, rest := args[0], args[1:]
	code := 0
	for _, word := range rest {
		if text, ok := strings.CutPrefix(word, "die="); ok {
			fmt.Fprintln(os.Stderr, name, "has no configuration")
			code, _ = strconv.Atoi(text)
			os.Exit(code)
		}
		if text, ok := strings.CutPrefix(word, "exit="); ok {
			code, _ = strconv.Atoi(text)
		}
	}
	listeners, err := activation.Listeners()
	if err != nil || len(listeners) == 0 || listeners[0] == nil {
		fmt.Fprintln(os.Stderr, name, "has no sockets:", err)
		os.Exit(1)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for range hup {
			fmt.Fprintln(os.Stderr, name, "reloads")
		}
	}()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d %s", name, os.Getpid(), os.Getenv("HANDOVERD_GENERATION"))
	})}
	for _, ln := range listeners {
		go srv.Serve(ln)
	}
	if slices.Contains(rest, "notify") {
		daemon.SdNotify(false, daemon.SdNotifyReady)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	srv.Shutdown(context.Background())
	fmt.Fprintln(os.Stderr, name, "has stopped")
	os.Exit(code)
}

// withProgram is a command line that runs the test program.
func withProgram(words []string, args ...string) []string {
	return append(append(args, "--", "/proc/self/exe", testProgram), words...)
}

func words(text string) []string { return strings.Fields(text) }

// who asks who serves: the program's name, pid and generation.
func who(t *testing.T, c *http.Client, url string) (name string, pid int, generation string) {
	t.Helper()
	body, _ := get(t, c, url)
	if _, err := fmt.Sscan(body, &name, &pid, &generation); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return name, pid, generation
}

func TestProgramIsReplaced(t *testing.T) {
	b := newBench(t)
	first := b.start(withProgram(words("blue notify"), "serve", "--listen", "web="+loopback, "--ready=notify", quick)...)
	url := "http://" + address(t, b.awaitOwner(1), "web")
	c := newClient(t)
	if name, _, gen := who(t, c, url); name != "blue" || gen != "1" {
		t.Fatalf("%s of generation %s answers", name, gen)
	}
	second := b.start(withProgram(words("green notify"), "takeover", "--ready=notify", "--probation=1h", quick)...)
	b.awaitPhase(2, handover.PhaseProbation)
	if strings.Contains(first.text(), "blue has stopped") {
		t.Fatal("the old program was told to stop in probation")
	}
	b.wantRun(exitDone, "", "commit")
	first.wantCode(exitDone)
	if !strings.Contains(first.text(), "blue has stopped") || !strings.Contains(first.text(), "its program ended") {
		t.Errorf("log of the first:\n%s", first.text())
	}
	if name, _, gen := who(t, c, url); name != "green" || gen != "2" {
		t.Fatalf("%s of generation %s answers", name, gen)
	}
	await(t, "the report is heard", func() bool { return strings.Contains(second.text(), "its program ended after") })
	second.signal(syscall.SIGHUP)
	await(t, "the program reloads", func() bool { return strings.Contains(second.text(), "green reloads") })
	second.signal(syscall.SIGTERM)
	second.wantCode(exitDone)
}

// The old program was never touched when the new one does not come up.
func TestProgramThatDoesNotGetReady(t *testing.T) {
	b := newBench(t)
	b.start(withProgram(words("blue notify"), "serve", "--listen", "web="+loopback, "--ready=notify", quick)...)
	url := "http://" + address(t, b.awaitOwner(1), "web")
	_, pid, _ := who(t, newClient(t), url)
	for _, c := range []struct {
		program []string
		says    string
	}{
		{[]string{"/proc/self/exe", testProgram, "green", "die=3"}, "green has no configuration"},
		{[]string{"/no/such/program"}, "no such file"},
		{[]string{"no-such-program"}, "not found"},
		{[]string{"/proc/self/exe", testProgram, "green"}, "not ready"}, // it never says so
	} {
		p := b.start(append([]string{"takeover", "--ready=notify", "--ready-timeout=300ms", quick, "--"}, c.program...)...)
		p.wantCode(exitFailure)
		if !strings.Contains(p.text(), c.says) {
			t.Errorf("%q: nothing says %q:\n%s", c.program, c.says, p.text())
		}
		b.awaitOwner(1)
	}
	if name, again, _ := who(t, newClient(t), url); name != "blue" || again != pid {
		t.Errorf("%s, pid %d, answers; it was %d", name, again, pid)
	}
}

func TestProgramIsRestarted(t *testing.T) {
	b := newBench(t)
	p := b.start(withProgram(words("blue"), "serve", "--listen", "web="+loopback, quick)...)
	url := "http://" + address(t, b.awaitOwner(1), "web")
	c := newClient(t)
	_, pid, _ := who(t, c, url)
	for range 3 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "it is gone", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
		// The connection waits in the queue of the socket, which is ours, too.
		_, again, gen := who(t, c, url)
		if again == pid || gen != "1" {
			t.Fatalf("pid %d of generation %s answers", again, gen)
		}
		pid = again
	}
	p.signal(syscall.SIGTERM)
	p.wantCode(exitDone)
}

func TestExitCodeOfProgram(t *testing.T) {
	for _, c := range []struct {
		program string
		restart string
		signal  syscall.Signal // to the program; 0: SIGTERM to handoverd
		want    int
	}{
		{"blue exit=7", "always", 0, 7},
		{"blue exit=0", "always", 0, 0},
		{"blue exit=7", "on-failure", 0, 7},
		{"blue exit=0", "on-failure", syscall.SIGTERM, 0},
		{"blue exit=7", "never", syscall.SIGTERM, 7},
		{"blue", "never", syscall.SIGKILL, 128 + 9},
	} {
		b := newBench(t)
		p := b.start(withProgram(words(c.program), "serve", "--listen", "web="+loopback, quick, "--restart", c.restart)...)
		url := "http://" + address(t, b.awaitOwner(1), "web")
		_, pid, _ := who(t, newClient(t), url)
		if c.signal == 0 {
			p.signal(syscall.SIGTERM)
		} else if err := syscall.Kill(pid, c.signal); err != nil {
			t.Fatal(err)
		}
		p.wantCode(c.want)
	}
}

func TestProgramFlags(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{words("serve --ready=notify"), "--ready is about a program"},
		{words("serve --root=/tmp -- true"), "--root is about what handoverd serves itself"},
		{words("serve --no-migrate -- true"), "--no-migrate is about"},
		{words("serve --"), "no program follows --"},
		{words("serve true"), "a program after --"},
		{words("serve --ready=perhaps -- true"), "perhaps"},
		{words("serve --stop-signal=SIGNOTHING -- true"), "SIGNOTHING"},
		{words("serve --env=what -- true"), "what"},
		{words("status -- true"), "takes no arguments"},
		{words("hold -- true"), "takes no arguments"},
		{words("hold"), "nothing to hold"},
	} {
		b.wantRun(exitUsage, c.says, c.args...)
	}
}

// A crash of everything that serves loses no connection.
func TestHolder(t *testing.T) {
	b := newBench(t)
	held := b.path("held")
	h := b.startCommand(b.program(os.Args[0], "hold", "--socket", held, "--listen", "web="+loopback))
	holder := &bench{t: t, dir: b.dir, socket: held}
	url := "http://" + address(t, holder.awaitOwner(1), "web")
	t.Cleanup(func() { holder.operator().Stop(context.Background(), nil) })
	answers := make(chan string, 1)
	c := newClient(t)
	ask := func() {
		go func() {
			res, err := c.Get(url)
			if err != nil {
				answers <- err.Error()
				return
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			answers <- strings.Fields(string(body) + " nobody")[0]
		}()
	}
	for _, name := range []string{"blue", "green"} {
		ask() // while nobody serves
		p := b.start(withProgram([]string{name}, "takeover", "--or-serve", "--holder", held, quick)...)
		if got := <-answers; got != name {
			t.Fatalf("%s answers", got)
		}
		_, pid, _ := who(t, c, url)
		p.cmd.Process.Kill()
		await(t, "the program is gone", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	}
	// The holder itself is replaced as any owner is.
	next := b.startCommand(b.program(os.Args[0], "hold", "--socket", held, "--takeover", "--probation=0"))
	holder.awaitOwner(2)
	h.wantCode(exitDone)
	ask()
	b.start("takeover", "--or-serve", "--holder", held, quick) // the site has no name
	if got := <-answers; got == "blue" || got == "green" {
		t.Fatalf("%s answers", got)
	}
	next.signal(syscall.SIGTERM)
	next.wantCode(exitDone)
}

func TestWaitForTheHolder(t *testing.T) {
	b := newBench(t)
	held := b.path("held")
	p := b.start("serve", "--holder", held)
	p.wantCode(exitNobody)
	waits := b.start("serve", "--holder", held, "--wait=1h", "--log-level=debug")
	await(t, "it waits", func() bool { return strings.Contains(waits.text(), "not now") })
	h := b.startCommand(b.program(os.Args[0], "hold", "--socket", held, "--listen", "web="+loopback))
	b.awaitOwner(1)
	waits.signal(syscall.SIGTERM)
	waits.wantCode(exitDone)
	h.signal(syscall.SIGTERM)
	h.wantCode(exitDone)
}

// What the holder gives to the service manager is what it owns.
func TestHolderKeepsSocketsInTheServiceManager(t *testing.T) {
	b := newBench(t)
	m := b.listenAsManager()
	p := b.start("hold", "--listen", "web="+loopback, "--fd-store")
	addr := address(t, b.awaitOwner(1), "web")
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		m.conn.SetReadDeadline(time.Now().Add(patience))
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		if oobn == 0 {
			continue
		}
		if string(buf[:n]) != "FDSTORE=1\nFDNAME=web" {
			t.Fatalf("%q", buf[:n])
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fds[0]), "web")
		defer f.Close()
		ln, err := net.FileListener(f)
		if err != nil || ln.Addr().String() != addr {
			t.Fatal(ln, err)
		}
		ln.Close()
		break
	}
	p.signal(syscall.SIGTERM)
	p.wantCode(exitDone)
}

func TestParkedProcessStays(t *testing.T) {
	b := newBench(t)
	first := b.start("serve", "--listen", loopback, "--after-drain=park", "--revision=1", quick)
	b.awaitOwner(1)
	second := b.start("takeover", "--probation=0", "--revision=2", "--after-drain=park", quick)
	b.awaitOwner(2)
	await(t, "it is parked", func() bool { return strings.Contains(first.text(), "parked") })
	if sockets := socketsOf(t, first.cmd.Process.Pid); len(sockets) > 0 {
		t.Errorf("a parked process has sockets: %v", sockets)
	}
	first.signal(syscall.SIGTERM)
	first.wantCode(exitDone)
	// An engine that starts the old version again finds a newer one.
	again := b.start("takeover", "--or-serve", "--revision=1")
	again.wantCode(exitRefused)
	second.signal(syscall.SIGTERM) // a stop is not parked
	second.wantCode(exitDone)
}

// socketsOf are the descriptors of a process that are sockets.
func socketsOf(t *testing.T, pid int) (all []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			all = append(all, e.Name()+" "+to)
		}
	}
	return all
}

func TestHealth(t *testing.T) {
	b := newBench(t)
	b.wantRun(exitNobody, "nobody", "health", "--pid=1")
	first := b.start("serve", "--listen", loopback, quick)
	b.awaitOwner(1)
	one := fmt.Sprint("--pid=", first.cmd.Process.Pid)
	b.wantRun(exitDone, "healthy: generation 1", "health", one)
	b.wantRun(exitFailure, "not 1", "health", "--pid=1")
	if inFirstPidNamespace() {
		b.wantRun(exitUsage, "--pid", "health")
	}
	second := b.start("takeover", "--probation=1h", quick)
	b.awaitPhase(2, handover.PhaseProbation)
	two := fmt.Sprint("--pid=", second.cmd.Process.Pid)
	b.wantRun(exitFailure, "probation", "health", two)
	b.wantRun(exitDone, "", "health", "--serving", two)
	b.wantRun(exitFailure, "unhealthy", "health", one)
	b.wantRun(exitDone, "", "commit")
	b.wantRun(exitDone, "", "health", two)
	first.wantCode(exitDone)
	second.signal(syscall.SIGTERM)
	second.wantCode(exitDone)
}
