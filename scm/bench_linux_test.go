package scm_test

import (
	"context"
	"fmt"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/scm"
)

// contexts are those that a caller uses for many calls.
func contexts(t testing.TB) map[string]context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	t.Cleanup(cancel)
	return map[string]context.Context{"background": context.Background(), "deadline": ctx}
}

func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, ctx := range contexts(t) {
		for _, n := range []int{0, 1, scm.MaxFDs} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				eachType(t, func(t *testing.T, a, b *scm.Conn) {
					w := newWitness(t)
					round := roundTrip(t, ctx, a, b, w.fds(t, n))
					round() // registers the context
					if allocs := testing.AllocsPerRun(100, round); allocs != 0 {
						t.Errorf("%v allocations per Send and Recv", allocs)
					}
				})
			})
		}
	}
}

// roundTrip returns a function that sends one message, receives it and closes
// what came.
func roundTrip(t testing.TB, ctx context.Context, a, b *scm.Conn, fds []int) func() {
	p, in, got := make([]byte, 64), make([]byte, 64), make([]int, scm.MaxFDs)
	return func() {
		if err := a.Send(ctx, p, fds); err != nil {
			t.Fatal(err)
		}
		n, nfds, err := b.Recv(ctx, in, got)
		if n != len(p) || nfds != len(fds) || err != nil {
			t.Fatalf("Recv = %d, %d, %v", n, nfds, err)
		}
		for _, fd := range got[:nfds] {
			unix.Close(fd)
		}
	}
}

// bareTrip is roundTrip with nothing but system calls.
func bareTrip(t testing.TB, fds []int) func() {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, pair[:]) })
	p := make([]byte, 64)
	iov := unix.Iovec{Base: &p[0], Len: 64}
	out, in := unix.UnixRights(fds...), make([]byte, unix.CmsgSpace(scm.MaxFDs*4))
	tx := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: &out[0]}
	tx.SetControllen(len(out))
	rx := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: &in[0]}
	return func() {
		if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(pair[0]), uintptr(unsafe.Pointer(&tx)), unix.MSG_NOSIGNAL); errno != 0 {
			t.Fatal(errno)
		}
		rx.SetControllen(len(in))
		if _, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(pair[1]), uintptr(unsafe.Pointer(&rx)), unix.MSG_CMSG_CLOEXEC); errno != 0 {
			t.Fatal(errno)
		}
		for _, fd := range unsafe.Slice((*int32)(unsafe.Pointer(&in[unix.CmsgLen(0)])), len(fds)) {
			unix.Close(int(fd))
		}
	}
}

// BenchmarkSendRecv measures one message from Send to the last close.
func BenchmarkSendRecv(b *testing.B) {
	for _, name := range []string{"background", "deadline"} {
		for _, n := range []int{1, scm.MaxFDs} {
			b.Run(fmt.Sprintf("%s/fds=%d", name, n), func(b *testing.B) {
				x, y := pair(b, unix.SOCK_SEQPACKET)
				round := roundTrip(b, contexts(b)[name], x, y, newWitness(b).fds(b, n))
				b.ReportAllocs()
				for b.Loop() {
					round()
				}
			})
		}
	}
}

// BenchmarkBare is the baseline: sendmsg, recvmsg and close.
func BenchmarkBare(b *testing.B) {
	for _, n := range []int{1, scm.MaxFDs} {
		b.Run(fmt.Sprintf("fds=%d", n), func(b *testing.B) {
			round := bareTrip(b, newWitness(b).fds(b, n))
			b.ReportAllocs()
			for b.Loop() {
				round()
			}
		})
	}
}

// BenchmarkOverhead takes turns between the two, so that what else the machine
// does falls on both, and reports how many times the bare calls Send and Recv
// take.
func BenchmarkOverhead(b *testing.B) {
	for _, name := range []string{"background", "deadline"} {
		for _, n := range []int{1, scm.MaxFDs} {
			b.Run(fmt.Sprintf("%s/fds=%d", name, n), func(b *testing.B) {
				x, y := pair(b, unix.SOCK_SEQPACKET)
				fds := newWitness(b).fds(b, n)
				ours := roundTrip(b, contexts(b)[name], x, y, fds)
				bare := bareTrip(b, fds)
				var oursTime, bareTime time.Duration
				for b.Loop() {
					start := time.Now()
					ours()
					middle := time.Now()
					bare()
					oursTime += middle.Sub(start)
					bareTime += time.Since(middle)
				}
				b.ReportMetric(oursTime.Seconds()/bareTime.Seconds(), "x/bare")
			})
		}
	}
}

// BenchmarkBlocked has a Recv that waits in the poller for every message.
func BenchmarkBlocked(b *testing.B) {
	for _, name := range []string{"background", "deadline"} {
		b.Run(name, func(b *testing.B) {
			x, y := pair(b, unix.SOCK_SEQPACKET)
			ctx := contexts(b)[name]
			done := make(chan error, 1)
			go func() { done <- echo(ctx, y) }()
			p := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				if err := x.Send(ctx, p, nil); err != nil {
					b.Fatal(err)
				}
				if _, _, err := x.Recv(ctx, p, nil); err != nil {
					b.Fatal(err)
				}
			}
			x.Close()
			<-done
		})
	}
}

func echo(ctx context.Context, c *scm.Conn) error {
	p := make([]byte, 64)
	for {
		n, _, err := c.Recv(ctx, p, nil)
		if err != nil {
			return err
		}
		if err := c.Send(ctx, p[:n], nil); err != nil {
			return err
		}
	}
}
