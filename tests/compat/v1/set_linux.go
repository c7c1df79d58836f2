package v1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config configures a peer.
type Config struct {
	Socket         string // path of the control socket
	Program, Build string
	Revision       uint64
	Force          bool
	Moves          bool          // takes connections
	Probation      time.Duration // that a successor asks for
	Protocols      []int         // of a hello; nil: version 1
	ReadyTimeout   time.Duration // that an owner tells its successor
	AliveEvery     time.Duration // the same; at least a millisecond
	OnConn         func(*Conn)   // if set, gets each conversation before its first frame
}

func (c Config) hello(intent string) Hello {
	protocols := c.Protocols
	if protocols == nil {
		protocols = []int{Protocol}
	}
	return Hello{Type: "hello", Protocols: protocols, Intent: intent, Program: c.Program, Build: c.Build, PID: os.Getpid()}
}

// ErrNotOwner: the ownership word names another generation.
var ErrNotOwner = errors.New("the ownership word names another generation")

// Socket is one descriptor of a set.
type Socket struct {
	Item
	FD int
}

// Set is what one generation holds.
type Set struct {
	cfg     Config
	Number  uint64
	Word    *Word
	Sockets []*Socket // without the reserved ones

	control, lock, netns *Socket // netns may be nil
}

// Get gives the descriptor with that name, or nil.
func (s *Set) Get(name string) *Socket {
	i := slices.IndexFunc(s.Sockets, func(k *Socket) bool { return k.Name == name })
	if i < 0 {
		return nil
	}
	return s.Sockets[i]
}

// describe asks the kernel for the cookies of fd: SO_COOKIE, SO_NETNS_COOKIE, or
// the inode of what is no socket.
func describe(fd int) (id, netns Cookie, err error) {
	v, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if errors.Is(err, unix.ENOTSOCK) {
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		return Cookie(st.Ino), 0, err
	}
	if err != nil {
		return 0, 0, err
	}
	n, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) { // before 5.14
		err = nil
	}
	return Cookie(v), Cookie(n), err
}

// check tells whether fd is what its item says.
func (it *Item) check(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	typ, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	want, is := 0, domain == unix.AF_UNIX
	switch {
	case it.Network == "":
		return nil
	case strings.HasPrefix(it.Network, "tcp"):
		want, is = unix.SOCK_STREAM, domain == unix.AF_INET || domain == unix.AF_INET6
	case strings.HasPrefix(it.Network, "udp"):
		want, is = unix.SOCK_DGRAM, domain == unix.AF_INET || domain == unix.AF_INET6
	case it.Network == "unix":
		want = unix.SOCK_STREAM
	case it.Network == "unixpacket":
		want = unix.SOCK_SEQPACKET
	case it.Network == "unixgram":
		want = unix.SOCK_DGRAM
	}
	if err != nil || typ != want || !is || (it.Kind == "listener" || it.Kind == "control") != (listens == 1) {
		return fmt.Errorf("%s is no %s %s", it.Name, it.Network, it.Kind)
	}
	return nil
}

