package handover

import (
	"context"
	"errors"
	"fmt"
	"time"
)

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
	at(p.g.number, "successor/granted")
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
		at(p.g.number, "successor/probation")
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
		at(p.g.number, "successor/alive")
	}
}

// settle ends probation in our favour, if the predecessor has not ended it in
// its own.
func (p *predecessor) settle() {
	g := p.g
	at(p.g.number, "successor/commit")
	if !p.toSettled(p.probationWord()) {
		p.revoked()
		return
	}
	at(p.g.number, "successor/settled")
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
	at(p.g.number, "successor/committed")
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
	at(p.g.number, "successor/returning")
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
	// One that talks nonsense lives: its death is not waited for.
	died := gone(err) && p.dies()
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
