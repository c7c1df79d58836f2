package handover

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process watches another process through its pidfd, which says of death what
// a pid cannot: it is not reused, and works across pid namespaces.
type process struct {
	f    *os.File
	fd   int
	dead chan struct{} // closed when the process has ended
	done sync.WaitGroup
}

// watchReceived is watchProcess for a descriptor that a peer calls a pidfd.
func watchReceived(fd int) (*process, error) {
	// Only a pidfd has a Pid line there: pidfd_open(2).
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err == nil && !strings.Contains(string(info), "\nPid:\t") {
		err = errors.New("descriptor is no pidfd")
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return watchProcess(fd)
}

// watchProcess watches the process of pidfd, which it consumes.
func watchProcess(pidfd int) (*process, error) {
	// Only what does not block is watched by the runtime poller.
	if err := os.NewSyscallError("fcntl", unix.SetNonblock(pidfd, true)); err != nil {
		unix.Close(pidfd)
		return nil, err
	}
	p := &process{f: os.NewFile(uintptr(pidfd), "pidfd"), fd: pidfd, dead: make(chan struct{})}
	rc, err := p.f.SyscallConn()
	if err != nil {
		p.f.Close()
		return nil, err
	}
	p.done.Go(func() {
		// An error means that close was called.
		if err := rc.Read(pidfdReadable); err == nil {
			close(p.dead)
		}
	})
	return p, nil
}

// pidfdReadable tells whether the process has ended: pidfd_open(2).
func pidfdReadable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// diesWithin waits for the process to end, at most d.
func (p *process) diesWithin(d time.Duration) bool {
	if p == nil {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.dead:
		return true
	case <-t.C:
		return false
	}
}

// deadC is nil, and so never ready, without a pidfd.
func (p *process) deadC() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.dead
}

var errNoPidfd = errors.New("no pidfd of that process")

func (p *process) kill() error {
	if p == nil {
		return errNoPidfd
	}
	return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0))
}

func (p *process) close() {
	if p == nil {
		return
	}
	p.f.Close()
	p.done.Wait()
}

// selfPidfd opens a pidfd of this process for others to watch, or tells that
// the kernel has none (before 5.3).
func selfPidfd() (int, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	return fd, os.NewSyscallError("pidfd_open", err)
}

// uidsAllMapped tells whether every uid has a mapping in this user namespace,
// so that the overflow uid 65534 is somebody real. See user_namespaces(7).
func uidsAllMapped() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	var in, out, n uint64
	if _, err := fmt.Sscan(string(b), &in, &out, &n); err != nil {
		return false
	}
	return in == 0 && n == 1<<32-1
}

func pidfdOf(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return fd, os.NewSyscallError("pidfd_open", err)
}

// isConnReset tells whether err is the kernel's word for a peer that closed.
func isConnReset(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
