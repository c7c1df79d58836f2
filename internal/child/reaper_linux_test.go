package child

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

const orphans = 1000

// initMain is PID 1 of a pid namespace, or a subreaper. Its program forks
// orphans while its own children end, whose exit status nobody may take.
func initMain() int {
	if err := initialize(); err != nil {
		fmt.Println("error", err)
		return 1
	}
	return 0
}

func init() {
	if os.Getenv(modeEnv) == "init" {
		runtime.LockOSThread() // the main thread's children are where orphans go
	}
}

func initialize() error {
	pid1 := os.Getpid() == 1
	if pid1 { // with a /proc that shows this namespace
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	r, err := StartReaper(!pid1)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := StartReaper(false); err == nil {
		return fmt.Errorf("a second reaper")
	}
	// One of our own that nobody waits for is in front of all others, and hides
	// nobody.
	hidden, release, err := ownChild()
	if err != nil {
		return err
	}
	for {
		if _, state := statOf(hidden.Process.Pid); state == 'Z' {
			break
		}
		time.Sleep(time.Millisecond)
	}
	p, err := Start(context.Background(), Config{
		// Each in the background of a subshell that ends at once.
		Argv: []string{"/bin/sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do (: &); i=$((i+1)); done; exit 7", orphans)},
	})
	if err != nil {
		return err
	}
	var own sync.WaitGroup
	stolen := make(chan error, 2)
	for range 2 {
		own.Go(func() { stolen <- waitForMany(50) })
	}
	own.Wait()
	<-p.Done()
	for range 2 {
		if err := <-stolen; err != nil {
			return err
		}
	}
	if code := p.Report().Exit.Code(); code != 7 {
		return fmt.Errorf("the program's exit code is %d", code)
	}
	for end := time.Now().Add(patience); r.Reaped() < orphans || len(zombies()) > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%d reaped, zombies: %v", r.Reaped(), zombies())
		}
	}
	if z := zombies(); len(z) != 1 || z[0] != hidden.Process.Pid {
		return fmt.Errorf("zombies: %v, want only %d, that is nobody's orphan", z, hidden.Process.Pid)
	}
	err = hidden.Wait()
	release()
	if got := hidden.ProcessState.ExitCode(); got != 9 {
		return fmt.Errorf("own child: %v, %d", err, got)
	}
	fmt.Println("ok", r.Reaped())
	return nil
}

func ownChild() (*exec.Cmd, func(), error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{modeEnv + "=exit9"}
	release, err := Own(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	return cmd, release, err
}

// waitForMany starts children and looks at their exit status.
func waitForMany(n int) error {
	for i := range n {
		cmd := exec.Command("/bin/sh", "-c", "exit "+strconv.Itoa(i))
		release, err := Own(func() (int, error) {
			if err := cmd.Start(); err != nil {
				return 0, err
			}
			return cmd.Process.Pid, nil
		})
		if err != nil {
			return err
		}
		err = cmd.Wait()
		release()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != i {
			return fmt.Errorf("child with exit status %d: %v", i, err)
		}
	}
	return nil
}

// zombies are the children of this process that were not waited for.
func zombies() (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range found {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if ppid, state := statOf(pid); ppid == os.Getpid() && state == 'Z' {
			pids = append(pids, pid)
		}
	}
	return pids
}

func runInit(t *testing.T, attr *syscall.SysProcAttr) {
	t.Helper()
	if _, err := os.Stat("/bin/sh"); err != nil {
		lack(t, "needs a shell: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), modeEnv+"=init")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		lack(t, "needs namespaces of its own: %v", err)
	}
	err := cmd.Wait()
	var n int
	if _, serr := fmt.Sscanf(out.String(), "ok %d", &n); serr != nil || err != nil || n < orphans {
		t.Errorf("%v, %q", err, out.String())
	}
	t.Logf("%d orphans", n)
}

func TestPID1LeavesNoZombies(t *testing.T) {
	leak.Check(t)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	}
	runInit(t, attr)
}

func TestSubreaperLeavesNoZombies(t *testing.T) {
	leak.Check(t)
	runInit(t, nil)
}

func TestExitCodes(t *testing.T) {
	for e, want := range map[Exit]int{
		{}: 0, {Status: 3}: 3, {Signal: unix.SIGTERM}: 143, {Signal: unix.SIGKILL}: 137, {Signal: unix.SIGSEGV, Core: true}: 139,
	} {
		if got := e.Code(); got != want {
			t.Errorf("%v: %d, want %d", e, got, want)
		}
	}
}
