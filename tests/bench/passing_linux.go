package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/scm"
	"github.com/handoverd/handoverd/tests/bench/report"
)

// passingSizes are how many descriptors are passed.
func passingSizes(short bool) []int {
	if short {
		return []int{1, 253, 1000}
	}
	return []int{1, 16, scm.MaxFDs, 1000, 10_000}
}

// repetitions are enough for a median, and batch is how many passes in a row make
// one of them: the first ones after a change pay for it.
func repetitions(size int, short bool) (again, batch int) {
	switch {
	case short:
		return 5, 2
	case size <= scm.MaxFDs:
		return 100, 10
	case size <= 1000:
		return 60, 4
	}
	return 20, 1
}

// measurePassing passes descriptors with bare system calls and with package scm
// in turns, and in processes of their own, with package handover too.
func measurePassing(ctx context.Context, l *lab, short bool) (all []report.Passing, err error) {
	for _, kind := range []string{"sockets", "connections"} {
		for _, n := range passingSizes(short) {
			row := report.Passing{Kind: kind, Count: n}
			if err := passHere(ctx, &row, short); err != nil {
				return all, err
			}
			all = append(all, row)
		}
	}
	for i := range all {
		if all[i].Kind != "sockets" {
			continue
		}
		again := 12
		if short {
			again = 2
		}
		if err := passBetween(ctx, l, &all[i], again); err != nil {
			return all, err
		}
	}
	return all, nil
}

// measureRoundTrips sends single messages to a process that does nothing but send
// them back, by package net. Both sleep in between, as the sides of a takeover do
// while they wait for each other. No conversation of two such processes is faster.
func measureRoundTrips(ctx context.Context, l *lab, short bool) (all []time.Duration, err error) {
	n := 200
	if short {
		n = 10
	}
	s := &site{lab: l, name: l.unique("echo"), dir: l.dir}
	path := l.path(s.name)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	p, err := s.run([]string{l.path("bin/taker"), "-echo", "-socket", path, "-n", fmt.Sprint(n)})
	if err != nil {
		return nil, err
	}
	defer s.stop()
	ln.SetDeadline(time.Now().Add(patience))
	c, err := ln.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, p.tail())
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 64)
	for range n {
		if err := sleep(ctx, 3*time.Millisecond); err != nil {
			return nil, err
		}
		began := time.Now()
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := c.Read(b); err != nil {
			return nil, err
		}
		all = append(all, time.Since(began))
	}
	return all, nil
}

// descriptors are sockets of a kind.
type descriptors struct {
	fds []int
}

func (d *descriptors) close() {
	for _, fd := range d.fds {
		unix.Close(fd)
	}
}

// newDescriptors makes n listening sockets, or both ends of connections.
func newDescriptors(kind string, n int) (*descriptors, error) {
	d := new(descriptors)
	add := func(fd int, err error) error {
		if err == nil {
			d.fds = append(d.fds, fd)
		}
		return err
	}
	// One address has not enough ports.
	many := func(i int) unix.Sockaddr { return &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(1 + i%100)}} }
	ln, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ln)
	err = errors.Join(unix.Bind(ln, many(0)), unix.Listen(ln, 16))
	to, e := unix.Getsockname(ln)
	err = errors.Join(err, e)
	for err == nil && len(d.fds) < n {
		fd, e := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err = add(fd, e); err != nil {
			break
		}
		if kind == "sockets" {
			err = errors.Join(unix.Bind(fd, many(len(d.fds))), unix.Listen(fd, 16))
			continue
		}
		// No TIME_WAIT for each of them.
		reset := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		if err = errors.Join(reset, unix.Connect(fd, to)); err != nil {
			break
		}
		other, _, e := unix.Accept4(ln, unix.SOCK_CLOEXEC)
		err = add(other, e)
	}
	if err != nil {
		d.close()
		return nil, fmt.Errorf("%d %s: %w", n, kind, err)
	}
	for _, fd := range d.fds[n:] { // an odd number of ends
		unix.Close(fd)
	}
	d.fds = d.fds[:n]
	return d, nil
}

