package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one that the benchmark has started itself.
type process struct {
	cmd  *exec.Cmd
	log  string        // file with its output, and that of what it starts
	done chan struct{} // closed when it has been reaped
}

func startProcess(cmd *exec.Cmd, log string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go p.reap()
	return p, nil
}

func (p *process) reap() {
	p.cmd.Wait()
	close(p.done)
}

// tail is the end of its log.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	text := strings.TrimSpace(string(b))
	return text[max(0, len(text)-400):]
}

// await waits until it has ended.
func (p *process) await(ctx context.Context) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-p.done:
		return nil
	case <-timeout.C:
		return fmt.Errorf("process %d has not ended within %v: %s", p.pid(), patience, p.tail())
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kin reads the parent of each process there is.
func kin() map[int]int {
	parents := make(map[int]int)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// The name in parentheses may contain anything: proc_pid_stat(5).
		_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
		fields := strings.Fields(rest)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil || len(fields) < 2 {
			continue
		}
		parents[pid], _ = strconv.Atoi(fields[1])
	}
	return parents
}

// descendants are the children of a process, and theirs.
func descendants(root int) []int {
	parents := kin()
	var all []int
	for pid := range parents {
		for p, steps := parents[pid], 0; p > 1 && steps < 100; p, steps = parents[p], steps+1 {
			if p == root {
				all = append(all, pid)
				break
			}
		}
	}
	slices.Sort(all)
	return all
}

// tree is a process with its descendants.
func tree(pid int) []int { return append([]int{pid}, descendants(pid)...) }

// memory is the proportional set size of processes, in which memory that they
// share counts once. Those that have ended have none.
func memory(pids []int) (sum int64) {
	for _, pid := range pids {
		sum += memoryOf(pid, "smaps_rollup", "Pss:")
	}
	return sum
}

// memoryOf reads a figure in bytes of a file of a process.
func memoryOf(pid int, file, field string) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), field); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// cpuTime is the CPU time that a process has used, to the moment, by its own
// clock: clock_getcpuclockid(3).
func cpuTime(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of the kernel
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(ts.Nano()), nil
}

// A deathwatch waits for processes to end, whoever's children they are. It waits
// in the runtime's poller: a thread that blocks in poll(2) keeps its P from others
// for up to 10 ms, and these others are the clients.
type deathwatch struct{ files []*os.File }

func watchDeaths(pids []int) *deathwatch {
	w := new(deathwatch)
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK); err == nil { // otherwise it has ended
			w.files = append(w.files, os.NewFile(uintptr(fd), "pidfd"))
		}
	}
	return w
}

// wait returns when all have ended, or false at the deadline.
func (w *deathwatch) wait(deadline time.Time) bool {
	defer w.close()
	for _, f := range w.files {
		raw, err := f.SyscallConn()
		if err != nil || f.SetReadDeadline(deadline) != nil || raw.Read(hasEnded) != nil {
			return false
		}
	}
	return true
}

// hasEnded tells whether the process of a pidfd has: pidfd_open(2).
func hasEnded(fd uintptr) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n == 1
}

func (w *deathwatch) close() {
	for _, f := range w.files {
		f.Close()
	}
	w.files = nil
}

// adoptOrphans makes processes whose parents end children of this one.
func adoptOrphans() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// reapOrphan reaps a child that no exec.Cmd waits for, if it has ended.
func reapOrphan(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != unix.EINTR {
			return
		}
	}
}

// kill kills those of some processes that came from here, and returns when they
// have ended. A number that belongs to somebody else by now is left alone.
func kill(pids []int) {
	own := descendants(os.Getpid())
	pids = slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return !slices.Contains(own, pid) })
	w := watchDeaths(pids)
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	w.wait(time.Now().Add(10 * time.Second))
}
