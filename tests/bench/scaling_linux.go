package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/tests/bench/report"
)

// headroom is how many descriptors a process needs for itself.
const headroom = 600

// maxDescriptors is how many a process may have: RLIMIT_NOFILE, which the Go
// runtime raises to the hard limit.
func maxDescriptors() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 1024
	}
	return int(min(r.Max, 1<<20))
}

// measureTakeovers takes over more and more sockets.
func measureTakeovers(ctx context.Context, l *lab, short bool) (all []report.Point, err error) {
	sizes, again := []int{1, 10, 100, 300, 1000, 3000, 10_000}, 7
	if short {
		sizes, again = []int{1, 300}, 2
	}
	for _, n := range sizes {
		_, p, err := takeovers(ctx, l, n, again)
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		if err != nil {
			p.Error = err.Error()
		}
		all = append(all, p)
	}
	return all, nil
}

// measureMoves moves more and more idle connections.
func measureMoves(ctx context.Context, l *lab, short bool) (all []report.Point, err error) {
	sizes, again := []int{100, 300, 1000, 3000, 10_000, 20_000}, 5
	if short {
		sizes, again = []int{100, 500}, 1
	}
	for _, n := range sizes {
		n = min(n, maxDescriptors()-headroom)
		p, err := moves(ctx, l, n, again)
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		if err != nil {
			p.Error = err.Error()
		}
		all = append(all, p)
	}
	return all, nil
}

// moves has idle connections move from generation to generation, and checks
// that each one is alive in the end.
func moves(ctx context.Context, l *lab, size, again int) (report.Point, error) {
	point := report.Point{Size: size}
	s := &spawned{site: site{lab: l, name: l.unique(fmt.Sprintf("mover-%d", size))}, argv: func(s *site) []string {
		return []string{s.lab.path("bin/library"), "-socket", s.path("socket"), "-listen", s.addr, "-probation", "-1ns"}
	}}
	if err := s.start(ctx); err != nil {
		return point, err
	}
	defer s.stop()
	conns, err := dialMany(s.addr, size)
	defer closeMany(conns)
	if err != nil {
		return point, err
	}
	for range again {
		old, generation := s.current, s.generation
		if err := s.upgrade(ctx, &upgrading{trigger: func() {}}); err != nil {
			return point, err
		}
		began, err := l.await(ctx, old.done, s.name, generation, "superseded")
		if err != nil {
			return point, err
		}
		ended, err := l.await(ctx, old.done, s.name, generation, "stopped")
		if err != nil {
			return point, err
		}
		if moved := ended.Values[0]; moved != size {
			return point, fmt.Errorf("%d connections of %d have moved", moved, size)
		}
		point.Times = append(point.Times, time.Duration(ended.At-began.At))
		if err := old.await(ctx); err != nil {
			return point, err
		}
		if err := s.awaitAnswer(ctx); err != nil {
			return point, err
		}
	}
	return point, askMany(conns)
}

var idleRequest = []byte("GET /echo HTTP/1.1\r\nHost: bench\r\n\r\n")

// dialMany makes connections, and a request on each of them.
func dialMany(addr string, n int) (conns []*net.TCPConn, err error) {
	for len(conns) < n {
		// More than one address, since one has not enough ports.
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+len(conns)%8))}, Timeout: patience, KeepAlive: -1}
		c, err := d.Dial("tcp", addr)
		if err != nil {
			return conns, err
		}
		conns = append(conns, c.(*net.TCPConn))
		if err := askMany(conns[len(conns)-1:]); err != nil {
			return conns, err
		}
	}
	return conns, nil
}

// askMany makes a request on each connection.
func askMany(conns []*net.TCPConn) error {
	b := make([]byte, 4096)
	for i, c := range conns {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(idleRequest); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		// The whole answer is small enough to come at once.
		if n, err := c.Read(b); err != nil || n < 12 || string(b[9:12]) != "200" {
			return fmt.Errorf("connection %d: %w: %q", i, errors.Join(err, io.ErrUnexpectedEOF), b[:n])
		}
	}
	return nil
}

// closeMany closes without TIME_WAIT, so that the ports are free again.
func closeMany(conns []*net.TCPConn) {
	for _, c := range conns {
		c.SetLinger(0)
		c.Close()
	}
}
