package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sockInfo is what the kernel says of a descriptor, whoever passed it.
type sockInfo struct {
	socket    bool
	domain    int
	typ       int
	accepting bool
	cookie    cookie // SO_COOKIE, or the inode of what is no socket
	netns     cookie
}

// inspect asks the kernel what fd is. See socket(7).
func inspect(fd int) (sockInfo, error) {
	var info sockInfo
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if errors.Is(err, unix.ENOTSOCK) {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return info, os.NewSyscallError("fstat", err)
		}
		info.cookie = cookie(st.Ino)
		return info, nil
	}
	if err != nil {
		return info, os.NewSyscallError("getsockopt SO_DOMAIN", err)
	}
	info.domain = domain
	info.socket = true
	accepting := 0
	for _, o := range []struct {
		opt int
		to  *int
	}{
		{unix.SO_TYPE, &info.typ},
		{unix.SO_ACCEPTCONN, &accepting},
	} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.opt)
		if err != nil {
			return info, os.NewSyscallError("getsockopt", err)
		}
		*o.to = v
	}
	info.accepting = accepting != 0
	v, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return info, os.NewSyscallError("getsockopt SO_COOKIE", err)
	}
	info.cookie = cookie(v)
	info.netns, err = netnsCookie(fd)
	return info, err
}

// netnsCookie tells which network namespace a socket belongs to, or 0 on
// kernels before 5.14.
func netnsCookie(fd int) (cookie, error) {
	v, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	return cookie(v), os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err)
}

// ownNetnsCookie tells which network namespace this process is in.
func ownNetnsCookie() (cookie, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	return netnsCookie(fd)
}

// goesWith tells whether the socket is what its network claims.
func (i sockInfo) goesWith(network string) error {
	bad := func(what string) error { return fmt.Errorf("descriptor is %s, which is no %s socket", what, network) }
	if !i.socket {
		return bad("no socket")
	}
	if !i.is(network) {
		return bad(fmt.Sprintf("domain %d, type %d", i.domain, i.typ))
	}
	if kindOf(network) == KindListener && !i.accepting {
		return bad("a socket that does not listen")
	}
	return nil
}

// is tells whether this is a socket of that network, listening or not.
func (i sockInfo) is(network string) bool {
	inet := i.domain == unix.AF_INET || i.domain == unix.AF_INET6
	switch {
	case !i.socket:
	case network == "tcp":
		return inet && i.typ == unix.SOCK_STREAM
	case network == "tcp4":
		return i.domain == unix.AF_INET && i.typ == unix.SOCK_STREAM
	case network == "tcp6":
		return i.domain == unix.AF_INET6 && i.typ == unix.SOCK_STREAM
	case network == "udp":
		return inet && i.typ == unix.SOCK_DGRAM
	case network == "udp4":
		return i.domain == unix.AF_INET && i.typ == unix.SOCK_DGRAM
	case network == "udp6":
		return i.domain == unix.AF_INET6 && i.typ == unix.SOCK_DGRAM
	case network == "unix":
		return i.domain == unix.AF_UNIX && i.typ == unix.SOCK_STREAM
	case network == "unixpacket":
		return i.domain == unix.AF_UNIX && i.typ == unix.SOCK_SEQPACKET
	case network == "unixgram":
		return i.domain == unix.AF_UNIX && i.typ == unix.SOCK_DGRAM
	}
	return false
}

// network names the network of an unknown socket, for sockets that come
// from a socket activator.
func (i sockInfo) network() string {
	switch i.domain {
	case unix.AF_INET, unix.AF_INET6:
		switch i.typ {
		case unix.SOCK_STREAM:
			return "tcp"
		case unix.SOCK_DGRAM:
			return "udp"
		}
	case unix.AF_UNIX:
		switch i.typ {
		case unix.SOCK_STREAM:
			return "unix"
		case unix.SOCK_SEQPACKET:
			return "unixpacket"
		case unix.SOCK_DGRAM:
			return "unixgram"
		}
	}
	return ""
}

