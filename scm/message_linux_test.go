package scm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/scm"
)

func TestSendRecv(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		w := newWitness(t)
		for _, n := range []int{0, 1, 2, 3, 100, scm.MaxFDs} {
			p := fmt.Sprintf("message with %d", n)
			send(t, a, p, w.fds(t, n)...)
			closeAll(t, recv(t, b, p, n))
		}
		send(t, b, "and back", w.fds(t, 1)...)
		got := recv(t, a, "and back", 1)
		// It is the same file, not a copy: writing to it reaches the reader.
		if _, err := unix.Write(got[0], []byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := w.r.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Fatalf("read = %d, %v", n, err)
		}
		closeAll(t, got)
		w.gone(t)
	})
}

func TestOrderOfDescriptors(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	var sent []int
	var want []uint64
	for range 20 {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, fd)
		want = append(want, inode(t, fd))
	}
	send(t, a, "x", sent...)
	closeAll(t, sent) // a message in flight has references of its own
	got := recv(t, b, "x", len(sent))
	for i, fd := range got {
		if inode(t, fd) != want[i] {
			t.Errorf("descriptor %d is another file", i)
		}
	}
	closeAll(t, got)
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestTooManyFDs(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		w := newWitness(t)
		err := a.Send(context.Background(), []byte("x"), w.fds(t, scm.MaxFDs+1))
		if !errors.Is(err, scm.ErrTooManyFDs) {
			t.Fatalf("Send of 254 = %v", err)
		}
		send(t, a, "next")
		recv(t, b, "next", 0)
		w.gone(t)
	})
}

// The limit is the kernel's, and counts over all control messages.
func TestKernelLimit(t *testing.T) {
	for _, tt := range []struct {
		groups []int
		err    error
	}{
		{[]int{253}, nil},
		{[]int{254}, unix.EINVAL},
		{[]int{127, 126}, nil},
		{[]int{127, 127}, unix.EINVAL},
	} {
		t.Run(fmt.Sprint(tt.groups), func(t *testing.T) {
			w := newWitness(t)
			ua, ub := unixPair(t, unix.SOCK_SEQPACKET)
			b := newConn(t, ub)
			var control []byte
			total := 0
			for _, n := range tt.groups {
				control = append(control, unix.UnixRights(w.fds(t, n)...)...)
				total += n
			}
			var err error
			withFD(t, ua, func(fd int) error {
				err = unix.Sendmsg(fd, []byte("x"), control, nil, 0)
				return nil
			})
			if err != tt.err {
				t.Fatalf("sendmsg = %v, want %v", err, tt.err)
			}
			if err == nil {
				closeAll(t, recv(t, b, "x", total))
			}
			w.gone(t)
		})
	}
}

// Passing must not touch O_NONBLOCK: it belongs to the open file description,
// and so to both sides.
func TestNonblockUnchanged(t *testing.T) {
	for _, nonblock := range []int{0, unix.O_NONBLOCK} {
		t.Run(fmt.Sprintf("%#x", nonblock), func(t *testing.T) {
			a, b := pair(t, unix.SOCK_SEQPACKET)
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC|nonblock); err != nil {
				t.Fatal(err)
			}
			defer closeAll(t, p[:])
			send(t, a, "x", p[0])
			got := recv(t, b, "x", 1)
			defer closeAll(t, got)
			for side, fd := range map[string]int{"sender": p[0], "receiver": got[0]} {
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				if flags&unix.O_NONBLOCK != nonblock {
					t.Errorf("%s: O_NONBLOCK = %#x, want %#x", side, flags&unix.O_NONBLOCK, nonblock)
				}
			}
		})
	}
}

func TestCloseOnExec(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY, 0) // without O_CLOEXEC
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		send(t, a, "x", fd, fd)
		got := recv(t, b, "x", 2)
		defer closeAll(t, got)
		for _, fd := range got {
			if !closeOnExec(t, fd) {
				t.Errorf("descriptor %d is not close-on-exec", fd)
			}
		}
	})
}

