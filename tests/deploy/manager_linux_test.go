package deploy

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	systemdPath = "/usr/lib/systemd/systemd"
	// unitsVariable tells managerMain where the units are.
	unitsVariable = "HANDOVERD_DEPLOY_UNITS"
)

// A manager is a service manager of the test's own: systemd --user, which has
// the same units, restarts and notifications as the system's. It runs in a
// mount namespace and a control group of its own.
type manager struct {
	t      testing.TB
	host   *systemdHost
	cgroup string // directory
	cmd    *exec.Cmd
	log    *log
}

// newManager starts a manager that knows no other units than app@.
func newManager(t testing.TB) *manager {
	t.Helper()
	h := newSystemdHost(t)
	if _, err := os.Stat(systemdPath); err != nil {
		lacking(t, "systemd is needed (Debian's package systemd): %v", err)
	}
	for _, name := range []string{"default", "basic", "shutdown"} {
		h.write("units/"+name+".target", "[Unit]\nDescription="+name+"\n")
	}
	// A manager of a user cannot become another one, nor has it what it takes
	// to hide homes; and the test reads the log.
	h.mkdir("units/app@.service.d")
	h.write("units/app@.service.d/test.conf", "[Service]\nUser=\nProtectHome=read-only\nStandardError=append:"+h.dir+"/%i.log\n")
	m := &manager{t: t, host: h, log: &log{}}
	m.makeCgroup()
	t.Cleanup(m.tearDown)
	m.start()
	return m
}

// makeCgroup makes a control group below the root of the version 2 hierarchy,
// wherever that is mounted.
func (m *manager) makeCgroup() {
	m.t.Helper()
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // proc_pid_mountinfo(5)
		if i := slices.Index(fields, "-"); i > 4 && fields[i+1] == "cgroup2" && fields[3] == "/" {
			m.cgroup = filepath.Join(fields[4], uniqueName())
			break
		}
	}
	if m.cgroup == "" {
		lacking(m.t, "no control groups of version 2 are mounted here, which systemd needs")
	}
	if err := os.Mkdir(m.cgroup, 0o755); errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		// By its nature an unprivileged container cannot run a service manager.
		m.t.Skipf("control groups cannot be made here, as in a container: %v", err)
	} else if err != nil {
		m.t.Fatal(err)
	}
}

// start starts the manager inside of its control group from the first instant:
// systemd takes the one that it finds itself in, with all that is in it.
func (m *manager) start() {
	m.t.Helper()
	group, err := os.Open(m.cgroup)
	if err != nil {
		m.t.Fatal(err)
	}
	defer group.Close()
	notify := newNotifySocket(m.t, m.host.dir)
	m.cmd = exec.Command("/proc/self/exe")
	m.cmd.Env = []string{
		roleVariable + "=" + roleManager, unitsVariable + "=" + m.host.dir + "/units",
		"HOME=" + m.host.dir, "PATH=/usr/bin:/bin", "XDG_RUNTIME_DIR=" + m.host.run, "NOTIFY_SOCKET=" + notify.path,
	}
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(group.Fd()), Setsid: true,
	}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	notify.awaitLine(m.cmd.Process.Pid, "READY=1")
}

// managerMain becomes a manager, in a mount namespace that it has for itself.
func managerMain() error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	// Anywhere else it would take others along.
	if !strings.Contains(string(own), "\n0::/handoverd-deploy-") && !strings.HasPrefix(string(own), "0::/handoverd-deploy-") {
		return fmt.Errorf("not in a control group of its own: %s", own)
	}
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("none", "/run", "tmpfs", 0, "mode=755") },
		// sd_booted(3) asks for it: there may be another init here.
		func() error { return os.MkdirAll("/run/systemd/system", 0o755) },
		// Without those of version 1, which may be there besides.
		func() error { return unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, "") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	env := append(os.Environ(), "SYSTEMD_UNIT_PATH="+os.Getenv(unitsVariable), "SYSTEMD_LOG_TARGET=console")
	return syscall.Exec(systemdPath, []string{systemdPath, "--user"}, env)
}

// tearDown kills whatever is in the control group, and removes it.
func (m *manager) tearDown() {
	if m.t.Failed() {
		m.t.Logf("manager:\n%s", m.log)
		for _, colour := range []string{"blue", "green"} {
			m.t.Logf("%s:\n%s", colour, m.host.read(colour+".log"))
		}
	}
	if err := os.WriteFile(m.cgroup+"/cgroup.kill", []byte("1"), 0); err != nil {
		m.t.Error(err)
	}
	if m.cmd != nil && m.cmd.Process != nil {
		m.cmd.Wait()
	}
	var groups []string
	filepath.WalkDir(m.cgroup, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	await(m.t, "the control groups are empty", func() bool {
		for _, path := range slices.Backward(groups) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false
			}
		}
		return true
	})
}