// bind makes a socket and describes it. Its path stays when it is closed.
func bind(name, kind, network, address string) (*Socket, error) {
	var c syscall.Conn
	var bound string
	lc := net.ListenConfig{}
	if kind == "control" {
		lc.Control = func(_, _ string, rc syscall.RawConn) error { // mode 0600 from the first instant
			var err error
			cerr := rc.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
			return errors.Join(err, cerr)
		}
	}
	if kind == "packet" {
		pc, err := lc.ListenPacket(context.Background(), network, address)
		if err != nil {
			return nil, err
		}
		defer pc.Close()
		c, bound = pc.(syscall.Conn), pc.LocalAddr().String()
	} else {
		ln, err := lc.Listen(context.Background(), network, address)
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		if ul, ok := ln.(*net.UnixListener); ok {
			ul.SetUnlinkOnClose(false)
		}
		c, bound = ln.(syscall.Conn), ln.Addr().String()
	}
	fd, err := duplicate(c)
	if err != nil {
		return nil, err
	}
	s := &Socket{Item{Name: name, Kind: kind, Network: network, Address: bound}, fd}
	if s.Cookie, s.Netns, err = describe(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if strings.HasPrefix(network, "unix") && bound[0] != '@' {
		var st unix.Stat_t
		if err := unix.Lstat(bound, &st); err != nil {
			unix.Close(fd)
			return nil, err
		}
		s.Dev, s.Ino = uint64(st.Dev), st.Ino //nolint:unconvert // Dev has another type on mips
	}
	return s, nil
}

// duplicate gives a descriptor of c of its own, without touching O_NONBLOCK.
func duplicate(c syscall.Conn) (fd int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := rc.Control(func(u uintptr) { fd, err = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(cerr, err)
}

// Accept accepts a connection on the listener with that name, if this
// generation owns it.
func (s *Set) Accept(name string) (net.Conn, error) {
	k := s.Get(name)
	if k == nil {
		return nil, fmt.Errorf("no socket %q", name)
	}
	return s.accept(k.FD)
}

func (s *Set) accept(fd int) (net.Conn, error) {
	for end := time.Now().Add(Patience); ; {
		// The word is looked at before each accept.
		if s.Word.Load().Generation() != s.Number {
			return nil, ErrNotOwner
		}
		nfd, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch err {
		case nil:
			return fileConn(nfd)
		case unix.EAGAIN:
			if err := readable(fd, time.Until(end)); err != nil {
				return nil, err
			}
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return nil, os.NewSyscallError("accept4", err)
		}
	}
}

// fileConn makes a connection of fd, which it consumes. net.FileConn sets the
// file that it gets to blocking for a moment, which all holders of a
// connection would see: it gets /dev/null, in whose place fd is put.
func fileConn(fd int) (net.Conn, error) {
	defer unix.Close(fd)
	f, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Dup3(fd, int(f.Fd()), unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("dup3", err)
	}
	return net.FileConn(f)
}

// AcceptControl accepts one conversation on the control socket and hears its
// hello. Whom version 1 refuses before anything else is refused, which is an
// error.
func (s *Set) AcceptControl() (*Conn, *Hello, error) {
	nc, err := s.accept(s.control.FD)
	if err != nil {
		return nil, nil, err
	}
	c := newConn(s.cfg, nc.(*net.UnixConn))
	h, err := c.hear()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, h, nil
}

func (c *Conn) hear() (*Hello, error) {
	if err := c.passRights(false); err != nil {
		return nil, err
	}
	cred, err := c.Credentials()
	if err != nil {
		return nil, err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return nil, c.refuse("unauthorized", "uid %d may not talk to this process", cred.Uid)
	}
	f, err := c.recvPlain()
	if err != nil {
		return nil, err
	}
	h, ok := f.(*Hello)
	switch {
	case !ok:
		return nil, c.refuse("protocol", "the first frame is a hello, not %T", f)
	case !slices.Contains(h.Protocols, Protocol):
		return nil, c.refuse("version", "the owner speaks protocol 1, the peer %v", h.Protocols)
	}
	switch h.Intent {
	case Takeover, IntentStatus, IntentStop, IntentCommit, IntentRollback, IntentReport:
		return h, nil
	}
	return nil, c.refuse("protocol", "unknown intent %q", h.Intent)
}

// refuse sends a refusal, and waits until it has been heard: a conversation
// that is closed with frames unread is reset.
func (c *Conn) refuse(code, format string, args ...any) error {
	r := &RefusedError{code, fmt.Sprintf(format, args...)}
	err := c.Send(Refuse{Type: "refuse", Code: r.Code, Message: r.Message})
	if err == nil {
		err = c.CloseWrite()
	}
	for err == nil {
		var fds []int
		_, fds, err = c.Recv()
		closeAll(fds)
	}
	return r
}

// Refuse ends a conversation with a refusal.
func (c *Conn) Refuse(code, message string) { c.refuse(code, "%s", message) }

// listenAgain makes SO_PEERCRED tell clients of this process.
func (s *Set) listenAgain() error {
	return os.NewSyscallError("listen", unix.Listen(s.control.FD, 1024))
}

// Close closes all descriptors. Paths stay.
func (s *Set) Close() {
	for _, k := range append(slices.Clone(s.Sockets), s.control, s.lock, s.netns) {
		if k != nil {
			unix.Close(k.FD)
		}
	}
	s.Sockets, s.control, s.lock, s.netns = nil, nil, nil, nil
	if s.Word != nil {
		s.Word.close()
		s.Word = nil
	}
}