// passHere passes within this process, with and without package scm in turns.
func passHere(ctx context.Context, row *report.Passing, short bool) error {
	d, err := newDescriptors(row.Kind, row.Count)
	if err != nil {
		return err
	}
	defer d.close()
	bare, err := newBarePair()
	if err != nil {
		return err
	}
	defer bare.close()
	ours, err := newSCMPair()
	if err != nil {
		return err
	}
	defer ours.close()
	// With one processor no thread of the runtime sleeps in epoll_wait(2). It would be
	// woken by each message to a socket that the runtime watches, whoever sends it.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	again, batch := repetitions(row.Count, short)
	for i := range again + 1 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var times [2]time.Duration
		for j := range times {
			which := (i + j) % 2 // takes turns in who is first
			pass := bare.pass
			if which == 1 {
				pass = ours.pass
			}
			for range batch {
				took, err := passAll(d.fds, pass)
				if err != nil {
					return err
				}
				times[which] += took / time.Duration(batch)
			}
		}
		if i > 0 { // the first one warms up
			row.Bare, row.SCM = append(row.Bare, times[0]), append(row.SCM, times[1])
		}
	}
	return nil
}

// passAll passes in as many messages as it takes. What arrives is closed, which
// does not count.
func passAll(fds []int, pass func(fds, got []int) error) (sum time.Duration, err error) {
	var got [scm.MaxFDs]int
	for len(fds) > 0 {
		batch := fds[:min(len(fds), scm.MaxFDs)]
		fds = fds[len(batch):]
		began := time.Now()
		err := pass(batch, got[:])
		sum += time.Since(began)
		if err != nil {
			return sum, err
		}
		for _, fd := range got[:len(batch)] {
			unix.Close(fd)
		}
	}
	return sum, nil
}

// A barePair passes by nothing but system calls.
type barePair struct {
	fds     [2]int
	payload [64]byte
	out, in []byte
	iov     unix.Iovec
	tx, rx  unix.Msghdr
}

func newBarePair() (*barePair, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	p := &barePair{fds: fds, in: make([]byte, unix.CmsgSpace(scm.MaxFDs*4))}
	p.iov = unix.Iovec{Base: &p.payload[0], Len: uint64(len(p.payload))}
	p.tx = unix.Msghdr{Iov: &p.iov, Iovlen: 1}
	p.rx = unix.Msghdr{Iov: &p.iov, Iovlen: 1, Control: &p.in[0]}
	return p, nil
}

func (p *barePair) pass(fds, got []int) error {
	p.out = unix.UnixRights(fds...)
	p.tx.Control = &p.out[0]
	p.tx.SetControllen(len(p.out))
	p.rx.SetControllen(len(p.in))
	if err := message(unix.SYS_SENDMSG, p.fds[0], &p.tx, 0); err != nil {
		return err
	}
	if err := message(unix.SYS_RECVMSG, p.fds[1], &p.rx, unix.MSG_CMSG_CLOEXEC); err != nil {
		return err
	}
	arrived := unsafe.Slice((*int32)(unsafe.Pointer(&p.in[unix.CmsgLen(0)])), len(fds))
	for i, fd := range arrived {
		got[i] = int(fd)
	}
	return nil
}

// message is sendmsg(2) or recvmsg(2).
func message(trap uintptr, fd int, hdr *unix.Msghdr, flags uintptr) error {
	if _, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(hdr)), flags); errno != 0 {
		return errno
	}
	return nil
}

func (p *barePair) close() { unix.Close(p.fds[0]); unix.Close(p.fds[1]) }

// An scmPair passes by package scm.
type scmPair struct {
	ends    [2]*scm.Conn
	payload [64]byte
}

func newSCMPair() (*scmPair, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	p := new(scmPair)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, e := net.FileConn(f)
		err = errors.Join(err, e, f.Close())
		if e == nil {
			p.ends[i], e = scm.NewConn(c.(*net.UnixConn))
			err = errors.Join(err, e)
		}
	}
	return p, err
}

func (p *scmPair) pass(fds, got []int) error {
	ctx := context.Background()
	if err := p.ends[0].Send(ctx, p.payload[:], fds); err != nil {
		return err
	}
	_, n, err := p.ends[1].Recv(ctx, p.payload[:], got)
	if err == nil && n != len(fds) {
		err = fmt.Errorf("%d descriptors of %d have arrived", n, len(fds))
	}
	return err
}

func (p *scmPair) close() { p.ends[0].Close(); p.ends[1].Close() }

// passBetween has new processes receive what this one sends, and take over from
// each other.
func passBetween(ctx context.Context, l *lab, row *report.Passing, again int) error {
	if err := sendAgain(ctx, l, row, again); err != nil {
		return err
	}
	arrived, whole, err := takeovers(ctx, l, row.Count, again)
	row.Arrived, row.Whole = arrived, whole.Times
	return err
}

