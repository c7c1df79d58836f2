package handover

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// predecessor is the successor's side of a takeover, from the moment when all
// sockets are here. One goroutine, follow, decides what the predecessor's
// messages, its death and time mean; the ownership word decides between us.
type predecessor struct {
	g       *Generation
	link    *link
	proc    *process // nil if the kernel has no pidfds
	welcome frameWelcome

	cmds chan command
	quit chan struct{} // closed by Close
	over chan struct{} // closed when follow has returned

	// Owned by follow.
	pending    []command // a ready, or rollbacks, whose outcome is open
	deadline   *time.Timer
	beat       *time.Ticker
	probation  *time.Timer
	commitOwed bool
	finished   bool
}

type commandKind int

const (
	cmdReady    commandKind = iota
	cmdWithdraw             // ready's ctx ended
	cmdCommit
	cmdRollback
)

type command struct {
	kind  commandKind
	reply chan error // with room for one
}

// errKept: a rollback found no predecessor, and ownership stays here.
var errKept = errors.New("the predecessor is gone: ownership stays here")

// command hands kind to follow and waits for the outcome, or for ctx.
func (p *predecessor) command(ctx context.Context, kind commandKind) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := command{kind: kind, reply: make(chan error, 1)}
	select {
	case p.cmds <- c:
	case <-p.over:
		return p.ending(kind)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.reply:
		return err
	case <-ctx.Done():
	case <-p.over:
		select {
		case err := <-c.reply:
			return err
		default:
			return p.ending(kind)
		}
	}
	if kind != cmdReady {
		return ctx.Err()
	}
	// Either the withdrawal comes first, or ownership did.
	if p.command(context.WithoutCancel(ctx), cmdWithdraw) != nil {
		return ctx.Err()
	}
	return nil
}

// ending answers a command that comes after follow has returned.
func (p *predecessor) ending(kind commandKind) error {
	switch phase := p.g.Phase(); {
	case phase == PhasePreparing && kind == cmdReady && p.adopted():
		return p.own(PhaseOwner)
	case phase.Owns() && kind == cmdCommit:
		return nil
	case kind == cmdRollback && (phase.Owns() || phase == PhasePreparing && p.adopted()):
		return errKept
	}
	if err := p.g.Cause(); err != nil {
		return err
	}
	return ErrClosed
}

// idle timers that never fire until they are set.
func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (p *predecessor) follow() {
	defer close(p.over)
	defer p.proc.close()
	defer p.link.close()
	p.deadline, p.probation = stoppedTimer(), stoppedTimer()
	p.beat = time.NewTicker(max(time.Millisecond, time.Duration(p.welcome.AliveEvery)))
	defer p.beat.Stop()
	defer p.deadline.Stop()
	defer p.probation.Stop()
	for !p.finished {
		select {
		case in := <-p.link.in:
			if in.err != nil {
				p.lost(in.err)
				return
			}
			p.receive(in.frame)
		case c := <-p.cmds:
			p.obey(c)
		case <-p.beat.C:
			p.heartbeat()
		case <-p.probation.C:
			p.settle()
		case <-p.deadline.C:
			p.expire()
		case <-p.quit:
			return
		}
	}
}

func (p *predecessor) answer(err error) {
	p.deadline.Stop()
	for _, c := range p.pending {
		c.reply <- err
	}
	p.pending = nil
}

