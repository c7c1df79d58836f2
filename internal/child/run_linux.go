package child

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
)

// run makes every transition.
func (p *Program) run(inst *instance) {
	p.adopt(inst)
	for p.phase != phaseEnded {
		select {
		case f := <-p.calls:
			f()
		case s := <-p.spawned:
			p.onSpawned(s)
		case <-p.exited():
			p.onExited()
		case err := <-p.probed:
			p.onProbed(err)
		case n := <-p.notifications():
			p.onNotification(n)
			close(n.took)
		case <-p.readyTimer.c():
			p.onLate()
		case <-p.restartTimer.c():
			p.restartTimer.clear()
			p.start()
		case <-p.killTimer.c():
			p.kill()
		}
	}
	p.readyTimer.clear()
	p.restartTimer.clear()
	p.killTimer.clear()
	p.notify.close()
	p.thread.close()
	p.work.Wait()
	close(p.done)
}

func (p *Program) exited() <-chan struct{} {
	if p.inst == nil {
		return nil
	}
	return p.inst.exited
}

func (p *Program) notifications() <-chan notification {
	if p.notify == nil {
		return nil
	}
	return p.notify.got
}

// start begins to make a process; onSpawned gets it.
func (p *Program) start() {
	p.phase = phaseStarting
	var ctx context.Context
	ctx, p.cancelSpawn = context.WithCancel(context.Background())
	result := make(chan spawned, 1)
	p.spawned = result
	p.work.Go(func() {
		inst, err := p.spawn(ctx, p.setCurrent)
		result <- spawned{inst, err}
	})
}

func (p *Program) onSpawned(s spawned) {
	p.cancelSpawn()
	p.spawned = nil
	early := p.early
	p.early = nil
	switch {
	case s.err == nil:
		p.mu.Lock()
		p.restarts++
		p.mu.Unlock()
		p.adopt(s.inst)
		for _, n := range early {
			p.onNotification(n)
		}
		if p.stopping && p.phase != phaseEnded {
			p.askToStop()
		}
	case p.stopping:
		p.clearCurrent()
		p.end(nil, nil)
	default:
		p.clearCurrent()
		p.emit(Event{Kind: EventFailed, Err: s.err})
		p.again(s.err)
	}
}

// adopt makes inst the process that runs.
func (p *Program) adopt(inst *instance) {
	p.inst, p.phase = inst, phaseUp
	p.emit(Event{Kind: EventStarted, PID: inst.pid})
	var ctx context.Context
	ctx, p.cancelProbe = context.WithCancel(context.Background())
	if p.cfg.ReadyTimeout > 0 {
		p.readyTimer.set(p.cfg.ReadyTimeout)
	}
	result, failed := make(chan error, 1), new(atomic.Pointer[error])
	p.probed, p.probeErr = result, failed
	p.work.Go(func() {
		result <- p.probe(ctx, inst.pid, func(err error) { failed.Store(&err) })
	})
}

// onProbed: an error only means that the probe was cancelled.
func (p *Program) onProbed(err error) {
	p.probed = nil
	if err == nil {
		p.becomeReady()
	}
}

func (p *Program) becomeReady() {
	if p.phase != phaseUp || p.stopping {
		return
	}
	p.phase = phaseReady
	p.readyTimer.clear()
	p.cancelProbe()
	p.emit(Event{Kind: EventReady, PID: p.inst.pid, Took: time.Since(p.inst.started)})
	select {
	case <-p.ready:
	default:
		close(p.ready)
	}
}

// onLate: the time to get ready is up. At the first start whoever waits in
// Ready decides; after a restart such a process is replaced as a dead one.
func (p *Program) onLate() {
	p.readyTimer.clear()
	err := fmt.Errorf("%w after %v", ErrNotReady, time.Since(p.inst.started).Round(time.Millisecond))
	if last := p.probeErr.Load(); last != nil {
		err = fmt.Errorf("%w: %w", err, *last)
	}
	p.emit(Event{Kind: EventNotReady, PID: p.inst.pid, Err: err})
	if p.wasReady() {
		p.inst.kill()
		return
	}
	p.mu.Lock()
	first := p.lateErr == nil
	p.lateErr = err
	p.mu.Unlock()
	if first {
		close(p.late)
	} else {
		p.inst.kill()
	}
}

// wasReady tells whether the program has been ready, maybe before a restart.
func (p *Program) wasReady() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

