package child

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A phase is where a program is in its life.
type phase int

const (
	phaseStarting phase = iota // a process is being made
	phaseUp                    // it runs
	phaseReady                 // and serves
	phasePausing               // it died, and will be started again
	phaseEnded
)

// killTime bounds how long Stop waits for a process that was killed: one that
// hangs in the kernel does not die.
const killTime = 5 * time.Second

// A Program is one that was started by Start. One goroutine, run, makes all
// transitions; the methods may be called from any.
type Program struct {
	cfg    Config
	notify *notifier // or nil
	thread *thread
	work   sync.WaitGroup // of all goroutines but run
	calls  chan func()    // that run runs
	ready  chan struct{}  // closed when it is ready for the first time
	late   chan struct{}  // closed when it is not in time
	done   chan struct{}  // closed at the end

	mu       sync.Mutex
	current  *instance // the process that runs, if any
	mainPID  int
	restarts int
	lateErr  error  // when late is closed
	err      error  // when done is closed
	report   Report // when done is closed

	life // of run alone
}

// life is what only run uses.
type life struct {
	phase      phase
	inst       *instance
	supervised bool
	failures   int // in a row
	early      []notification

	spawned     chan spawned // the outcome of phaseStarting
	cancelSpawn context.CancelFunc
	probed      chan error             // the outcome of the probe of inst
	probeErr    *atomic.Pointer[error] // why it has not succeeded so far
	cancelProbe context.CancelFunc

	readyTimer, restartTimer, killTimer alarm

	stopping  bool
	stopAsked time.Time
	killed    bool
}

type spawned struct {
	inst *instance
	err  error
}

// An alarm is a timer that may be off. The zero value is.
type alarm struct {
	timer *time.Timer
	at    time.Time
}

func (a *alarm) set(d time.Duration) {
	a.clear()
	a.timer, a.at = time.NewTimer(d), time.Now().Add(d)
}

// extend makes the alarm go off not before d from now, if it is on.
func (a *alarm) extend(d time.Duration) {
	if a.timer != nil && time.Until(a.at) < d {
		a.set(d)
	}
}

func (a *alarm) clear() {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.timer = nil
}

func (a *alarm) c() <-chan time.Time {
	if a.timer == nil {
		return nil
	}
	return a.timer.C
}

// Start starts the program, and returns when the kernel has executed it. ctx
// is for that alone. A command that is not found is an *exec.Error with
// exec.ErrNotFound, one that cannot be executed an *fs.PathError. When Start
// fails nothing is left running.
//
// A Program has to be stopped, or waited for until Done.
func Start(ctx context.Context, cfg Config) (*Program, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	// What is wrong with the customs is told before anything else.
	if _, _, err := cfg.environment(0, nil); err != nil {
		return nil, err
	}
	p := &Program{
		cfg: cfg, thread: newThread(), calls: make(chan func()),
		ready: make(chan struct{}), late: make(chan struct{}), done: make(chan struct{}),
	}
	if cfg.Ready.kind == readyNotify {
		if p.notify, err = newNotifier(p.belongs, p.ignored); err != nil {
			p.thread.close()
			return nil, err
		}
	}
	inst, err := p.spawn(ctx, p.setCurrent)
	if err != nil {
		p.release()
		return nil, err
	}
	go p.run(inst)
	return p, nil
}

// release frees what a program without a process still has.
func (p *Program) release() {
	p.notify.close()
	p.thread.close()
	p.work.Wait()
}

// belongs gives the program's pid if that process is it or a descendant of it,
// else 0.
func (p *Program) belongs(pid int) (root int) {
	root = p.PID()
	if root == 0 || !descends(pid, root) {
		return 0
	}
	return root
}

func (p *Program) ignored(pid int) {
	p.cfg.Logger.Debug("notification of another process ignored", "sender", pid, "pid", p.PID())
}

// setCurrent notes the process, from before it executes the program, so that
// nothing that it says is missed.
func (p *Program) setCurrent(inst *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current, p.mainPID = inst, inst.pid
}

// PID is the pid of the program, or 0 if it does not run.
func (p *Program) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return 0
	}
	return p.current.pid
}

// MainPID is PID, or what the program said with MAINPID= since. Signals and
// supervision stay with PID.
func (p *Program) MainPID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return 0
	}
	return p.mainPID
}

// Restarts is how often the program was started again.
func (p *Program) Restarts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.restarts
}

// Done is closed when the program has ended for good, and nothing of it is left.
func (p *Program) Done() <-chan struct{} { return p.done }

// Err is why the program ended, after Done: nil if it was stopped, a
// *DeathError if it ended by itself.
func (p *Program) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Report is how the program ended, after Done.
func (p *Program) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report
}

// Ready waits until the program is ready. The error is a *DeathError if it
// ended, ErrNotReady if it still runs but was not ready in time (it may yet
// become so, and should be stopped), or that of ctx.
func (p *Program) Ready(ctx context.Context) error {
	for range 2 { // of several that have happened, the end counts, then readiness
		select {
		case <-p.done:
			if err := p.Err(); err != nil {
				return err
			}
			return ErrNotRunning // it was stopped
		default:
		}
		select {
		case <-p.ready:
			return nil
		default:
		}
		select {
		case <-p.done:
		case <-p.ready:
		case <-p.late:
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.lateErr
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ErrNotRunning
}

// Supervise makes every further death lead to a restart, as Config says. It
// fails if the program has ended.
func (p *Program) Supervise() error {
	if p.call(func() { p.supervised = true }) {
		return nil
	}
	return errors.Join(ErrNotRunning, p.Err())
}

// Signal sends a signal to the program's own process.
func (p *Program) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	inst := p.current
	p.mu.Unlock()
	if inst == nil {
		return ErrNotRunning
	}
	return inst.signal(sig)
}

// Stop sends StopSignal, after StopTimeout or when ctx ends SIGKILL to the
// whole process group, and waits for the end. There is no restart any more. It
// may be called more than once, and says each time how the program ended. It
// fails only if a killed process does not die within 5 s.
func (p *Program) Stop(ctx context.Context) (Report, error) {
	p.call(p.stop)
	select {
	case <-p.done:
		return p.Report(), nil
	case <-ctx.Done():
	}
	p.call(p.kill)
	t := time.NewTimer(killTime)
	defer t.Stop()
	select {
	case <-p.done:
		return p.Report(), nil
	case <-t.C:
		return Report{Killed: true}, fmt.Errorf("process %d was killed and does not end", p.PID())
	}
}

// call has run run f. It is false if that has ended.
func (p *Program) call(f func()) bool {
	ran := make(chan struct{})
	select {
	case p.calls <- func() { defer close(ran); f() }:
		<-ran
		return true
	case <-p.done:
		return false
	}
}
