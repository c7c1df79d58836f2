package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/handoverd/handoverd/internal/leak"
)

// A systemdHost is the unit with its paths below a directory of the test's own.
type systemdHost struct {
	t    testing.TB
	dir  string
	run  string // %t: what /run is to the system, also in memory
	text string // of the unit
}

// newSystemdHost installs two versions of the program. The unit hides /tmp and
// homes from them, so the directories are elsewhere.
func newSystemdHost(t testing.TB) *systemdHost {
	t.Helper()
	leak.Check(t)
	if os.Geteuid() != 0 {
		lacking(t, "root is needed to make a directory outside of /tmp and homes")
	}
	dir := makeDir(t, "/var/lib")
	h := &systemdHost{t: t, dir: dir, run: makeDir(t, "/dev/shm")}
	text, err := os.ReadFile(deployed(t, "systemd/app@.service"))
	if err != nil {
		t.Fatal(err)
	}
	h.text = string(text)
	h.replace("/opt/app/", dir+"/opt/")
	h.replace("/etc/app/", dir+"/etc/")
	h.replace("tcp://:8080", "tcp://127.0.0.1:0")
	for _, colour := range []string{"blue", "green"} {
		h.mkdir("opt/" + colour)
		if err := os.Link(program, filepath.Join(dir, "opt", colour, "handoverd")); err != nil {
			h.copyProgram(colour)
		}
	}
	h.mkdir("etc")
	h.mkdir("units")
	h.write("units/app@.service", h.text)
	return h
}

// makeDir makes a directory that is removed at the end.
func makeDir(t testing.TB, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "hd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// replace changes what is exactly once in the unit, apart from comments.
func (h *systemdHost) replace(old, to string) {
	h.t.Helper()
	if n := strings.Count(h.text, old); n != 1 {
		h.t.Fatalf("%q is %d times in the unit, want once", old, n)
	}
	h.text = strings.Replace(h.text, old, to, 1)
}

func (h *systemdHost) mkdir(name string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.dir, name), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *systemdHost) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *systemdHost) read(name string) string {
	text, err := os.ReadFile(filepath.Join(h.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	return string(text)
}

// copyProgram is for a directory on another file system.
func (h *systemdHost) copyProgram(colour string) {
	h.t.Helper()
	text, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.dir, "opt", colour, "handoverd"), text, 0o755)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// setting is the value of a setting of the unit that is there once, for an
// instance: systemd.unit(5) tells of the specifiers.
func (h *systemdHost) setting(section, name, colour string) string {
	h.t.Helper()
	options, err := unit.DeserializeOptions(strings.NewReader(h.text))
	if err != nil {
		h.t.Fatal(err)
	}
	var found []string
	for _, o := range options {
		if o.Section == section && o.Name == name {
			found = append(found, strings.NewReplacer("%i", colour, "%t", h.run, "%%", "%").Replace(o.Value))
		}
	}
	if len(found) != 1 {
		h.t.Fatalf("%s= is %d times in [%s], want once", name, len(found), section)
	}
	return found[0]
}

// A process is what the unit starts, with the test as its service manager.
type process struct {
	cmd    *exec.Cmd
	notify *notifySocket
	log    *log
}

// log is output that can be read while it is written.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start runs ExecStart= of an instance with a revision.
func (h *systemdHost) start(colour string, revision int, env ...string) *process {
	h.t.Helper()
	argv := strings.Fields(h.setting("Service", "ExecStart", colour))
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: &log{}}
	p.notify = newNotifySocket(h.t, h.t.TempDir())
	p.cmd.Env = environment(append(env, "NOTIFY_SOCKET="+p.notify.path, fmt.Sprintf("HANDOVERD_REVISION=%d", revision))...)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("app@%s, revision %d:\n%s", colour, revision, p.log)
		}
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// wait waits for the end and gives the exit code.
func (p *process) wait() int {
	p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

// address is where it says that it listens.
func address(t testing.TB, log func() string) string {
	t.Helper()
	const mark = "msg=listening name=web network=tcp address="
	await(t, "an address in the log", func() bool {
		_, rest, ok := strings.Cut(log(), mark)
		return ok && strings.Contains(rest, "\n")
	})
	_, rest, _ := strings.Cut(log(), mark)
	address, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(address)
}

// systemd finds nothing to complain about, and would if there were something.
func TestUnitIsValid(t *testing.T) {
	h := newSystemdHost(t)
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		lacking(t, "systemd-analyze is needed (Debian's package systemd)")
	}
	verify := func() string {
		out, err := command(environment("XDG_RUNTIME_DIR="+h.run), "systemd-analyze", "verify", h.dir+"/units/app@blue.service")
		if err != nil {
			return err.Error()
		}
		return out
	}
	if out := verify(); out != "" {
		t.Errorf("systemd-analyze verify:\n%s", out)
	}
	h.write("units/app@.service", strings.Replace(h.text, "RuntimeDirectoryPreserve=", "RuntimeDirectoryPreserved=", 1))
	if out := verify(); !strings.Contains(out, "RuntimeDirectoryPreserved") {
		t.Errorf("a misspelt setting is not found: %q", out)
	}
}

