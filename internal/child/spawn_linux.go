package child

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An instance is one process of the program.
type instance struct {
	pid     int
	started time.Time
	tail    *tail
	exited  chan struct{} // closed when it has been waited for
	exit    Exit          // then

	mu    sync.Mutex
	pidfd int // -1 when it has been waited for
}

// descriptors are those that a fork passes on. All are closed afterwards.
type descriptors []int

func (d *descriptors) add(fd int, err error) error {
	if err == nil {
		*d = append(*d, fd)
	}
	return err
}

func (d descriptors) close() {
	for _, fd := range d {
		unix.Close(fd)
	}
}

// duplicate does not use (*os.File).Fd, which clears O_NONBLOCK for everybody.
func duplicate(f *os.File) (fd int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	cerr := rc.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if cerr != nil {
		return -1, cerr
	}
	return fd, os.NewSyscallError("fcntl", err)
}

// families names the address family of each socket.
func families(fds []int) (all []string) {
	for _, fd := range fds {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
			all = append(all, "")
		case domain == unix.AF_INET:
			all = append(all, "AF_INET")
		case domain == unix.AF_INET6:
			all = append(all, "AF_INET6")
		case domain == unix.AF_UNIX:
			all = append(all, "AF_UNIX")
		default:
			all = append(all, "")
		}
	}
	return all
}

// spawn starts a process and returns when it has executed the program. forked
// is told as soon as the process is there. If ctx ends before, or something
// fails, no process is left.
func (p *Program) spawn(ctx context.Context, forked func(*instance)) (*instance, error) {
	c := &p.cfg
	path, err := lookup(c.Argv[0], c.Dir, c.Env)
	if err != nil {
		return nil, err
	}
	var fds descriptors
	defer func() { fds.close() }()
	inst := &instance{exited: make(chan struct{}), pidfd: -1}
	var status *os.File
	if status, err = p.prepare(inst, path, &fds); err != nil {
		inst.tail.finish()
		return nil, fmt.Errorf("prepare to start %s: %w", path, err)
	}
	defer status.Close()
	var release func()
	p.thread.do(func() { release, err = inst.fork(len(c.Sockets), c.Dir, fds) })
	fds.close()
	fds = nil
	if err != nil {
		inst.tail.finish()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	forked(inst)
	p.work.Go(func() { inst.wait(release) })
	if err := inst.awaitExec(ctx, status, path); err != nil {
		inst.kill()
		<-inst.exited
		return nil, err
	}
	return inst, nil
}

// prepare opens what the shim gets, and gives the reading end of the pipe for
// its failure. When it fails, the caller finishes inst.tail.
func (p *Program) prepare(inst *instance, path string, fds *descriptors) (status *os.File, err error) {
	c := &p.cfg
	if err := fds.add(unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)); err != nil {
		return nil, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	if err := fds.add(duplicate(c.Stdout)); err != nil {
		return nil, err
	}
	if c.DirectStderr {
		err = fds.add(duplicate(c.Stderr))
	} else {
		var write int
		inst.tail, write, err = newTail(c.Stderr)
		err = fds.add(write, err)
	}
	if err != nil {
		return nil, err
	}
	for _, s := range c.Sockets {
		if err := fds.add(s.Duplicate()); err != nil {
			return nil, fmt.Errorf("socket %q: %w", s.Name, err)
		}
	}
	env, listenPID, err := c.environment(os.Getpid(), families((*fds)[firstFD:]))
	if err != nil {
		return nil, err
	}
	if p.notify != nil {
		env = append(env, "NOTIFY_SOCKET="+p.notify.name)
	}
	job := &shimJob{
		Path: []byte(path), Argv: bytesOf(c.Argv), Env: bytesOf(env), ListenPID: listenPID,
		DeathSignal: max(0, int(c.DeathSignal)), Parent: os.Getpid(),
	}
	if err := fds.add(jobFile(job)); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := fds.add(duplicate(w)); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// fork makes the process, which executes the shim.
func (i *instance) fork(sockets int, dir string, fds descriptors) (release func(), err error) {
	files := make([]uintptr, len(fds))
	for n, fd := range fds {
		files[n] = uintptr(fd)
	}
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: dir, Files: files, Env: []string{},
		// Until the shim says otherwise, it dies with this thread.
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd},
	}
	return Own(func() (int, error) {
		pid, _, err := syscall.StartProcess("/proc/self/exe", []string{shimName, strconv.Itoa(sockets)}, attr)
		if err != nil {
			return 0, err
		}
		if pidfd < 0 { // before Linux 5.2
			syscall.Kill(pid, syscall.SIGKILL)
			unix.Wait4(pid, nil, 0, nil)
			return 0, errors.New("the kernel gives no pidfd")
		}
		i.pid, i.pidfd, i.started = pid, pidfd, time.Now()
		return pid, nil
	})
}

// awaitExec waits until the shim has executed the program.
func (i *instance) awaitExec(ctx context.Context, status *os.File, path string) error {
	stop := context.AfterFunc(ctx, func() { status.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(status, 64<<10))
	if ctx.Err() != nil {
		return fmt.Errorf("start %s: %w", path, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	n := len(shimExecutes)
	executes := len(b) >= n && string(b[:n]) == shimExecutes
	if executes && len(b) == n {
		return nil
	}
	if executes {
		b = b[n:]
	}
	failure := new(shimError)
	if err := json.Unmarshal(b, failure); err != nil {
		i.kill()
		<-i.exited
		hint := ""
		if i.exit.Signal == 0 {
			hint = "; is child.Shim called first thing in main?"
		}
		return fmt.Errorf("start %s: the process ended (%v) before it executed the program%s", path, i.exit, hint)
	}
	return failure.explain(path)
}

// wait waits for the end of the process, kills what is left of its group, and
// closes exited.
func (i *instance) wait(release func()) {
	// The zombie keeps the number of the group from being used again.
	ignoringEINTR(func() error {
		return unix.Waitid(unix.P_PIDFD, i.pidfd, nil, unix.WEXITED|unix.WNOWAIT, nil)
	})
	unix.Kill(-i.pid, unix.SIGKILL)
	var ws unix.WaitStatus
	i.mu.Lock()
	ignoringEINTR(func() error {
		_, err := unix.Wait4(i.pid, &ws, 0, nil)
		return err
	})
	unix.Close(i.pidfd)
	i.pidfd = -1
	i.mu.Unlock()
	release()
	i.exit = exitOf(syscall.WaitStatus(ws))
	i.tail.finish()
	close(i.exited)
}

// signal sends sig to the process.
func (i *instance) signal(sig syscall.Signal) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pidfd < 0 {
		return ErrNotRunning
	}
	err := unix.PidfdSendSignal(i.pidfd, sig, nil, 0)
	if err == unix.ESRCH {
		return ErrNotRunning
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// kill kills the process and its group.
func (i *instance) kill() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pidfd >= 0 {
		unix.PidfdSendSignal(i.pidfd, unix.SIGKILL, nil, 0)
		unix.Kill(-i.pid, unix.SIGKILL)
	}
}
