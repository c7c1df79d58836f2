package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/tests/bench/report"
)

// steadyServers are compared with the first one. The second is the first one
// once more: how it differs is noise. The first ones are modes of one binary,
// since where the linker has put the same code makes a difference of its own.
func steadyServers(withGrace bool) []steadyServer {
	all := []steadyServer{
		{"net/http", library("none")},
		{"net/http again", library("none")},
		{"handover and http.Server", library("shutdown")},
		{"handover and server", library("server")},
		{"net/http in a binary of its own", func(s *site) []string { return []string{s.lab.path("bin/plain"), "-listen", s.addr} }},
	}
	if withGrace {
		all = append(all, steadyServer{"httpdown", func(s *site) []string { return []string{s.lab.path("bin/grace"), "-listen", s.addr} }})
	}
	return all
}

type steadyServer struct {
	name string
	argv func(s *site) []string
}

// startSteady starts one of them.
func (v steadyServer) start(ctx context.Context, l *lab) (*spawned, error) {
	s := &spawned{site: site{lab: l, name: l.unique("steady")}, argv: v.argv}
	err := s.start(ctx)
	return s, err
}

// measureSteady has servers take short turns.
func measureSteady(ctx context.Context, l *lab, withGrace, short bool) ([]report.Steady, error) {
	turns, turn, clients := 400, 50*time.Millisecond, 32
	if short {
		turns, turn, clients = 2, 50*time.Millisecond, 8
	}
	servers := steadyServers(withGrace)
	all := make([]report.Steady, len(servers))
	hammers := make([]*hammer, len(servers))
	for i, v := range servers {
		all[i].Name = v.name
		s, err := v.start(ctx, l)
		if err != nil {
			return nil, err
		}
		defer s.stop()
		if hammers[i], err = newHammer(s.addr, s.current.pid(), clients); err != nil {
			return nil, err
		}
		defer hammers[i].close()
	}
	for n := range turns + 1 {
		for k := range servers {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			i := (n + k) % len(servers)
			rate, cost, err := hammers[i].measure(turn)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", servers[i].name, err)
			}
			if n > 0 { // the first turn warms up
				all[i].Rates, all[i].Costs = append(all[i].Rates, rate), append(all[i].Costs, cost)
			}
		}
	}
	return all, nil
}

// A hammer makes requests at the least expense, so that the server's counts: one
// thread, non-blocking sockets, epoll(7).
type hammer struct {
	pid   int // of the server
	epoll int
	conns []int
	seen  []int // of each connection: bytes of headEnd that have just come
	buf   []byte
}

var headEnd = []byte("\r\n\r\n") // after which nothing comes, since the body is empty

func newHammer(addr string, pid, clients int) (_ *hammer, err error) {
	h := &hammer{pid: pid, buf: make([]byte, 4096)}
	if h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	tcp, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	to := &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}
	for i := range clients {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			h.close()
			return nil, os.NewSyscallError("socket", err)
		}
		h.conns, h.seen = append(h.conns, fd), append(h.seen, 0)
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.Connect(fd, to), unix.SetNonblock(fd, true),
			unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &ev))
		if err != nil {
			h.close()
			return nil, err
		}
	}
	return h, nil
}

func (h *hammer) close() {
	for _, fd := range h.conns {
		unix.Close(fd)
	}
	unix.Close(h.epoll)
}

// measure makes requests for a while and tells the requests per second and the
// server's CPU time for each, in nanoseconds.
func (h *hammer) measure(d time.Duration) (rate, cost float64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := cpuTime(h.pid)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	n, err := h.swing(began.Add(d))
	took := time.Since(began)
	if err != nil {
		return 0, 0, err
	}
	after, err := cpuTime(h.pid)
	if err != nil {
		return 0, 0, err
	}
	if n == 0 {
		return 0, 0, errors.New("no request was answered")
	}
	return float64(n) / took.Seconds(), float64(after-before) / float64(n), nil
}

// swing has a request under way on each connection until the deadline, and
// returns when all are answered.
func (h *hammer) swing(deadline time.Time) (answers int, err error) {
	for i := range h.conns {
		if err := h.send(i); err != nil {
			return 0, err
		}
	}
	events := make([]unix.EpollEvent, len(h.conns))
	for under := len(h.conns); under > 0; {
		n, err := unix.EpollWait(h.epoll, events, int(patience/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return answers, os.NewSyscallError("epoll_wait", err)
		}
		if n == 0 {
			return answers, fmt.Errorf("no answer within %v", patience)
		}
		over := time.Now().After(deadline)
		for _, ev := range events[:n] {
			done, err := h.receive(int(ev.Fd))
			if err != nil {
				return answers, err
			}
			if !done {
				continue
			}
			answers++
			if over {
				under--
			} else if err := h.send(int(ev.Fd)); err != nil {
				return answers, err
			}
		}
	}
	return answers, nil
}

func (h *hammer) send(i int) error {
	n, err := unix.Write(h.conns[i], idleRequest)
	if err == nil && n < len(idleRequest) {
		err = errors.New("a request does not fit into the socket")
	}
	return err
}

// receive reads what has come on a connection, and tells whether that is the end
// of an answer.
func (h *hammer) receive(i int) (done bool, err error) {
	n, err := unix.Read(h.conns[i], h.buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return false, nil
	case err != nil:
		return false, os.NewSyscallError("read", err)
	case n == 0:
		return false, errors.New("the server has closed a connection")
	}
	for _, b := range h.buf[:n] {
		switch {
		case b == headEnd[h.seen[i]]:
			h.seen[i]++
		case b == headEnd[0]:
			h.seen[i] = 1
		default:
			h.seen[i] = 0
		}
		if h.seen[i] == len(headEnd) {
			h.seen[i], done = 0, true
		}
	}
	return done, nil
}

// measureIdle tells the memory that idle connections cost a server's process.
func measureIdle(ctx context.Context, l *lab, withGrace, short bool) ([]report.Idle, error) {
	n, again := 4000, 3
	if short {
		n, again = 200, 1
	}
	var all []report.Idle
	for _, v := range steadyServers(withGrace) {
		all = append(all, report.Idle{Name: v.name, Connections: n})
	}
	for range again {
		for i, v := range steadyServers(withGrace) {
			bytes, err := idleMemory(ctx, l, v, n)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
			all[i].Bytes = append(all[i].Bytes, bytes)
		}
	}
	return all, nil
}

// idleMemory is the resident memory of a new process with idle connections, less
// what it has without, for each of them.
func idleMemory(ctx context.Context, l *lab, v steadyServer, n int) (float64, error) {
	s, err := v.start(ctx, l)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	resident := func() (int64, error) {
		_, err := s.ask(ctx, "/gc")
		return memoryOf(s.current.pid(), "status", "VmRSS:"), err
	}
	// Once for what does not come again.
	first, err := dialMany(s.addr, 64)
	closeMany(first)
	if err != nil {
		return 0, err
	}
	before, err := resident()
	if err != nil {
		return 0, err
	}
	conns, err := dialMany(s.addr, n)
	defer closeMany(conns)
	if err != nil {
		return 0, err
	}
	after, err := resident()
	return float64(after-before) / float64(n), err
}