// What the unit starts tells a service manager what Type=notify waits for: not
// before it owns the sockets, and from its main process.
func TestUnitTellsTheServiceManager(t *testing.T) {
	h := newSystemdHost(t)
	if kind, access := h.setting("Service", "Type", "blue"), h.setting("Service", "NotifyAccess", "blue"); kind != "notify" || access != "main" {
		t.Fatalf("Type=%s, NotifyAccess=%s", kind, access)
	}
	if err := os.Mkdir(h.run+"/app", 0o700); err != nil { // RuntimeDirectory=
		t.Fatal(err)
	}
	quick := "HANDOVERD_PROBATION=200ms"
	last := h.start("blue", 1, quick)
	last.notify.awaitLine(last.pid(), "READY=1")
	load := makeLoad(t, address(t, last.log.String), false)
	n, colour := scale(4, 2), "blue"
	for generation := 2; generation <= n+1; generation++ {
		colour = other(colour)
		next := h.start(colour, generation, quick)
		next.notify.awaitLine(next.pid(), "READY=1")
		load.awaitMore(generation)
		if code := last.wait(); code != 0 {
			t.Errorf("generation %d ended with %d", generation-1, code)
		}
		if last.notify.has(last.pid(), "STOPPING=1") {
			t.Error("a generation that was superseded has told that the service stops")
		}
		last.notify.wantOnlyFrom(last.pid())
		last = next
	}
	h.refusesAnOlderVersion(other(colour))
	load.wantPerfect(n + 1)
	last.cmd.Process.Signal(syscall.SIGTERM)
	last.notify.awaitLine(last.pid(), "STOPPING=1")
	if code := last.wait(); code != 0 {
		t.Errorf("the last one ended with %d", code)
	}
	if left, err := os.ReadDir(h.run + "/app"); err != nil || len(left) > 0 {
		t.Errorf("left behind in the runtime directory: %v (%v)", left, err)
	}
}

// refusesAnOlderVersion: an older version does not get ready, and its exit code
// is one after which the unit is not started again.
func (h *systemdHost) refusesAnOlderVersion(colour string) {
	h.t.Helper()
	old := h.start(colour, 1)
	code := old.wait()
	if old.notify.has(old.pid(), "READY=1") {
		h.t.Error("an older version is ready")
	}
	for word := range strings.FieldsSeq(h.setting("Service", "RestartPreventExitStatus", colour)) {
		if word == strconv.Itoa(code) {
			return
		}
	}
	h.t.Errorf("an older version ends with %d, after which it would be started again", code)
}

// The manager waits as long as the program may take.
func TestUnitTimes(t *testing.T) {
	h := newSystemdHost(t)
	command := h.setting("Service", "ExecStart", "blue")
	flag := func(name string) time.Duration {
		_, rest, ok := strings.Cut(command, "--"+name+"=")
		value, _, _ := strings.Cut(rest, " ")
		d, err := time.ParseDuration(value)
		if !ok || err != nil {
			t.Fatalf("--%s in %q: %v", name, command, err)
		}
		return d
	}
	span := func(name string) time.Duration {
		d, err := time.ParseDuration(strings.Replace(h.setting("Service", name, "blue"), "min", "m", 1))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	const readyTimeout = time.Minute // the default
	if got, want := span("TimeoutStartSec"), flag("wait")+readyTimeout; got <= want {
		t.Errorf("TimeoutStartSec=%v, a start may take %v", got, want)
	}
	if got, want := span("TimeoutStopSec"), flag("drain-timeout")+flag("kill-timeout"); got <= want {
		t.Errorf("TimeoutStopSec=%v, a stop may take %v", got, want)
	}
}
