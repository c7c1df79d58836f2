package handover

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// openNetns opens the network namespace of this thread, as socket(2) uses it.
func openNetns() (int, error) {
	h, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		return -1, fmt.Errorf("open network namespace: %w", err)
	}
	return int(h), nil
}

// inNetns runs f in the network namespace fd. setns(2) asks for CAP_SYS_ADMIN
// in the user namespace that owns it.
func inNetns(fd int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so that no
		// other one can inherit a thread in a foreign namespace.
		runtime.LockOSThread()
		if err := netns.Set(netns.NsHandle(fd)); err != nil {
			result <- fmt.Errorf("enter the sockets' network namespace: %w (this needs CAP_SYS_ADMIN)", err)
			return
		}
		result <- f()
	}()
	return <-result
}