func closeOnExec(t *testing.T, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.FD_CLOEXEC != 0
}

func TestUnexpectedFDs(t *testing.T) {
	for _, tt := range []struct{ sent, room int }{{1, 0}, {3, 0}, {3, 2}, {4, 3}, {253, 252}} {
		t.Run(fmt.Sprintf("%d for %d", tt.sent, tt.room), func(t *testing.T) {
			eachType(t, func(t *testing.T, a, b *scm.Conn) {
				w := newWitness(t)
				send(t, a, "x", w.fds(t, tt.sent)...)
				fds := make([]int, tt.room)
				n, nfds, err := b.Recv(context.Background(), make([]byte, 8), fds)
				wantErr(t, n, nfds, err, scm.ErrUnexpectedFDs)
				for _, fd := range fds {
					if fd != -1 {
						t.Fatalf("a closed descriptor is still in the slice: %v", fds)
					}
				}
				w.gone(t)
				send(t, a, "next")
				recv(t, b, "next", 0)
			})
		})
	}
}

func TestPayloadTruncated(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	w := newWitness(t)
	send(t, a, "longer than four", w.fds(t, 5)...)
	n, nfds, err := b.Recv(context.Background(), make([]byte, 4), make([]int, 8))
	wantErr(t, n, nfds, err, scm.ErrPayloadTruncated)
	w.gone(t)
	send(t, a, "next")
	recv(t, b, "next", 0)
}

// What a stream keeps together, and what it does not.
func TestStreamBoundaries(t *testing.T) {
	a, b := pair(t, unix.SOCK_STREAM)
	w := newWitness(t)

	// Bytes of later messages are not read together with descriptors.
	send(t, a, "with", w.fds(t, 1)...)
	send(t, a, "after")
	closeAll(t, recv(t, b, "with", 1))
	recv(t, b, "after", 0)

	// Bytes of earlier ones are.
	send(t, a, "before+")
	send(t, a, "with", w.fds(t, 2)...)
	closeAll(t, recv(t, b, "before+with", 2))

	// Descriptors come with the first byte, and only once.
	send(t, a, "cut", w.fds(t, 3)...)
	p, fds := make([]byte, 1), make([]int, 3)
	n, nfds, err := b.Recv(context.Background(), p, fds)
	if n != 1 || nfds != 3 || err != nil {
		t.Fatalf("Recv = %d, %d, %v", n, nfds, err)
	}
	closeAll(t, fds)
	recv(t, b, "ut", 0)
	w.gone(t)
}

func TestStreamLargeMessage(t *testing.T) {
	a, b := pair(t, unix.SOCK_STREAM)
	w := newWitness(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // many times the socket buffer
	done := make(chan error, 1)
	fds := w.fds(t, 7)
	go func() { done <- a.Send(context.Background(), want, fds) }()

	var got []byte
	p, in := make([]byte, 64<<10), make([]int, 8)
	for len(got) < len(want) {
		n, nfds, err := b.Recv(context.Background(), p, in)
		if err != nil {
			t.Fatal(err)
		}
		if first := len(got) == 0; first != (nfds == 7) || !first && nfds != 0 {
			t.Fatalf("%d descriptors at byte %d", nfds, len(got))
		}
		closeAll(t, in[:nfds])
		got = append(got, p[:n]...)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("other bytes arrived")
	}
	w.gone(t)
}

// Messages of concurrent Sends never interleave, each is far larger than what
// one sendmsg takes.
func TestConcurrentSends(t *testing.T) {
	a, b := pair(t, unix.SOCK_STREAM)
	const senders, size = 4, 1 << 20
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			if err := a.Send(context.Background(), bytes.Repeat([]byte{byte(i)}, size), nil); err != nil {
				t.Error(err)
			}
		})
	}
	var got []byte
	p := make([]byte, 128<<10)
	for len(got) < senders*size {
		n, _, err := b.Recv(context.Background(), p, nil)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p[:n]...)
	}
	wg.Wait()
	for message := range senders {
		part := got[message*size:][:size]
		if bytes.Count(part, part[:1]) != size {
			t.Fatalf("message %d is mixed with another", message)
		}
	}
}

