package child

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Two programs listen at the same sockets during a takeover. Whose answer a
// probe got is seen from who holds the other end of its connection.

var (
	errOtherAnswered = errors.New("another process answered")
	errAnswerUnclear = errors.New("who answered cannot be told, since the connection was accepted late and closed at once")
)

type verdict int

const (
	acceptorUnknown verdict = iota // not of this machine, or not to be seen
	notAccepted
	acceptedByProgram
	acceptedByOther
)

// acceptTime is how long a request is held back until somebody has accepted
// its connection. Some servers wait for the request (TCP_DEFER_ACCEPT).
const acceptTime = 200 * time.Millisecond

// awaitAcceptor waits until it is known who has accepted c, but not for ever:
// then it is notAccepted. It fails if that is another process than pid and its
// descendants.
func awaitAcceptor(ctx context.Context, c net.Conn, pid int) (verdict, error) {
	for end := time.Now().Add(acceptTime); ; {
		v := acceptor(c, pid)
		if v == acceptedByOther {
			return v, errOtherAnswered
		}
		if v != notAccepted || time.Now().After(end) {
			return v, nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return v, err
		}
	}
}

// acceptor tells who holds the other end of a TCP connection.
func acceptor(c net.Conn, pid int) verdict {
	local, ok1 := addrPort(c.LocalAddr())
	remote, ok2 := addrPort(c.RemoteAddr())
	if !ok1 || !ok2 {
		return acceptorUnknown
	}
	for _, name := range []string{"tcp", "tcp6"} {
		inode, found, err := socketInode("/proc/thread-self/net/"+name, remote, local)
		switch {
		case err != nil || !found:
			continue
		case inode == "0":
			return notAccepted // or closed by now
		}
		held, err := treeHolds(pid, "socket:["+inode+"]")
		switch {
		case held:
			return acceptedByProgram
		case err != nil:
			return acceptorUnknown
		}
		return acceptedByOther
	}
	return acceptorUnknown
}

func addrPort(a net.Addr) (netip.AddrPort, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()), true
}

// socketInode finds the socket with these two ends in a table of the kernel:
// proc_pid_net(5). The inode is 0 while nobody has accepted it.
func socketInode(table string, local, remote netip.AddrPort) (inode string, found bool, err error) {
	f, err := os.Open(table)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	return findSocket(f, local, remote)
}

func findSocket(r io.Reader, local, remote netip.AddrPort) (inode string, found bool, err error) {
	in := bufio.NewScanner(r)
	in.Scan() // the titles
	for in.Scan() {
		word := strings.Fields(in.Text())
		if len(word) < 10 {
			continue
		}
		if l, err := tableAddr(word[1]); err != nil || l != local {
			continue
		}
		if r, err := tableAddr(word[2]); err != nil || r != remote {
			continue
		}
		return word[9], true, nil
	}
	return "", false, in.Err()
}

// tableAddr parses an address of such a table: words of 32 bits in the
// machine's own order, and the port.
func tableAddr(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	b, err := hex.DecodeString(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for w := b; len(w) > 0; w = w[4:] {
		binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// treeHolds tells whether root or a descendant of it has a descriptor with
// that link. An error means that not all could be looked at.
func treeHolds(root int, link string) (bool, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	var hidden error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !descends(pid, root) {
			continue
		}
		held, err := holds(pid, link)
		if held {
			return true, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			hidden = err
		}
	}
	return false, hidden
}

func holds(pid int, link string) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if l, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && l == link {
			return true, nil
		}
	}
	return false, nil
}