// sockFD tells the descriptor of c without duplicating it. It stays c's, and
// is valid until c is closed, which only this package does.
func sockFD(c syscall.Conn) (int, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if err := rc.Control(func(u uintptr) { fd = int(u) }); err != nil {
		return -1, err
	}
	return fd, nil
}

// isBlocking tells whether O_NONBLOCK is clear in the open file description.
func isBlocking(fd int) (bool, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return flags&unix.O_NONBLOCK == 0, os.NewSyscallError("fcntl", err)
}

// converter makes sockets of package net from descriptors. net.FileListener
// takes an *os.File, but making and closing one per descriptor would register
// each with the poller for nothing. So there is one file, opened on something
// that is not polled, in whose place the descriptors are put one after the
// other.
type converter struct {
	file *os.File // /dev/null, until the first descriptor takes its place
	fd   int      // of file
}

func newConverter() (*converter, error) {
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	return &converter{os.NewFile(uintptr(fd), "converter"), fd}, nil
}

func (c *converter) close() { c.file.Close() }

// convert makes a listener or packet socket from fd, which it consumes if it
// succeeds. fd must not be blocking: package net would set O_NONBLOCK in the open file
// description, which others hold too (fcntl(2)).
func (c *converter) convert(fd int, kind Kind) (ln net.Listener, pc net.PacketConn, err error) {
	if err = c.put(fd); err != nil {
		return nil, nil, err
	}
	if kind == KindPacket {
		pc, err = net.FilePacketConn(c.file)
	} else {
		ln, err = net.FileListener(c.file)
	}
	if err == nil {
		closeFD(fd)
	}
	return ln, pc, err
}

// conn makes a connected socket of package net from fd, which it consumes, on
// the same condition.
func (c *converter) conn(fd int) (net.Conn, error) {
	defer closeFD(fd)
	if err := c.put(fd); err != nil {
		return nil, err
	}
	return net.FileConn(c.file)
}

// put puts a duplicate of fd in the place of the file.
func (c *converter) put(fd int) error {
	blocking, err := isBlocking(fd)
	if err == nil && blocking {
		err = errors.New("socket is in blocking mode: the process that owns it must not clear O_NONBLOCK (in Go, (*os.File).Fd does)")
	}
	if err == nil {
		err = os.NewSyscallError("dup3", unix.Dup3(fd, c.fd, unix.O_CLOEXEC))
	}
	return err
}

// sharedFD duplicates the descriptor of a connection, and tells its cookie.
func sharedFD(c net.Conn) (fd int, id cookie, err error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1, 0, fmt.Errorf("%T has no descriptor", c)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return -1, 0, err
	}
	fd = -1
	cerr := rc.Control(func(u uintptr) {
		var v uint64
		if v, err = unix.GetsockoptUint64(int(u), unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
			fd, err = dupFD(int(u))
		}
		id = cookie(v)
	})
	return fd, id, errors.Join(cerr, err)
}

// setNonblock prepares a socket that came from a socket activator, of which
// we are the first user, for the runtime poller.
func setNonblock(fd int) error { return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)) }

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

func dupFD(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return n, os.NewSyscallError("fcntl", err)
}

// acceptQueue tells how many connections wait in a TCP listener's accept
// queue and how many may: tcp(7), TCP_INFO on a listener gives them in
// tcpi_unacked and tcpi_sacked.
func acceptQueue(fd int) (length, backlog int, ok bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, 0, false
	}
	return int(info.Unacked), int(info.Sacked), true
}

// boundAddress is getsockname(2) as package net writes it.
func boundAddress(fd int) (string, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String(), nil
	case *unix.SockaddrInet6:
		a := &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
		if sa.ZoneId != 0 {
			if ifi, err := net.InterfaceByIndex(int(sa.ZoneId)); err == nil {
				a.Zone = ifi.Name
			}
		}
		return a.String(), nil
	case *unix.SockaddrUnix:
		return sa.Name, nil
	}
	return "", nil
}
