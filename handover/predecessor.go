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
	case phase.Owns() && kind == cmdRollback:
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
		if err := p.send(typeReady); err != nil && !gone(err) {
			p.refused(fmt.Errorf("send ready: %w", err))
			return
		}
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

// afterwards is nil while we own the sockets, else why not.
func (p *predecessor) afterwards() error {
	if err := p.g.Cause(); err != nil {
		return err
	}
	if phase := p.g.Phase(); !phase.Owns() {
		return fmt.Errorf("that cannot be done while this generation is %v", phase)
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
		p.granted()
		return
	case *frameRefuse:
		p.refused(&RefusedError{Code: f.Code, Message: f.Message})
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
	p.refused(fmt.Errorf("%w: %T out of place", errFrame, f))
}

func (p *predecessor) peerNumber() uint64 { return p.welcome.Generation }

// settledWord is the word when ownership is ours for good.
func (p *predecessor) settledWord() ownership { return settled(p.g.number, p.welcome.Attempt) }

// probationWord is the word in our probation.
func (p *predecessor) probationWord() ownership { return onProbation(p.g.number, p.welcome.Attempt) }

// wordIsOurs tells whether the word names this takeover of ours, whatever
// messages say.
func (p *predecessor) wordIsOurs() bool {
	o := p.g.word.load()
	return o == p.settledWord() || o == p.probationWord()
}

func (p *predecessor) adopted() (yes bool) {
	p.g.do(func() { yes = p.g.adopted })
	return yes
}

// known tells whether we know already that ownership is ours.
func (p *predecessor) known() bool {
	phase := p.g.Phase()
	return phase != PhasePreparing && phase != PhaseWaiting
}

// granted: ownership is ours, if the word says so too.
func (p *predecessor) granted() {
	switch phase := p.g.Phase(); {
	case !p.wordIsOurs():
		if phase == PhaseWaiting || phase == PhasePreparing {
			p.decline()
			p.fail(fmt.Errorf("%w: granted, but the ownership word says %v", errFrame, p.g.word.load()))
		}
	case phase == PhasePreparing:
		// The predecessor leaves before we are ready: it is ours when we are.
		p.g.log.Info("the predecessor left before this generation was ready")
		p.toSettled(p.probationWord())
		p.g.do(func() { p.g.adopted = true })
	case phase == PhaseWaiting:
		next := PhaseOwner
		if p.g.word.load().probation() {
			next = PhaseProbation
		}
		p.answer(p.own(next))
	}
}

// own opens the gates.
func (p *predecessor) own(next Phase) error {
	err := error(ErrClosed)
	p.g.do(func() {
		if next == PhaseProbation {
			p.g.probation = time.Now().Add(time.Duration(p.welcome.Probation))
		}
		err = p.g.becomeOwner(next)
	})
	if next == PhaseProbation {
		p.probation.Reset(time.Duration(p.welcome.Probation))
		p.heartbeat() // acknowledges the grant
	}
	p.g.log.Info("ownership granted", "phase", next.String(), "probation", time.Duration(p.welcome.Probation))
	return err
}

func (p *predecessor) heartbeat() {
	every := time.Duration(p.welcome.AliveEvery)
	if p.commitOwed {
		p.commitOwed = p.link.sendWithin(every, frameSimple{Type: typeCommit}) != nil
		return
	}
	switch p.g.Phase() {
	case PhaseProbation, PhaseReturning:
		// A predecessor that does not read finds them all when it wakes up.
		if err := p.link.sendWithin(every, frameSimple{Type: typeAlive}); err != nil {
			p.g.log.Debug("heartbeat not sent", "error", err)
		}
	}
}

// settle ends probation in our favour, if the predecessor has not ended it in
// its own.
func (p *predecessor) settle() {
	g := p.g
	if !p.toSettled(p.probationWord()) {
		p.revoked()
		return
	}
	p.probation.Stop()
	g.do(func() {
		switch g.phase {
		case PhaseReturning:
			g.becomeOwner(PhaseOwner)
		case PhaseProbation:
			g.changePhase(PhaseOwner, nil)
			g.removeDropped()
		}
	})
	g.recordDraining(p.welcome.peer(PhaseDraining, Stats{}, nil))
	p.commitOwed = true
	p.heartbeat()
	p.answer(errKept) // a rollback that came too late
}

// toSettled moves the word from one of the given values to us for good, or
// finds it there.
func (p *predecessor) toSettled(from ...ownership) bool {
	to := p.settledWord()
	for _, o := range from {
		if p.g.word.swap(o, to) {
			return true
		}
	}
	return p.g.word.load() == to
}

// giveBack begins a rollback: nothing is accepted any more, then the
// predecessor is told.
func (p *predecessor) giveBack(c command) {
	g := p.g
	p.probation.Stop()
	returning := false
	g.do(func() { returning = g.tryPhase(PhaseReturning) })
	if !returning {
		c.reply <- p.afterwards()
		return
	}
	ctx, cancel := context.WithTimeout(g.ctx, g.cfg.StepTimeout)
	defer cancel()
	if err := errors.Join(g.gate.shut(ctx), g.controlGate.shut(ctx)); err != nil {
		g.log.Error("accept could not be paused", "error", err)
	}
	p.pending = []command{c}
	if err := p.send(typeRollback); err != nil && !gone(err) {
		g.log.Warn("rollback not sent", "error", err)
	}
	p.deadline.Reset(g.cfg.StepTimeout)
}

// revoked: the word, or the predecessor, says that ownership went back.
func (p *predecessor) revoked() {
	switch p.g.Phase() {
	case PhaseReturning:
		p.end(ErrRolledBack, nil)
	case PhaseProbation:
		if p.wordIsOurs() {
			p.refused(fmt.Errorf("%w: revoked, but the ownership word says %v", errFrame, p.g.word.load()))
			return
		}
		p.end(ErrRevoked, ErrRevoked)
	default:
		p.refused(fmt.Errorf("%w: revoked out of place", errFrame))
	}
}

// refused: the predecessor has ended the conversation, or broken it.
func (p *predecessor) refused(err error) {
	switch p.g.Phase() {
	case PhasePreparing, PhaseWaiting:
		if p.decline() {
			p.fail(err)
			return
		}
	}
	p.lost(err)
}

// fail ends a takeover before ownership was granted.
func (p *predecessor) fail(err error) { p.end(err, err) }

func (p *predecessor) end(cause, reply error) {
	p.g.do(func() { p.g.letGo(cause) })
	p.g.log.Warn("takeover ended", "cause", cause)
	p.answer(reply)
	p.finished = true
}

// expire: ready or rollback was not answered in time.
func (p *predecessor) expire() {
	switch p.g.Phase() {
	case PhaseWaiting:
		if !p.decline() {
			p.granted()
			return
		}
		p.send(typeRollback)
		p.fail(fmt.Errorf("%w: ready was not answered within %v; if it is stopped, continue it, else end it", ErrStuck, p.g.cfg.StepTimeout))
	case PhaseReturning:
		if p.toSettled(p.probationWord()) {
			p.settle()
			return
		}
		p.end(ErrRolledBack, nil)
	}
}

// lost: the conversation is over. If the predecessor is dead, what it left is
// ours; if it lives, the word tells whose it is.
func (p *predecessor) lost(err error) {
	g := p.g
	p.finished = true
	if p.outcomeKnown() {
		return
	}
	died := p.dies()
	if p.outcomeKnown() { // now
		return
	}
	phase := g.Phase()
	g.log.Info("conversation with the predecessor ended", "died", died, "error", err)
	ours := p.probationWord()
	switch phase {
	case PhasePreparing, PhaseWaiting:
		var kept bool
		if died {
			kept = p.toSettled(settled(p.peerNumber(), p.welcome.Attempt), ours)
		} else {
			kept = !p.decline() && p.toSettled(ours)
		}
		switch {
		case !kept:
			p.fail(fmt.Errorf("the predecessor ended the takeover, and still serves: %w", err))
		case phase == PhaseWaiting:
			p.answer(p.own(PhaseOwner))
		default:
			g.do(func() { g.adopted = true })
		}
	case PhaseProbation:
		if !p.toSettled(ours) {
			p.end(ErrRevoked, ErrRevoked)
			return
		}
		g.do(func() {
			if g.tryPhase(PhaseOwner) {
				g.removeDropped()
			}
		})
	case PhaseReturning:
		// It may have taken back, and died then.
		back := settled(p.peerNumber(), p.welcome.Attempt+1)
		if !p.toSettled(ours) && !(died && p.toSettled(back)) {
			p.end(ErrRolledBack, nil)
			return
		}
		g.do(func() { g.becomeOwner(PhaseOwner) })
		p.answer(errKept)
	}
}

// outcomeKnown tells whether this takeover is decided, so that its end changes
// nothing any more.
func (p *predecessor) outcomeKnown() bool {
	switch p.g.Phase() {
	case PhasePreparing:
		return p.adopted()
	case PhaseWaiting, PhaseProbation, PhaseReturning:
		return false
	case PhaseDraining, PhaseDone:
		p.answer(p.afterwards())
	default:
		p.g.predecessorLeft(p.peerNumber())
	}
	return true
}

// dies waits for the predecessor's death: the kernel closes a dying process's
// sockets a moment before its pidfd says so.
func (p *predecessor) dies() bool {
	t := time.NewTimer(p.g.cfg.StepTimeout)
	defer t.Stop()
	select {
	case <-p.proc.deadC():
		return true
	case <-t.C:
	case <-p.quit:
	}
	return false
}

func (w *frameWelcome) peer(phase Phase, stats Stats, report []byte) PeerStatus {
	return PeerStatus{Generation: w.Generation, Phase: phase, Program: w.Program, Build: w.Build, PID: w.PID, Stats: stats, Report: report}
}

// recordDraining notes what a predecessor says of its drain.
func (g *Generation) recordDraining(st PeerStatus) {
	g.do(func() {
		if st.Phase == PhaseDone {
			delete(g.draining, st.Generation)
		} else {
			g.draining[st.Generation] = &st
		}
		g.emit(Event{Peer: &st})
	})
}

// predecessorLeft notes that a draining predecessor has closed its
// conversation without a report.
func (g *Generation) predecessorLeft(number uint64) {
	g.do(func() {
		st := g.draining[number]
		if st == nil {
			return
		}
		delete(g.draining, number)
		st.Phase, st.Lost = PhaseDone, true
		g.emit(Event{Peer: st})
	})
}
