package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// programVariable marks the run in namespaces of its own, and has the path
	// of the program.
	programVariable = "HANDOVERD_FAULTS_PROGRAM"
	// lackVariable says why there are none.
	lackVariable = "HANDOVERD_FAULTS_LACK"
)

// The first thread lasts as long as the process: what it starts dies with it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		if err := settleIn(); err != nil {
			fmt.Fprintln(os.Stderr, "faults:", err)
			os.Exit(1)
		}
		leak.Main(m)
	}
	code, err := runInNamespaces()
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		code = 1
	}
	os.Exit(code)
}

// runInNamespaces builds the program, and runs the tests again in a mount and
// a network namespace of their own, where they may mount what they like and
// all ports are theirs. Everything there goes when they end.
func runInNamespaces() (code int, err error) {
	dir, err := os.MkdirTemp("", "handoverd-faults")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "faults", "-o", path, "./program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the program: %w\n%s", err, out)
	}
	cmd := again(path)
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		// The tests say so.
		cmd = again(path)
		cmd.Env = append(cmd.Env, lackVariable+"="+err.Error())
		if err := cmd.Start(); err != nil {
			return 0, err
		}
	}
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), err
}

func again(program string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), programVariable+"="+program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// settleIn makes the namespaces usable.
func settleIn() error {
	if os.Getenv(lackVariable) != "" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// needNamespaces ends a test that needs what this machine does not allow.
func needNamespaces(t testing.TB) {
	t.Helper()
	why := os.Getenv(lackVariable)
	switch {
	case why == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("CI must be able to run this test: no namespaces: %s", why)
	default:
		t.Skipf("no namespaces: %s", why)
	}
}
