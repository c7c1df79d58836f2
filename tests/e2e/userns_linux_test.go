package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
)

// userNamespaceVariable marks a run in a user namespace of its own.
const userNamespaceVariable = "E2E_IN_USER_NAMESPACE"

// realRoot tells whether this process is root outside of user namespaces, who
// can become any user.
func realRoot() bool {
	return os.Geteuid() == 0 && os.Getenv(userNamespaceVariable) == ""
}

// inUserNamespace runs the tests again as root of a user namespace if this
// user is nobody special, since network namespaces need that. done tells that
// it has; if the machine does not allow it, the tests find out by themselves.
func inUserNamespace() (code int, done bool) {
	if os.Getenv(userNamespaceVariable) != "" {
		loopbackUp()
		return 0, false
	}
	if os.Geteuid() == 0 {
		return 0, false
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), userNamespaceVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := cmd.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: no user namespace:", err)
		return 0, false
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "e2e: in the user namespace:", err)
		return 1, true
	}
	return cmd.ProcessState.ExitCode(), true
}

func loopbackUp() {
	link, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: loopback:", err)
	}
}