func (m *manager) systemctl(args ...string) (string, error) {
	return command(environment("XDG_RUNTIME_DIR="+m.host.run), "systemctl", append([]string{"--user", "--no-pager"}, args...)...)
}

func (m *manager) mustSystemctl(args ...string) string {
	m.t.Helper()
	out, err := m.systemctl(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// set writes the environment file of a version.
func (m *manager) set(colour string, revision int, lines ...string) {
	m.t.Helper()
	lines = append(lines, "HANDOVERD_REVISION="+strconv.Itoa(revision), "")
	m.host.write("etc/"+colour+".env", strings.Join(lines, "\n"))
}

func (m *manager) property(colour, name string) string {
	m.t.Helper()
	return m.mustSystemctl("show", "--value", "--property="+name, "app@"+colour+".service")
}

func (m *manager) wantProperty(colour, name, want string) {
	m.t.Helper()
	if got := m.property(colour, name); got != want {
		m.t.Errorf("app@%s has %s=%s, want %s", colour, name, got, want)
	}
}

func (m *manager) awaitProperty(colour, name, want string) {
	m.t.Helper()
	awaitEvery(m.t, 100*time.Millisecond, "app@"+colour+" has "+name+"="+want, func() bool { return m.property(colour, name) == want })
}

func (m *manager) address() string {
	m.t.Helper()
	return address(m.t, func() string { return m.host.read("blue.log") })
}

// Under a real service manager, which starts them, waits for them, and notes
// how they end.
func TestUnitsTakeOverFromEachOther(t *testing.T) {
	m := newManager(t)
	quick := "HANDOVERD_PROBATION=200ms"
	m.set("blue", 1, quick)
	m.mustSystemctl("start", "app@blue")
	load, kept := makeLoad(t, m.address(), false), makeLoad(t, m.address(), true)
	n, colour := scale(10, 2), "blue"
	for generation := 2; generation <= n+1; generation++ {
		last := colour
		colour = other(colour)
		m.set(colour, generation, quick)
		m.mustSystemctl("start", "app@"+colour)
		load.awaitMore(generation)
		m.awaitProperty(last, "ActiveState", "inactive")
		m.wantProperty(last, "Result", "success")
		m.wantProperty(last, "ExecMainStatus", "0")
		m.wantProperty(colour, "ActiveState", "active")
	}
	// An older version is refused, and not started again.
	m.set(other(colour), 1, quick)
	if out, err := m.systemctl("start", "app@"+other(colour)); err == nil {
		t.Errorf("an older version was started: %s", out)
	}
	m.awaitProperty(other(colour), "ActiveState", "failed")
	m.wantProperty(other(colour), "ExecMainStatus", "4")
	m.wantProperty(other(colour), "NRestarts", "0")
	m.wantProperty(colour, "ActiveState", "active")
	kept.awaitMore(n + 1)
	load.wantPerfect(n + 1)
	kept.wantPerfect(n + 1)
	m.mustSystemctl("stop", "app@"+colour)
	m.wantProperty(colour, "Result", "success")
}

// A version that dies in probation is started again by its manager; one that is
// stopped in probation gives back.
func TestUnitDiesInProbation(t *testing.T) {
	m := newManager(t)
	m.set("blue", 1)
	m.mustSystemctl("start", "app@blue")
	load := makeLoad(t, m.address(), false)
	m.set("green", 2, "HANDOVERD_PROBATION=30m")
	m.mustSystemctl("start", "app@green")
	load.awaitMore(2)
	pid, err := strconv.Atoi(m.property("green", "MainPID"))
	if err == nil {
		err = kill(pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	load.awaitMore(3)
	m.awaitProperty("green", "ActiveState", "active")
	m.wantProperty("green", "NRestarts", "1")
	m.wantProperty("blue", "ActiveState", "active")
	m.mustSystemctl("stop", "app@green")
	load.awaitMore(1)
	m.wantProperty("green", "ExecMainStatus", "6") // rolled back
	m.wantProperty("green", "NRestarts", "1")
	m.wantProperty("blue", "ActiveState", "active")
	m.wantProperty("blue", "NRestarts", "0")
	load.wantOnlyCut(1)
}
