package child

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

const (
	minProbePause = 50 * time.Millisecond
	maxProbePause = time.Second
	// otherPause follows an answer of another process on the same socket. Some
	// servers' workers accept by turns of many connections each (EPOLLEXCLUSIVE),
	// so that it may take dozens of them until it is the new one's.
	otherPause = 20 * time.Millisecond
)

// probe waits until the program is ready, or ctx ends. failed is told why an
// attempt failed. Notifications are not probed for.
func (p *Program) probe(ctx context.Context, pid int, failed func(error)) error {
	r := p.cfg.Ready
	orDefault(&r.ProbeTimeout, DefaultProbeTimeout)
	var attempt func(ctx context.Context) error
	switch r.kind {
	case readyNone:
		return nil
	case readyDelay:
		return pause(ctx, r.delay)
	case readyNotify:
		<-ctx.Done()
		return ctx.Err()
	case readyHTTP:
		attempt = func(ctx context.Context) error { return probeHTTP(ctx, r.url, pid) }
	case readyTCP:
		attempt = func(ctx context.Context) error { return probeTCP(ctx, r.addr) }
	case readyExec:
		attempt = func(ctx context.Context) error { return p.probeExec(ctx, r.words, pid) }
	}
	for next := minProbePause; ; {
		limited, cancel := context.WithTimeout(ctx, r.ProbeTimeout)
		err := attempt(limited)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			failed(err)
		}
		wait := otherPause
		if !errors.Is(err, errOtherAnswered) {
			wait, next = next, min(2*next, maxProbePause)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func probeTCP(ctx context.Context, addr string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}

// probeHTTP makes one request on a connection of its own. It uses no
// http.Client: who accepts the connection is looked at before the request is
// sent, and while the answer arrives.
func probeHTTP(ctx context.Context, url string, pid int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "handoverd-readiness")
	port := req.URL.Port()
	orDefault(&port, "80")
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(req.URL.Hostname(), port))
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	who, err := awaitAcceptor(ctx, c, pid)
	if err != nil {
		return err
	}
	if err := req.Write(c); err != nil {
		return err
	}
	resp, err := readAnswer(c, req)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	defer resp.Body.Close()
	if who == notAccepted { // when the request was sent
		who = acceptor(c, pid)
	}
	switch who {
	case acceptedByOther:
		return errOtherAnswered
	case notAccepted:
		return errAnswerUnclear
	}
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("answer: %s", resp.Status)
	}
	return nil
}

// readAnswer reads the head of the answer, after those that are preliminary.
func readAnswer(c net.Conn, req *http.Request) (*http.Response, error) {
	in := bufio.NewReader(io.LimitReader(c, 1<<20))
	for {
		resp, err := http.ReadResponse(in, req)
		if err != nil || resp.StatusCode >= 200 {
			return resp, err
		}
		resp.Body.Close()
	}
}

// probeExec runs a command once. It has a process group of its own, which is
// killed at the end of ctx.
func (p *Program) probeExec(ctx context.Context, words []string, pid int) error {
	path, err := lookup(words[0], p.cfg.Dir, p.cfg.Env)
	if err != nil {
		return err
	}
	env := append(p.cfg.inherited(nil), "MAINPID="+strconv.Itoa(pid))
	cmd := exec.CommandContext(ctx, path)
	cmd.Args, cmd.Dir, cmd.Env = words, p.cfg.Dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	release, err := Own(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		return err
	}
	err = cmd.Wait()
	release()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: not done in time", words[0])
	}
	if err != nil {
		return fmt.Errorf("%s: %w", words[0], err)
	}
	return nil
}
