package scm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/scm"
)

func listen(t *testing.T, network string) (*net.UnixListener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln, path
}

func accept(t *testing.T, ln *net.UnixListener) *scm.Conn {
	t.Helper()
	uc, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	return newConn(t, uc)
}

func TestDial(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			ln, path := listen(t, network)
			ctx, cancel := context.WithCancel(context.Background())
			c, err := scm.Dial(ctx, network, path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			cancel() // covers the dialing only
			s := accept(t, ln)
			w := newWitness(t)
			send(t, c, "hello", w.fds(t, 2)...)
			closeAll(t, recv(t, s, "hello", 2))
			w.gone(t)

			if _, err := scm.Dial(ctx, network, path); !errors.Is(err, context.Canceled) {
				t.Errorf("Dial with an ended context = %v", err)
			}
		})
	}
	if _, err := scm.Dial(context.Background(), "unixgram", "/x"); err == nil {
		t.Error("Dial of unixgram succeeded")
	}
	_, err := scm.Dial(context.Background(), "unix", filepath.Join(t.TempDir(), "none"))
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Dial of nothing = %v", err)
	}
}

// childDial connects and lives until it is killed.
func childDial() error {
	c, err := scm.Dial(context.Background(), "unixpacket", os.Args[1])
	if err != nil {
		return err
	}
	_, _, err = c.Recv(context.Background(), make([]byte, 1), nil)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// startPeer returns a connection to a process of its own.
func startPeer(t *testing.T) (*scm.Conn, *exec.Cmd) {
	t.Helper()
	leak.Check(t)
	ln, path := listen(t, "unixpacket")
	cmd := child(t, "dial", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return accept(t, ln), cmd
}

func TestPeerCred(t *testing.T) {
	c, cmd := startPeer(t)
	got, err := c.PeerCred()
	if err != nil {
		t.Fatal(err)
	}
	want := scm.Cred{PID: int32(cmd.Process.Pid), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if got != want {
		t.Fatalf("PeerCred = %+v, want %+v", got, want)
	}
}

func TestPeerPidfd(t *testing.T) {
	c, cmd := startPeer(t)
	fd, err := c.PeerPidfd()
	need(t, err, "SO_PEERPIDFD (Linux 6.5)")
	defer unix.Close(fd)
	if !closeOnExec(t, fd) {
		t.Error("the pidfd is not close-on-exec")
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); n != 0 || err != nil {
		t.Fatalf("poll of a living process = %d, %v", n, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := unix.Poll(poll, 30_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("poll of a killed process = %d, %v", n, err)
		}
		return
	}
}

func TestSetPassRights(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		w := newWitness(t)
		need(t, b.SetPassRights(false), "SO_PASSRIGHTS (Linux 6.16)")
		err := a.Send(context.Background(), []byte("x"), w.fds(t, 1))
		if !errors.Is(err, unix.EPERM) {
			t.Fatalf("Send of a descriptor = %v, want EPERM", err)
		}
		send(t, a, "plain")
		recv(t, b, "plain", 0)
		// It is one direction only.
		send(t, b, "back", w.fds(t, 1)...)
		closeAll(t, recv(t, a, "back", 1))

		if err := b.SetPassRights(true); err != nil {
			t.Fatal(err)
		}
		send(t, a, "allowed", w.fds(t, 1)...)
		closeAll(t, recv(t, b, "allowed", 1))
		w.gone(t)
	})
}

// runChild runs a child with one end of a pair as its descriptor 3, and f with
// the other.
func runChild(t *testing.T, name string, typ int, f func(c *scm.Conn)) {
	t.Helper()
	leak.Check(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(t, unixConn(t, fds[0]))
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	defer theirs.Close()
	cmd := child(t, name, "")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close() // so that c sees the child's end
	defer func() {
		c.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("child %s: %v", name, err)
		}
	}()
	f(c)
}

func inheritedConn() (*scm.Conn, error) {
	f := os.NewFile(3, "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return scm.NewConn(c.(*net.UnixConn))
}

// At RLIMIT_NOFILE the kernel installs what fits and says so only by
// MSG_CTRUNC.
func TestControlTruncated(t *testing.T) {
	for _, st := range socketTypes {
		t.Run(st.name, func(t *testing.T) {
			w := newWitness(t)
			runChild(t, "nofile", st.typ, func(c *scm.Conn) {
				send(t, c, "x", w.fds(t, 20)...)
				recv(t, c, "ok", 0)
				w.gone(t) // while the child lives
				send(t, c, "bye")
			})
		})
	}
}

func childNofile() error {
	c, err := inheritedConn()
	if err != nil {
		return err
	}
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	if err := limitNofile(5); err != nil {
		return err
	}
	n, nfds, err := c.Recv(context.Background(), make([]byte, 8), make([]int, scm.MaxFDs))
	if n != 0 || nfds != 0 || !errors.Is(err, scm.ErrControlTruncated) {
		return fmt.Errorf("Recv = %d, %d, %v; want ErrControlTruncated", n, nfds, err)
	}
	after, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	if len(after) != len(before) {
		return fmt.Errorf("%d descriptors open, %d before", len(after), len(before))
	}
	if err := c.Send(context.Background(), []byte("ok"), nil); err != nil {
		return err
	}
	_, _, err = c.Recv(context.Background(), make([]byte, 8), nil)
	return err
}

// limitNofile leaves room for at most n more descriptors, and at least one.
func limitNofile(n int) error {
	free, err := unix.Dup(0) // the lowest that is free
	if err != nil {
		return err
	}
	unix.Close(free)
	limit := uint64(free + n)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit})
}

// An unprivileged user cannot have more in flight than RLIMIT_NOFILE, and can
// go on when it has been received.
func TestTooManyReferences(t *testing.T) {
	runChild(t, "toomanyrefs", unix.SOCK_SEQPACKET, func(c *scm.Conn) {
		n, nfds, err := c.Recv(context.Background(), make([]byte, 8), nil)
		wantErr(t, n, nfds, err, io.EOF)
	})
}

func childTooManyRefs() error {
	if os.Getuid() == 0 {
		// A user of no other process, as the count is per user. It also
		// gives up the capabilities that lift the limit.
		if err := syscall.Setuid(60_000 + os.Getpid()%5000); err != nil {
			return err
		}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var conns [2]*scm.Conn
	for i, fd := range fds {
		c, err := net.FileConn(os.NewFile(uintptr(fd), "socket"))
		if err != nil {
			return err
		}
		if conns[i], err = scm.NewConn(c.(*net.UnixConn)); err != nil {
			return err
		}
	}
	const room = 20
	if err := limitNofile(room); err != nil {
		return err
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	ctx, batch := context.Background(), []int{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	sent := 0
	for err == nil && sent <= int(limit.Cur) {
		if err = conns[0].Send(ctx, []byte("x"), batch); err == nil {
			sent++
		}
	}
	if !errors.Is(err, unix.ETOOMANYREFS) {
		return fmt.Errorf("Send = %v after %d messages, want ETOOMANYREFS", err, sent)
	}
	got := make([]int, len(batch))
	for range sent {
		_, n, err := conns[1].Recv(ctx, make([]byte, 8), got)
		if err != nil {
			return err
		}
		for _, fd := range got[:n] {
			unix.Close(fd)
		}
	}
	return conns[0].Send(ctx, []byte("x"), batch)
}
