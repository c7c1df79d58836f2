package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/child"
)

// program is the service of another program, which inherits the sockets and
// accepts for itself. Nothing is between it and its clients.
type program struct {
	a       *app
	sockets []child.Socket

	running  atomic.Pointer[child.Program] // set by prepare; signals come at any time
	stopping atomic.Bool
	watched  chan struct{} // closed when nobody watches the program any more
	report   programReport
}

func newProgram(a *app) (*program, error) { return &program{a: a}, nil }

func (*program) begin() error               { return nil }
func (*program) check(string, string) error { return nil }
func (*program) stats() handover.Stats      { return handover.Stats{} }

// take claims a socket for the program.
func (p *program) take(l listenSpec, _ bool) error {
	s, err := p.a.hold(l)
	if err == nil {
		p.sockets = append(p.sockets, child.Socket{Name: s.Name, Network: s.Network, Address: s.Address, Duplicate: s.Duplicate})
	}
	return err
}

// prepare starts the program and waits until it is ready. Until ownership is
// ours the predecessor's program serves beside it.
func (p *program) prepare(ctx context.Context) error {
	o := p.a.opts
	c, err := child.Start(ctx, child.Config{
		Argv:    o.argv,
		Env:     append(os.Environ(), fmt.Sprintf("HANDOVERD_GENERATION=%d", p.a.gen.Number())),
		Sockets: p.sockets, Customs: o.customs.all, Generation: p.a.gen.Number(),
		Ready: o.ready.Readiness, ReadyTimeout: time.Duration(o.readyTimeout),
		StopSignal: o.stopSignal.signal, StopTimeout: o.drainTimeout.orNone(),
		Restart: o.restartPolicy(), Logger: p.a.log,
	})
	if err != nil {
		return err
	}
	p.running.Store(c)
	return c.Ready(ctx)
}

// owned has the program started again whenever it ends, from now on.
func (p *program) owned() {
	p.watched = make(chan struct{})
	if err := p.running.Load().Supervise(); err != nil {
		p.a.log.Warn("the program has ended already", "error", err)
	}
	go p.watch()
}

// watch ends this process when the program has ended for good by itself.
func (p *program) watch() {
	defer close(p.watched)
	c := p.running.Load()
	<-c.Done()
	if p.stopping.Load() {
		return
	}
	err := c.Err()
	if err == nil {
		err = errors.New("the program has ended")
	}
	p.a.fail(codeError{err, exitOf(c.Report())})
}

// exitOf is the exit code that the program's end gives to this process.
func exitOf(r child.Report) int {
	if r.Exit == nil {
		return exitFailure
	}
	return r.Exit.Code()
}

// drain has the program stop in its own way.
func (p *program) drain(ctx context.Context) report {
	p.stopping.Store(true)
	r, err := p.running.Load().Stop(ctx)
	if err == nil { // else it never ends
		<-p.watched
	}
	p.report = programReport{Killed: r.Killed, Took: r.Took}
	switch {
	case err != nil:
		p.report.Program = err.Error()
	case r.Exit == nil:
		p.report.Program = "did not run"
	default:
		p.report.Program = r.Exit.String()
		if r.Exit.Signal != p.stopSignal() {
			p.report.code = r.Exit.Code()
		}
	}
	return p.report
}

func (p *program) stopSignal() syscall.Signal {
	if s := p.a.opts.stopSignal.signal; s != 0 {
		return s
	}
	return syscall.SIGTERM
}

// outcome passes the program's exit code on, if a stop was asked for. Who was
// superseded has done what it was there for, and an engine that restarts what
// fails had better leave it alone.
func (p *program) outcome() error {
	if p.report.code == 0 || !errors.Is(p.a.gen.Cause(), handover.ErrStopRequested) {
		return nil
	}
	return codeError{fmt.Errorf("the program ended with %s", p.report.Program), p.report.code}
}

// abandon stops a program that never came to own its sockets. It may have
// accepted connections, so it is asked first.
func (p *program) abandon() {
	c := p.running.Load()
	if c == nil {
		return
	}
	p.stopping.Store(true)
	if _, err := c.Stop(context.Background()); err != nil {
		p.a.log.Warn("the program was not stopped", "error", err)
	}
}

func (*program) close() {}

// signal passes a signal on to the program.
func (p *program) signal(sig syscall.Signal) {
	c := p.running.Load()
	if c == nil {
		return
	}
	if err := c.Signal(sig); err != nil && !errors.Is(err, child.ErrNotRunning) {
		p.a.log.Warn("signal not passed on", "signal", sig.String(), "error", err)
	}
}

// programReport is how a program ended.
type programReport struct {
	Program string        `json:"program"`
	Killed  bool          `json:"killed,omitempty"`
	Took    time.Duration `json:"took_ns"`
	code    int
}

// Clean tells whether it stopped in time.
func (r programReport) Clean() bool { return !r.Killed }

func (r programReport) String() string {
	text := "its program ended after " + short(r.Took) + ": " + r.Program
	if r.Killed {
		text += ", since it did not stop in time"
	}
	return text
}

// programReportText is such a report of another generation, or "".
func programReportText(report json.RawMessage) string {
	var r programReport
	if json.Unmarshal(report, &r) != nil || r.Program == "" {
		return ""
	}
	return r.String()
}