// sendAgain passes descriptors to one process after the other. All are started
// before there are any descriptors here: a process inherits the size of the
// table of descriptors from its parent, and those of a server's processes are
// small. A table that has to grow costs a thread group a grace period of RCU.
func sendAgain(ctx context.Context, l *lab, row *report.Passing, again int) error {
	var all []*receiver
	defer func() {
		for _, r := range all {
			r.close()
		}
	}()
	for i := range 2 * again {
		r, err := newReceiver(l, row.Count, i%2 == 1)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	d, err := newDescriptors(row.Kind, row.Count)
	if err != nil {
		return err
	}
	defer d.close()
	for i, r := range all {
		took, err := r.send(ctx, d.fds)
		if err != nil {
			return err
		}
		if i%2 == 0 {
			row.Between = append(row.Between, took)
		} else {
			row.Listen = append(row.Listen, took)
		}
	}
	return nil
}

// A receiver is a process that waits until it may connect and receive.
type receiver struct {
	site    *site
	process *process
	ln      *net.UnixListener
	begin   *os.File // its standard input
}

func newReceiver(l *lab, n int, listen bool) (*receiver, error) {
	name := l.unique("bare")
	r := &receiver{site: &site{lab: l, name: name, dir: l.dir}}
	var err error
	if r.ln, err = net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: l.path(name)}); err != nil {
		return nil, err
	}
	stdin, begin, err := os.Pipe()
	if err != nil {
		r.ln.Close()
		return nil, err
	}
	defer stdin.Close()
	r.begin, r.site.stdin = begin, stdin
	r.process, err = r.site.run([]string{l.path("bin/taker"), "-bare", fmt.Sprint("-listen=", listen), "-socket", l.path(name), "-n", fmt.Sprint(n)})
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// close ends the process, if it has not ended.
func (r *receiver) close() {
	r.begin.Close()
	r.ln.Close()
	r.site.stop()
}

// send passes descriptors to the process, which tells how long that took.
func (r *receiver) send(ctx context.Context, fds []int) (time.Duration, error) {
	defer r.close()
	r.begin.Close()
	r.ln.SetDeadline(time.Now().Add(patience))
	c, err := r.ln.AcceptUnix()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, r.process.tail())
	}
	defer c.Close()
	payload := make([]byte, 64)
	for len(fds) > 0 {
		batch := fds[:min(len(fds), scm.MaxFDs)]
		fds = fds[len(batch):]
		if _, _, err := c.WriteMsgUnix(payload, unix.UnixRights(batch...), nil); err != nil {
			return 0, err
		}
	}
	e, err := r.site.lab.await(ctx, r.process.done, r.site.name, 0, "took")
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, r.process.tail())
	}
	return time.Duration(e.Values[0]) * time.Microsecond, nil
}

// takeovers has new processes take over a number of listeners, one from the
// other. arrived is when the sockets were there.
func takeovers(ctx context.Context, l *lab, size, again int) (arrived []time.Duration, point report.Point, err error) {
	point.Size = size
	s := &site{lab: l, name: l.unique(fmt.Sprintf("taker-%d", size))}
	s.dir = l.path(s.name)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return arrived, point, err
	}
	defer os.RemoveAll(s.dir)
	var last *process
	defer func() {
		if last != nil {
			kill([]int{last.pid()})
			<-last.done
		}
	}()
	for i := range again + 1 {
		if err := s.next(); err != nil {
			return arrived, point, err
		}
		p, err := s.run([]string{l.path("bin/taker"), "-socket", s.path("socket"), "-n", fmt.Sprint(size)})
		if err != nil {
			return arrived, point, err
		}
		e, err := l.await(ctx, p.done, s.name, s.generation, "took")
		if err != nil {
			kill([]int{p.pid()})
			return arrived, point, fmt.Errorf("%w: %s", err, p.tail())
		}
		if i > 0 { // the first one has made them
			arrived = append(arrived, time.Duration(e.Values[0])*time.Microsecond)
			point.Times = append(point.Times, time.Duration(e.Values[2])*time.Microsecond)
			if err := last.await(ctx); err != nil {
				kill([]int{p.pid()})
				return arrived, point, err
			}
		}
		last = p
	}
	return arrived, point, nil
}