// obey carries out a command.
func (p *predecessor) obey(c command) {
	phase := p.g.Phase()
	switch {
	case c.kind == cmdReady && phase == PhasePreparing:
		if p.adopted() {
			c.reply <- p.own(PhaseOwner)
			return
		}
		p.pending = []command{c}
		waiting := false
		p.g.do(func() { waiting = p.g.tryPhase(PhaseWaiting) })
		if !waiting {
			p.answer(p.afterwards())
			return
		}
		at(p.g.number, "successor/waiting")
		if err := p.send(typeReady); err != nil && !gone(err) {
			p.refused(fmt.Errorf("send ready: %w", err))
			return
		}
		at(p.g.number, "successor/ready")
		p.deadline.Reset(p.g.cfg.StepTimeout)
	case c.kind == cmdWithdraw && phase == PhaseWaiting,
		c.kind == cmdRollback && phase == PhaseWaiting,
		c.kind == cmdRollback && phase == PhasePreparing && !p.adopted():
		p.withdraw(c)
	case c.kind == cmdRollback && phase == PhaseProbation:
		p.giveBack(c)
	case c.kind == cmdRollback && phase == PhaseReturning:
		p.pending = append(p.pending, c)
	case c.kind == cmdRollback && (phase == PhaseOwner || phase == PhaseHanding || phase == PhasePreparing && p.adopted()):
		c.reply <- errKept
	case c.kind == cmdCommit && phase == PhaseProbation:
		p.settle()
		c.reply <- p.afterwards()
	case (c.kind == cmdWithdraw || c.kind == cmdCommit) && phase.Owns():
		c.reply <- nil
	default:
		c.reply <- p.afterwards()
	}
}

// withdraw ends a takeover on our side, unless ownership has been granted.
func (p *predecessor) withdraw(c command) {
	if !p.decline() {
		p.granted()
		p.obey(c) // as the owner that we are
		return
	}
	err := p.send(typeRollback)
	p.g.log.Info("takeover withdrawn", "told", err == nil)
	p.fail(ErrStopRequested)
	if c.kind == cmdWithdraw {
		c.reply <- ErrStopRequested
	} else {
		c.reply <- nil
	}
}

// decline makes sure that ownership is not granted to us any more. It fails
// if it has been. A predecessor that was asleep meanwhile finds it when it
// wants to grant.
func (p *predecessor) decline() bool {
	n, attempt := p.peerNumber(), p.welcome.Attempt
	if p.g.word.swap(settled(n, attempt), declined(n, attempt)) {
		return true
	}
	return !p.wordIsOurs()
}

var errNotNow = errors.New("that cannot be done now")

// afterwards is nil while we own the sockets, else why not.
func (p *predecessor) afterwards() error {
	if err := p.g.Cause(); err != nil {
		return err
	}
	if phase := p.g.Phase(); !phase.Owns() {
		return fmt.Errorf("%w: this generation is %v", errNotNow, phase)
	}
	return nil
}

func (p *predecessor) send(typ string) error {
	return p.link.sendWithin(p.g.cfg.StepTimeout, frameSimple{Type: typ})
}

// receive handles one frame of the predecessor.
func (p *predecessor) receive(f any) {
	switch f := f.(type) {
	case *frameGranted:
		p.g.do(func() { p.g.steps.hear(f) })
		p.granted()
		return
	case *frameRefuse:
		p.refused(&RefusedError{Code: f.Code, Message: f.Message})
		return
	case *frameConnections:
		if !p.known() && !p.adopted() {
			break
		}
		if err := p.g.adopt(p.link, f, func() bool { return p.diedOver(f) }); err != nil {
			p.g.log.Warn("connections not taken", "error", err)
		}
		return
	case *frameProgress:
		p.g.recordDraining(p.welcome.peer(PhaseDraining, f.Stats, nil))
		return
	case *frameDrained:
		p.g.recordDraining(p.welcome.peer(PhaseDone, Stats{}, f.Report))
		return
	case *frameSimple:
		switch f.Type {
		case typeRevoked:
			p.revoked()
			return
		case typeCommit: // the predecessor leaves of its own accord
			switch {
			case p.known():
				p.settle()
				return
			case p.wordIsOurs(): // it did not say granted, but did it
				p.toSettled(p.probationWord())
				p.granted()
				return
			}
		}
	}
	dropFrame(f)
	p.refused(fmt.Errorf("%w: %T out of place", errFrame, f))
}

// diedOver tells whether the predecessor dies, soon, without having gone on with
// what it has sent.
func (p *predecessor) diedOver(f *frameConnections) bool {
	wentOn := func() bool { return p.g.word.withdrawals(p.peerNumber()).Load() != f.Withdrawn }
	for range 20 {
		if wentOn() {
			return false
		}
		if p.proc.diesWithin(50 * time.Millisecond) {
			return !wentOn()
		}
	}
	return false
}

func (p *predecessor) peerNumber() uint64 { return p.welcome.Generation }
