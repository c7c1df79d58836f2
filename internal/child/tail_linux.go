package child

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tailBytes = 4096 // that are remembered
	tailLines = 5    // that are quoted
	tailWidth = 300  // bytes of each

	// flushTime is how long the end of a program waits for a write of its last
	// words: whoever reads them may have stopped to.
	flushTime = 5 * time.Second

	// drainBytes is more than a pipe can hold, unless root has changed it. What
	// has left the group of a dead program could go on writing.
	drainBytes = 1 << 20
)

// A tail copies what a program writes, and remembers the end of it.
type tail struct {
	in   *os.File // the pipe
	out  *os.File // borrowed
	done chan struct{}

	written atomic.Uint64 // bytes

	mu   sync.Mutex
	last []byte
}

// newTail makes the pipe and begins to copy. It gives the end for the program,
// which is not in non-blocking mode; the caller closes it.
func newTail(out *os.File) (t *tail, write int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, os.NewSyscallError("pipe2", err)
	}
	// Each end has an open file description of its own.
	if err := unix.SetNonblock(p[0], true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, -1, os.NewSyscallError("fcntl", err)
	}
	t = &tail{in: os.NewFile(uintptr(p[0]), "stderr of the program"), out: out, done: make(chan struct{})}
	go t.copy()
	return t, p[1], nil
}

// copy ends with the last writer, or after finish.
func (t *tail) copy() {
	defer close(t.done)
	defer t.in.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := t.in.Read(b)
		t.pass(b[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.drain(b)
			return
		}
		if err != nil {
			return
		}
	}
}

// drain copies what is in the pipe. The deadline, which interrupts a Read, also
// keeps it from looking.
func (t *tail) drain(b []byte) {
	rc, err := t.in.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) {
		for left := drainBytes; left > 0; {
			n, err := unix.Read(int(fd), b)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return
			}
			t.pass(b[:n])
			left -= n
		}
	})
}

// pass writes b on. If that fails, the program must not suffer: it is read on.
func (t *tail) pass(b []byte) {
	t.mu.Lock()
	t.last = append(t.last, b...)
	if over := len(t.last) - tailBytes; over > 0 {
		t.last = append(t.last[:0], t.last[over:]...)
	}
	t.mu.Unlock()
	for len(b) > 0 {
		n, err := t.out.Write(b)
		b = b[n:]
		t.written.Add(uint64(n))
		if err != nil && !(errors.Is(err, unix.EAGAIN) && t.writable()) {
			return
		}
	}
}

// writable waits until there is room in out, which somebody who shares it may
// have put into non-blocking mode.
func (t *tail) writable() bool {
	rc, err := t.out.SyscallConn()
	if err != nil {
		return false
	}
	var failure error
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		failure = ignoringEINTR(func() error { _, err := unix.Poll(p, -1); return err })
	})
	return err == nil && failure == nil
}

// finish is called when the program has ended. What it wrote is copied, then
// the pipe is closed, even if a descendant that left its group still has it.
func (t *tail) finish() {
	if t == nil {
		return
	}
	t.in.SetReadDeadline(time.Unix(1, 0)) // fails if the end was read already
	timer := time.NewTimer(flushTime)
	defer timer.Stop()
	for before := t.written.Load(); ; {
		select {
		case <-t.done:
			return
		case <-timer.C:
		}
		now := t.written.Load()
		if now == before {
			return // stuck
		}
		before = now
		timer.Reset(flushTime)
	}
}

// lines are the last lines.
func (t *tail) lines() []string {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []string
	for line := range bytes.SplitSeq(t.last, []byte("\n")) {
		text := strings.TrimSpace(printable(string(line)))
		if len(text) > tailWidth {
			text = strings.ToValidUTF8(text[:tailWidth], "") + "..."
		}
		if text != "" {
			all = append(all, text)
		}
	}
	return all[max(0, len(all)-tailLines):]
}