func TestConcurrentRecvs(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	w := newWitness(t)
	const messages = 200
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[byte]int)
	for range 4 {
		wg.Go(func() {
			p, fds := make([]byte, 8), make([]int, 4)
			for range messages / 4 {
				n, nfds, err := b.Recv(context.Background(), p, fds)
				if n != 1 || nfds != int(p[0])%4 || err != nil {
					t.Errorf("Recv = %d, %d, %v for message %d", n, nfds, err, p[0])
				}
				closeAll(t, fds[:nfds])
				mu.Lock()
				seen[p[0]]++
				mu.Unlock()
			}
		})
	}
	for i := range messages {
		send(t, a, string([]byte{byte(i)}), w.fds(t, i%4)...)
	}
	wg.Wait()
	if len(seen) != messages {
		t.Fatalf("%d different messages, want %d", len(seen), messages)
	}
	w.gone(t)
}

func TestEOF(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		w := newWitness(t)
		send(t, a, "last", w.fds(t, 1)...)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		closeAll(t, recv(t, b, "last", 1)) // what was sent before stays readable
		for range 2 {
			n, nfds, err := b.Recv(context.Background(), make([]byte, 8), make([]int, 8))
			wantErr(t, n, nfds, err, io.EOF)
		}
		err := b.Send(context.Background(), []byte("x"), nil)
		if !errors.Is(err, unix.EPIPE) {
			t.Fatalf("Send to a closed peer = %v, want EPIPE", err)
		}
		w.gone(t)
	})
}

func TestReadable(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		want := func(when string, want bool) {
			t.Helper()
			if b.Readable() != want {
				t.Errorf("%s: Readable = %v", when, !want)
			}
		}
		want("nothing sent", false)
		send(t, a, "x")
		want("sent", true)
		recv(t, b, "x", 0)
		want("received", false)
		a.Close()
		want("peer closed", true)
		b.Close()
		want("closed", false)
	})
}

// A message that nobody reads is closed with its socket.
func TestCloseWithUnread(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		w := newWitness(t)
		send(t, a, "unread", w.fds(t, 10)...)
		b.Close()
		w.gone(t)
		n, nfds, err := a.Recv(context.Background(), make([]byte, 8), nil)
		wantErr(t, n, nfds, err, unix.ECONNRESET)
	})
}

func TestEmpty(t *testing.T) {
	eachType(t, func(t *testing.T, a, b *scm.Conn) {
		if err := a.Send(context.Background(), nil, []int{0}); !errors.Is(err, scm.ErrEmpty) {
			t.Fatalf("Send = %v, want ErrEmpty", err)
		}
		n, nfds, err := b.Recv(context.Background(), nil, make([]int, 1))
		wantErr(t, n, nfds, err, scm.ErrEmpty)
	})
}

// A packet without a byte looks like the end of the connection, unless it has
// descriptors.
func TestEmptyPacketWithFDs(t *testing.T) {
	w := newWitness(t)
	ua, ub := unixPair(t, unix.SOCK_SEQPACKET)
	b := newConn(t, ub)
	// unix.Sendmsg would add a byte.
	control := unix.UnixRights(w.fds(t, 2)...)
	hdr := unix.Msghdr{Control: &control[0]}
	hdr.SetControllen(len(control))
	withFD(t, ua, func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdr)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	n, nfds, err := b.Recv(context.Background(), make([]byte, 8), make([]int, 8))
	wantErr(t, n, nfds, err, scm.ErrEmpty)
	w.gone(t)
}

