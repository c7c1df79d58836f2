package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A service is a server that can be upgraded, again and again, at one address.
type service interface {
	// start starts generation 1 and returns when it answers.
	start(ctx context.Context) error
	// upgrade has the next generation take the place of this one. It calls
	// u.trigger at the moment at which an operator would say so, and returns when
	// an operator would have nothing more to do.
	upgrade(ctx context.Context, u *upgrading) error
	// members are the processes of the generation that serves, and leaving those
	// of them that an upgrade ends.
	members() []int
	leaving() []int
	// stop ends all processes.
	stop()
	// base is what all services have.
	base() *site
}

// upgrading is an upgrade under way.
type upgrading struct {
	trigger func()
	served  <-chan struct{} // closed when the new generation has answered
}

// awaitServed waits until the new generation has answered.
func (u *upgrading) awaitServed(ctx context.Context) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-u.served:
		return nil
	case <-timeout.C:
		return fmt.Errorf("the new generation does not answer within %v", patience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A site is where the generations of a service live.
type site struct {
	lab        *lab
	name       string
	dir        string
	addr       string
	tls        bool
	generation int
	current    *process // that was started last
	detaches   bool     // it ends at once, and what serves is a child of it
	stdin      *os.File // of processes that are started
}

func (s *site) base() *site { return s }

// setUp makes the directory, finds an address, and begins with generation 1.
func (s *site) setUp() (err error) {
	if s.dir == "" {
		s.dir = s.lab.path(s.name)
		if err := os.MkdirAll(s.dir, 0o755); err != nil {
			return err
		}
	}
	if s.addr, err = s.lab.freePort(); err != nil {
		return err
	}
	return s.next()
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// next counts the generation up, for the processes that start from now on.
func (s *site) next() error {
	s.generation++
	return os.WriteFile(s.path("generation"), []byte(strconv.Itoa(s.generation)), 0o644)
}

// run starts a program of this service.
func (s *site) run(argv []string) (*process, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	if !strings.Contains(argv[0], "/") {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			return nil, err
		}
		// nginx executes what it is called, without looking for it.
		cmd.Path, cmd.Args[0] = path, path
	}
	cmd.Dir = s.dir
	if s.stdin != nil {
		cmd.Stdin = s.stdin
	}
	cmd.Env = append(os.Environ(), "BENCH_EVENTS="+s.lab.path("events"), "BENCH_SITE="+s.name, "BENCH_GENERATION="+s.path("generation"))
	if s.tls {
		cmd.Env = append(cmd.Env, "BENCH_CERT="+s.lab.cert, "BENCH_KEY="+s.lab.key)
	}
	p, err := s.lab.start(cmd, s.path("log"))
	if err == nil {
		s.current = p
	}
	return p, err
}

// awaitAnswer waits until this generation answers.
func (s *site) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		var got int
		if got, err = s.ask(ctx, "/echo"); err == nil && got == s.generation {
			return nil
		}
		ended := s.current.done
		if s.detaches {
			ended = nil
		}
		select {
		case <-ended:
			return fmt.Errorf("%s has ended: %s", s.name, s.current.tail())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return fmt.Errorf("generation %d of %s does not answer: %w: %s", s.generation, s.name, errors.Join(ctx.Err(), err), s.current.tail())
}

// ask makes one request on a connection of its own and returns which generation
// has answered.
func (s *site) ask(ctx context.Context, path string) (generation int, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 200)}, Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if s.tls {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // our own, made a moment ago
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n", path); err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return 0, err
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %d", res.StatusCode)
	}
	return strconv.Atoi(res.Header.Get("Handoverd-Generation"))
}

// stop ends all processes.
func (s *site) stop() {
	if s.current == nil {
		return
	}
	all := tree(s.current.pid())
	kill(all)
	<-s.current.done
	s.lab.reap(all)
}

