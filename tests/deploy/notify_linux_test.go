package deploy

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A notifySocket is the service manager's end of sd_notify(3).
type notifySocket struct {
	t    testing.TB
	path string
	conn *net.UnixConn
	done sync.WaitGroup

	mu       sync.Mutex
	messages []notification
}

// A notification is one datagram, and the process that has sent it, as the
// kernel says.
type notification struct {
	pid   int
	lines []string
}

func newNotifySocket(t testing.TB, dir string) *notifySocket {
	t.Helper()
	n := &notifySocket{t: t, path: filepath.Join(dir, "notify")}
	var err error
	n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.conn.Close()
		n.done.Wait()
	})
	rc, err := n.conn.SyscallConn()
	if err == nil {
		cerr := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		if err == nil {
			err = cerr
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	n.done.Go(n.read)
	return n
}

func (n *notifySocket) read() {
	text, oob := make([]byte, 8192), make([]byte, 1024)
	for {
		size, oobSize, _, _, err := n.conn.ReadMsgUnix(text, oob)
		if err != nil {
			return
		}
		m := notification{lines: strings.Split(strings.TrimSpace(string(text[:size])), "\n")}
		controls, err := unix.ParseSocketControlMessage(oob[:oobSize])
		if err == nil && len(controls) == 1 {
			if cred, err := unix.ParseUnixCredentials(&controls[0]); err == nil {
				m.pid = int(cred.Pid)
			}
		}
		n.mu.Lock()
		n.messages = append(n.messages, m)
		n.mu.Unlock()
	}
}

// has tells whether a process has said a line.
func (n *notifySocket) has(pid int, line string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.messages, func(m notification) bool { return m.pid == pid && slices.Contains(m.lines, line) })
}

// awaitLine waits until a process has said a line.
func (n *notifySocket) awaitLine(pid int, line string) {
	n.t.Helper()
	await(n.t, line+" from the main process", func() bool { return n.has(pid, line) })
}

// wantOnlyFrom checks that a unit's messages come from its main process, since
// NotifyAccess=main lets the manager ignore all others.
func (n *notifySocket) wantOnlyFrom(pid int) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.messages {
		if m.pid != pid {
			n.t.Errorf("%q is from process %d, and the main one is %d", m.lines, m.pid, pid)
		}
	}
}
