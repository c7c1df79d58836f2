package child

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A notifier serves a notify socket: sd_notify(3).
//
// It is at a path, which every client library can send to, in a directory of
// its own, so that it can be removed as a whole. Without a usable directory
// for temporary files, as in an image that contains nothing but programs, it
// has an abstract name. Anybody may send; what counts is who did.
type notifier struct {
	name string // NOTIFY_SOCKET
	dir  string // or ""
	conn *net.UnixConn

	got  chan notification
	quit chan struct{}
	done sync.WaitGroup

	// counts gives the program's pid if a process belongs to it, else 0.
	counts func(pid int) (root int)
	// ignored is told of a process that does not.
	ignored func(pid int)
}

// A notification is a message with its sender.
type notification struct {
	message
	root int           // the program's pid
	took chan struct{} // closed by the receiver when it was dealt with
}

const notifyPrefix = "handover-notify-"

func newNotifier(counts func(pid int) (root int), ignored func(pid int)) (*notifier, error) {
	n := &notifier{
		got: make(chan notification), quit: make(chan struct{}),
		counts: counts, ignored: ignored,
	}
	sweepNotifyDirs(os.TempDir())
	if err := n.listenPath(); err != nil {
		if abstract := n.listenAbstract(); abstract != nil {
			return nil, fmt.Errorf("notify socket: %w", errors.Join(err, abstract))
		}
	}
	if err := n.passCredentials(); err != nil {
		n.close()
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	n.done.Go(n.run)
	return n, nil
}

// listenPath binds in a new directory that everybody may pass through: the
// program may run under another uid than this process.
func (n *notifier) listenPath() error {
	dir, err := os.MkdirTemp("", notifyPrefix)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "socket")
	n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o711), os.Chmod(path, 0o666))
		if err == nil {
			n.name, n.dir = path, dir
			return nil
		}
		n.conn.Close()
	}
	os.Remove(path)
	os.Remove(dir)
	return err
}

func (n *notifier) listenAbstract() (err error) {
	n.name = "@" + notifyPrefix + rand.Text()
	n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: n.name})
	return err
}

// sweepNotifyDirs removes what processes that were killed have left behind.
func sweepNotifyDirs(temp string) {
	found, _ := filepath.Glob(filepath.Join(temp, notifyPrefix+"*"))
	for _, dir := range found {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		path := filepath.Join(dir, "socket")
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
		if err == nil {
			c.Close()
		}
		// Refused: nobody has it open. Not bound yet, or anything else: it is
		// somebody's.
		if errors.Is(err, unix.ECONNREFUSED) {
			os.Remove(path)
			os.Remove(dir)
		}
	}
}

func (n *notifier) passCredentials() error {
	rc, err := n.conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	return errors.Join(cerr, os.NewSyscallError("setsockopt", err))
}

// close ends run and removes the socket.
func (n *notifier) close() {
	if n == nil {
		return
	}
	close(n.quit)
	n.conn.Close() // unlinks the path
	n.done.Wait()
	if n.dir != "" {
		os.Remove(n.name)
		os.Remove(n.dir)
	}
}

func (n *notifier) run() {
	b := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*253)+unix.CmsgSpace(4))
	for {
		nb, noob, flags, _, err := n.conn.ReadMsgUnix(b, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // about one datagram; the socket has no peer that it could lose
		}
		n.receive(b[:nb], oob[:noob], flags)
	}
}

// receive deals with one datagram. Its descriptors are closed at the end:
// that answers a BARRIER=1, sd_notify_barrier(3), and FDSTORE=1 has no store.
func (n *notifier) receive(b, oob []byte, flags int) {
	pid, fds := ancillary(oob)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	if flags&unix.MSG_TRUNC != 0 || pid <= 0 {
		return // too long, or the sender is not in a pid namespace below this one
	}
	root := n.counts(pid)
	if root == 0 {
		n.ignored(pid)
		return
	}
	m := notification{message: parseMessage(b), root: root, took: make(chan struct{})}
	select {
	case n.got <- m:
		<-m.took
	case <-n.quit:
	}
}

// ancillary finds the sender's pid and all descriptors.
func ancillary(oob []byte) (pid int, fds []int) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, nil
	}
	for _, m := range all {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			pid = int(cred.Pid)
		}
		if rights, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, rights...)
		}
	}
	return pid, fds
}

// descends tells whether pid is root or a descendant of it, as far as the
// parents in between live. A process that has ended and was waited for cannot
// be found any more: short-lived helpers should wait for the answer to a
// BARRIER=1, as systemd-notify(1) does.
func descends(pid, root int) bool {
	for range 1000 { // far deeper than any tree, should one change while it is walked
		if pid == root {
			return true
		}
		if pid <= 1 {
			return false
		}
		pid = parentOf(pid)
	}
	return false
}

// parentOf is 0 if there is no such process: proc_pid_stat(5).
func parentOf(pid int) int {
	ppid, _ := statOf(pid)
	return ppid
}

func statOf(pid int) (ppid int, state byte) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name in parentheses may contain anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	if !ok || rest == "" {
		return 0, 0
	}
	if _, err := fmt.Sscanf(rest, "%c %d", &state, &ppid); err != nil {
		return 0, 0
	}
	return ppid, state
}