func (p *Program) onNotification(n notification) {
	switch {
	case p.phase == phaseStarting:
		p.early = append(p.early, n) // from a process that is not adopted yet
		return
	case p.inst == nil || p.inst.pid != n.root:
		return // from one that has ended
	}
	pid := p.inst.pid
	if n.extend > 0 {
		p.readyTimer.extend(n.extend)
		p.killTimer.extend(n.extend)
	}
	if n.mainPID != 0 && descends(n.mainPID, pid) {
		p.mu.Lock()
		p.mainPID = n.mainPID
		p.mu.Unlock()
		p.emit(Event{Kind: EventMainPID, PID: n.mainPID})
	}
	if n.status != nil {
		p.emit(Event{Kind: EventStatus, PID: pid, Text: *n.status})
	}
	if n.reloading {
		p.emit(Event{Kind: EventReloading, PID: pid})
	}
	if n.stopping && !p.stopping {
		p.emit(Event{Kind: EventStopping, PID: pid})
	}
	if n.ready {
		p.becomeReady()
	}
}

func (p *Program) onExited() {
	inst := p.inst
	wasReady := p.phase == phaseReady
	p.inst = nil
	p.clearCurrent()
	p.cancelProbe()
	p.probed = nil
	p.readyTimer.clear()
	p.killTimer.clear()
	took := time.Since(inst.started)
	p.emit(Event{Kind: EventExited, PID: inst.pid, Exit: &inst.exit, Took: took})
	death := &DeathError{Exit: inst.exit, Ready: wasReady, Lines: inst.tail.lines()}
	switch {
	case p.stopping:
		p.end(&inst.exit, nil)
	case !p.supervised,
		p.cfg.Restart == RestartNever,
		p.cfg.Restart == RestartOnFailure && inst.exit.Success():
		p.end(&inst.exit, death)
	default:
		if took >= p.cfg.ResetAfter {
			p.failures = 0
		}
		p.again(death)
	}
}

// again lets the program be started again after a pause.
func (p *Program) again(why error) {
	if limit := p.cfg.RestartLimit; limit > 0 && p.failures >= limit {
		err := fmt.Errorf("%d restarts in a row: %w", p.failures, why)
		p.emit(Event{Kind: EventGaveUp, Err: err})
		var exit *Exit
		if death, ok := errors.AsType[*DeathError](why); ok {
			exit = &death.Exit
		}
		p.end(exit, err)
		return
	}
	delay := p.cfg.backoff(p.failures)
	p.failures++
	p.phase = phasePausing
	p.restartTimer.set(delay)
	p.emit(Event{Kind: EventRestarting, Delay: delay})
}

// end: there is no process, and there will be none.
func (p *Program) end(exit *Exit, err error) {
	p.phase = phaseEnded
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	p.report = Report{Exit: exit, Killed: p.killed}
	if p.stopping {
		p.report.Took = time.Since(p.stopAsked)
	}
}

func (p *Program) clearCurrent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current, p.mainPID = nil, 0
}

func (p *Program) stop() {
	if p.stopping || p.phase == phaseEnded {
		return
	}
	p.stopping, p.stopAsked = true, time.Now()
	switch p.phase {
	case phaseStarting:
		p.cancelSpawn() // then onSpawned
	case phasePausing:
		p.end(nil, nil)
	default:
		p.askToStop()
	}
}

func (p *Program) askToStop() {
	if p.cfg.StopTimeout < 0 {
		p.kill()
		return
	}
	p.readyTimer.clear()
	p.killTimer.set(p.cfg.StopTimeout)
	p.emit(Event{Kind: EventSignalled, PID: p.inst.pid, Text: signalName(p.cfg.StopSignal)})
	p.inst.signal(p.cfg.StopSignal)
	p.inst.signal(syscall.SIGCONT) // one that is stopped does not see the other
}

// kill is for a program that is asked to stop and does not.
func (p *Program) kill() {
	p.killTimer.clear()
	if p.inst == nil {
		return
	}
	select {
	case <-p.inst.exited:
		return // by itself, just now
	default:
	}
	if !p.killed {
		p.killed = true
		p.emit(Event{Kind: EventKilled, PID: p.inst.pid})
	}
	p.inst.kill()
}

// emit tells an event.
func (p *Program) emit(e Event) {
	p.cfg.Logger.LogAttrs(context.Background(), e.level(), e.Kind.String(), e.attrs()...)
	if p.cfg.OnEvent != nil {
		p.cfg.OnEvent(e)
	}
}