func TestBadDescriptor(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	w := newWitness(t)
	good := w.fds(t, 1)[0]
	bad := []int{-1, 1 << 30}
	if wide := int64(1)<<32 + int64(good); int64(int(wide)) == wide {
		bad = append(bad, int(wide)) // would be good if it were cut to 32 bits
	}
	for _, fd := range bad {
		err := a.Send(context.Background(), []byte("x"), []int{good, fd})
		if !errors.Is(err, unix.EBADF) {
			t.Errorf("Send of descriptor %d = %v, want EBADF", fd, err)
		}
	}
	send(t, a, "next")
	recv(t, b, "next", 0)
	w.gone(t)
}

// Control messages that nobody asked for change nothing, and their descriptors
// do not stay open.
func TestOtherControlMessages(t *testing.T) {
	for _, st := range socketTypes {
		t.Run(st.name, func(t *testing.T) {
			ua, ub := unixPair(t, st.typ)
			withFD(t, ub, func(fd int) error {
				// Before Linux 6.5 there is no SO_PASSPIDFD; then it is less of a test.
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSPIDFD, 1)
				return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
			})
			a, b := newConn(t, ua), newConn(t, ub)
			w := newWitness(t)
			before := openFDs(t)
			for _, n := range []int{0, 1, scm.MaxFDs} {
				send(t, a, "x", w.fds(t, n)...)
				closeAll(t, recv(t, b, "x", n))
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
			w.gone(t)
		})
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Why Recv has room for 253 whatever the caller allows: with less the kernel
// drops descriptors, and because of padding not even those beyond the room.
func TestKernelSmallControlBuffer(t *testing.T) {
	w := newWitness(t)
	ua, ub := unixPair(t, unix.SOCK_SEQPACKET)
	a := newConn(t, ua)
	send(t, a, "x", w.fds(t, 10)...)
	withFD(t, ub, func(fd int) error {
		control := make([]byte, unix.CmsgSpace(3*4))
		_, n, flags, _, err := unix.Recvmsg(fd, make([]byte, 8), control, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return err
		}
		if flags&unix.MSG_CTRUNC == 0 {
			t.Errorf("flags = %#x, want MSG_CTRUNC", flags)
		}
		msgs, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil {
			return err
		}
		got, err := unix.ParseUnixRights(&msgs[0])
		closeAll(t, got)
		if room := (unix.CmsgSpace(3*4) - unix.CmsgLen(0)) / 4; len(got) != room {
			t.Errorf("%d descriptors, want %d", len(got), room)
		}
		return err
	})
	w.gone(t)
}

// Why nothing else may read the socket.
func TestKernelPlainReadDropsFDs(t *testing.T) {
	w := newWitness(t)
	ua, ub := unixPair(t, unix.SOCK_STREAM)
	a := newConn(t, ua)
	send(t, a, "x", w.fds(t, 1)...)
	if n, err := ub.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Fatalf("read = %d, %v", n, err)
	}
	w.gone(t)
}

func TestPassListener(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) { send(t, a, "listener", int(fd)) })
	if err != nil {
		t.Fatal(err)
	}
	// The sender closes before anybody has received: the socket stays bound,
	// listening and queueing.
	ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	got := recv(t, b, "listener", 1)
	f := os.NewFile(uintptr(got[0]), "listener")
	heir, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer heir.Close()
	server, err := heir.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if server.RemoteAddr().String() != client.LocalAddr().String() {
		t.Fatalf("accepted %v, want %v", server.RemoteAddr(), client.LocalAddr())
	}
}

func TestNewConnRefuses(t *testing.T) {
	if _, err := scm.NewConn(nil); err == nil {
		t.Error("NewConn(nil) succeeded")
	}
	ua, _ := unixPair(t, unix.SOCK_DGRAM)
	if _, err := scm.NewConn(ua); err == nil {
		t.Error("NewConn of SOCK_DGRAM succeeded")
	}
	// On error the connection stays the caller's.
	if err := ua.Close(); err != nil {
		t.Errorf("Close after a refusal: %v", err)
	}
	if _, err := scm.NewConn(ua); !errors.Is(err, net.ErrClosed) {
		t.Errorf("NewConn of a closed connection = %v", err)
	}
}
