package handover

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/scm"
)

// A generation that is being superseded has shut its gate for good and is about
// to close its conversations. What it cannot take now the next owner can: the
// sender must not be told that it was refused.
func TestConnectionsThatComeAsWeAreSupersededAreNotRefused(t *testing.T) {
	leak.Check(t)
	_, ln := first(t, testConfig(t), "tcp", "127.0.0.1:0")
	_, server := connect(t, ln)
	fd, cookie, err := sharedFD(server)
	if err != nil {
		t.Fatal(err)
	}
	g := ln.(*listener).g
	l, sender := linkPair(t)
	f := &frameConnections{Type: typeMoved, Items: []movedItem{{Listener: "app", Cookie: cookie}}, fds: []int{fd}}
	g.gate.end() // as letGo begins
	adopted := g.adopt(l, f, func() bool { return false })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if answer, err := sender.recvPlain(ctx); err == nil {
		t.Errorf("adopt returned %v and answered %+v: Move fails, though the next owner would take the connection", adopted, answer)
	}
}

// linkPair gives both ends of a conversation.
func linkPair(t *testing.T) (a, b *link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := func(fd int) *link {
		f := os.NewFile(uintptr(fd), "link")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := scm.NewConn(c.(*net.UnixConn))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return newLink(conn, 0)
	}
	return end(fds[0]), end(fds[1])
}