// spawned is a service whose next generation is a process that is started beside
// this one, as an engine or a supervisor does.
type spawned struct {
	site
	argv   func(s *site) []string
	before func(ctx context.Context, old *process) error               // after the trigger, before the start
	after  func(ctx context.Context, old *process, u *upgrading) error // after the start
}

func (s *spawned) start(ctx context.Context) error {
	if err := s.setUp(); err != nil {
		return err
	}
	if _, err := s.run(s.argv(&s.site)); err != nil {
		return err
	}
	return s.awaitAnswer(ctx)
}

func (s *spawned) upgrade(ctx context.Context, u *upgrading) error {
	old := s.current
	if err := s.next(); err != nil {
		return err
	}
	u.trigger()
	if s.before != nil {
		if err := s.before(ctx, old); err != nil {
			return err
		}
	}
	if _, err := s.run(s.argv(&s.site)); err != nil {
		return err
	}
	if s.after != nil {
		return s.after(ctx, old, u)
	}
	return nil
}

func (s *spawned) members() []int { return tree(s.current.pid()) }
func (s *spawned) leaving() []int { return s.members() }

// terminate has a process drain.
func terminate(p *process) error { return p.cmd.Process.Signal(syscall.SIGTERM) }

// terminateAndWait is how a service manager restarts.
func terminateAndWait(ctx context.Context, old *process) error {
	if err := terminate(old); err != nil {
		return err
	}
	return old.await(ctx)
}

// terminateWhenServed is how two that listen side by side are exchanged.
func terminateWhenServed(ctx context.Context, old *process, u *upgrading) error {
	if err := u.awaitServed(ctx); err != nil {
		return err
	}
	return terminate(old)
}

// signalled is a service that makes its next generation itself, on a signal.
type signalled struct {
	site
	command func(s *site) []string
	signal  syscall.Signal
	prepare func(s *site) error                      // before the first start and each trigger
	main    func(ctx context.Context) (int, error)   // the process that gets signals, of the generation that serves
	after   func(ctx context.Context, old int) error // once the new generation has answered
	stays   bool                                     // the main process does

	pid int
}

func (s *signalled) start(ctx context.Context) error {
	if err := s.setUp(); err != nil {
		return err
	}
	return s.begin(ctx)
}

func (s *signalled) begin(ctx context.Context) (err error) {
	if s.prepare != nil {
		if err := s.prepare(&s.site); err != nil {
			return err
		}
	}
	if _, err = s.run(s.command(&s.site)); err != nil {
		return err
	}
	if err = s.awaitAnswer(ctx); err != nil {
		return err
	}
	s.pid, err = s.main(ctx)
	return err
}

func (s *signalled) upgrade(ctx context.Context, u *upgrading) (err error) {
	if err := s.next(); err != nil {
		return err
	}
	if s.prepare != nil {
		if err := s.prepare(&s.site); err != nil {
			return err
		}
	}
	old := s.pid
	u.trigger()
	if err := syscall.Kill(old, s.signal); err != nil {
		return err
	}
	if err := u.awaitServed(ctx); err != nil {
		return err
	}
	if s.after != nil {
		if err := s.after(ctx, old); err != nil {
			return err
		}
	}
	s.pid, err = s.main(ctx)
	return err
}

func (s *signalled) members() []int { return tree(s.pid) }

func (s *signalled) leaving() []int {
	all := s.members()
	if s.stays {
		all = slices.DeleteFunc(all, func(pid int) bool { return pid == s.pid })
	}
	return all
}

func (s *signalled) stop() {
	if s.current == nil {
		return
	}
	all := append(s.members(), s.current.pid())
	kill(all)
	s.lab.reap(all)
}

// pidFile waits until a file names a process other than the one that left.
func pidFile(ctx context.Context, name string, not int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		if b, err := os.ReadFile(name); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid != not {
				return pid, nil
			}
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
		}
	}
	return 0, fmt.Errorf("%s names no new process: %w", name, ctx.Err())
}
