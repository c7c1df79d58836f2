package child

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Reaper waits for the orphans that a process gets as PID 1 or as a child
// subreaper, so that no zombie stays.
type Reaper struct {
	signals   chan os.Signal
	poke      chan struct{}
	quit      chan struct{}
	done      sync.WaitGroup
	subreaper bool
	reaped    atomic.Uint64
}

// StartReaper starts to reap until Close. With subreaper the process also
// becomes the parent of its orphaned descendants, as PID 1 is of all orphans:
// PR_SET_CHILD_SUBREAPER(2const). There can be one Reaper in a process.
//
// It takes the exit status of every child that was not started by this package
// or within Own. Whoever forks otherwise cannot wait for its child.
func StartReaper(subreaper bool) (*Reaper, error) {
	r := &Reaper{
		signals:   make(chan os.Signal, 1), // one is as good as many: all are looked for
		poke:      make(chan struct{}, 1),
		quit:      make(chan struct{}),
		subreaper: subreaper,
	}
	children.Lock()
	defer children.Unlock()
	if children.poke != nil {
		return nil, errors.New("a reaper runs already")
	}
	if subreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, os.NewSyscallError("prctl", err)
		}
	}
	children.poke = r.poke
	signal.Notify(r.signals, unix.SIGCHLD)
	r.poke <- struct{}{} // for those that are there already
	r.done.Go(r.run)
	return r, nil
}

// Reaped is how many orphans were waited for.
func (r *Reaper) Reaped() uint64 { return r.reaped.Load() }

// Close stops reaping. If this process became a subreaper, it is none any more.
func (r *Reaper) Close() error {
	children.Lock()
	if children.poke != r.poke {
		children.Unlock()
		return nil // closed before
	}
	children.poke = nil
	children.Unlock()
	signal.Stop(r.signals)
	close(r.quit)
	r.done.Wait()
	if r.subreaper {
		return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0))
	}
	return nil
}

func (r *Reaper) run() {
	for {
		select {
		case <-r.quit:
			return
		case <-r.signals:
		case <-r.poke:
		}
		for r.reapOne() {
		}
	}
}

// reapOne reaps one orphan, if there is any. One that becomes a zombie later
// sends a SIGCHLD, so that nobody is missed.
func (r *Reaper) reapOne() bool {
	// While this is held nobody can start a child that is not noted yet.
	children.Lock()
	defer children.Unlock()
	pid := firstZombie()
	if pid == 0 {
		return false
	}
	if _, own := children.pids[pid]; !own {
		return r.reap(pid)
	}
	// One of ours is in front, and whoever waits for it may take a while.
	for _, pid := range allChildren() {
		if _, own := children.pids[pid]; !own {
			r.reap(pid)
		}
	}
	return false // disown pokes
}

func (r *Reaper) reap(pid int) bool {
	got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	if err != nil || got != pid {
		return false
	}
	r.reaped.Add(1)
	return true
}

// siginfoChild is siginfo_t for a child: sigaction(2). The union after the
// first three members is aligned as a pointer.
type siginfoChild struct {
	signo, errno, code int32
	_                  [unsafe.Sizeof(uintptr(0)) / 8 * 4]byte
	pid                int32
	uid                uint32
	status             int32
}

// firstZombie looks at a child that has ended, and leaves it waitable.
func firstZombie() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		switch err {
		case nil:
			return int((*siginfoChild)(unsafe.Pointer(&info)).pid)
		case unix.EINTR:
		default: // ECHILD: there are no children
			return 0
		}
	}
}

// allChildren lists the children of all threads: proc_pid_task(5). If the
// kernel has no such file (CONFIG_PROC_CHILDREN) there are none, and zombies
// behind one of ours wait until that is gone.
func allChildren() (pids []int) {
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for _, word := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// exitOf is how a process ended.
func exitOf(ws syscall.WaitStatus) Exit {
	if ws.Signaled() {
		return Exit{Signal: ws.Signal(), Core: ws.CoreDump()}
	}
	return Exit{Status: ws.ExitStatus()}
}

// ignoringEINTR repeats a call that a signal interrupted.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
