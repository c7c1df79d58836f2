package handover

import (
	"errors"
	"fmt"
	"time"
)

func withdrew(f *frameSimple) error {
	if f.Message == "" {
		return errWithdrew
	}
	return fmt.Errorf("%w: %s", errWithdrew, f.Message)
}

// awaitReady waits until the successor is ready, or we have to leave.
func (t *takeover) awaitReady() error {
	t.link.startReader()
	timeout := newPatience(t.g.cfg.ReadyTimeout)
	defer timeout.Stop()
	for {
		select {
		case in := <-t.link.in:
			if in.err != nil {
				if gone(in.err) {
					return errDied
				}
				return refusef(CodeProtocol, "%v", in.err)
			}
			s, ok := in.frame.(*frameSimple)
			switch {
			case ok && s.Type == typeReady:
				return nil
			case ok && s.Type == typeRollback:
				return withdrew(s)
			}
			return refusef(CodeProtocol, "%T before ready", in.frame)
		case <-t.proc.deadC():
			return errDied
		case <-timeout.C:
			if timeout.again(t.link) {
				continue
			}
			return refusef(CodeTimeout, "generation %d was not ready within %v: raise the ready timeout of the owner, or look why it takes so long", t.next, t.g.cfg.ReadyTimeout)
		case <-t.leaving:
			// The successor holds everything: it gets ownership now, and
			// serves when it is ready.
			t.probation = 0
			return nil
		case <-t.g.ctx.Done():
			return refusef(CodeStopping, "generation %d ends", t.g.number)
		}
	}
}

// granted is the word of the successor in probation.
func (t *takeover) granted() ownership { return onProbation(t.next, t.before.attempt()) }

// grant moves ownership: accept is paused, the last one has returned, the
// word is moved, the successor is told.
func (t *takeover) grant() error {
	g := t.g
	at(g.number, "owner/ready")
	paused := time.Now()
	g.do(func() { g.changePhase(PhaseGranting, nil) })
	ctx, cancel := t.stepCtx()
	defer cancel()
	if err := errors.Join(g.controlGate.shut(ctx), g.gate.shut(ctx)); err != nil {
		err = refusef(CodeInternal, "accept could not be paused: %v", err)
		g.log.Error("takeover failed", "error", err)
		g.reopen()
		return t.failed(err)
	}
	at(g.number, "owner/paused")
	to := t.granted()
	if t.probation <= 0 {
		to &^= flagProbation
	}
	if !g.word.swap(t.before, to) {
		if g.word.load() == t.before|flagDeclined {
			g.reopen()
			return t.failed(errWithdrew)
		}
		err := fmt.Errorf("the ownership word says %v", g.word.load())
		g.do(func() { g.takeover = nil; g.letGo(err) })
		return err
	}
	if to.probation() {
		g.do(func() { g.changePhase(PhaseStandby, nil) })
	}
	at(g.number, "owner/moved")
	granted := frameGranted{Type: typeGranted, Generation: t.next, Settled: !to.probation(), Paused: paused.UnixNano()}
	if _, last := g.gate.times(); !last.IsZero() {
		granted.LastAccept = last.UnixNano()
	}
	err := t.link.send(ctx, granted)
	switch {
	case !to.probation() && err != nil:
		// If it lives it will look at the word, and own: only from the dead
		// it may be taken back.
		if gone(err) && t.isDead() && g.word.swap(to, t.before) {
			g.reopen()
			return t.failed(errDied)
		}
		return t.drain()
	case !to.probation():
		return t.drain()
	case err != nil:
		return t.takeBack(errDied)
	}
	at(g.number, "owner/granted")
	return t.standBy()
}

// isDead tells whether the successor, which has hung up, has died. Without a
// pidfd it is believed to.
func (t *takeover) isDead() bool {
	return t.proc == nil || t.proc.diesWithin(t.g.cfg.StepTimeout)
}

func (g *Generation) reopen() {
	if err := listenAgain(g.control.ln); err != nil {
		g.log.Warn("control listener keeps the successor's credentials", "error", err)
	}
	g.gate.open()
	g.controlGate.open()
}

// standBy waits through the successor's probation.
func (t *takeover) standBy() error {
	g := t.g
	silence := newPatience(t.grace)
	defer silence.Stop()
	limit := newPatience(t.probation + t.grace)
	defer limit.Stop()
	for {
		select {
		case in := <-t.link.in:
			if in.err != nil {
				return t.takeBack(t.whyEnded(in.err))
			}
			s, _ := in.frame.(*frameSimple)
			switch {
			case s != nil && s.Type == typeAlive:
				at(g.number, "owner/alive")
				silence.reset(t.grace)
			case s != nil && s.Type == typeCommit:
				at(g.number, "owner/commit")
				return t.takeBackUnless()
			case s != nil && s.Type == typeRollback:
				return t.takeBack(ErrRolledBack)
			default:
				return t.takeBack(fmt.Errorf("%w: %T in probation", errFrame, in.frame))
			}
		case <-t.proc.deadC():
			return t.takeBack(errDied)
		case <-silence.C:
			if silence.again(t.link) {
				continue
			}
			return t.takeBack(errSilent)
		case <-limit.C:
			if limit.again(t.link) {
				continue
			}
			return t.takeBack(fmt.Errorf("%w: no commit after a probation of %v", errSilent, t.probation))
		case <-t.leaving:
			if g.word.swap(t.granted(), t.granted()&^flagProbation) {
				t.link.sendWithin(g.cfg.StepTimeout, frameSimple{Type: typeCommit})
			}
			return t.drain()
		case <-g.ctx.Done():
			g.word.swap(t.granted(), t.granted()&^flagProbation)
			return t.drain()
		}
	}
}

// whyEnded tells a successor that died from one that broke the conversation.
func (t *takeover) whyEnded(err error) error {
	if !gone(err) {
		return err
	}
	if t.proc == nil || t.proc.diesWithin(time.Second) {
		return errDied
	}
	return fmt.Errorf("%w: it closed the conversation", errSilent)
}

// takeBackUnless handles a commit: the word was moved before it was sent, so
// a successor that says commit without having done so breaks the protocol.
func (t *takeover) takeBackUnless() error {
	if t.g.word.load() == t.granted() {
		return t.takeBack(fmt.Errorf("%w: commit, but the ownership word says %v", errFrame, t.g.word.load()))
	}
	return t.drain()
}

// takeBack ends probation in our favour, if the successor has not committed.
func (t *takeover) takeBack(why error) error {
	g := t.g
	if !g.word.swap(t.granted(), t.after) {
		return t.drain()
	}
	if !errors.Is(why, errDied) && !errors.Is(why, ErrRolledBack) {
		// What hangs would hold its clients for ever.
		if err := t.proc.kill(); err != nil {
			g.log.Warn("successor could not be killed", "error", err)
		} else {
			t.proc.diesWithin(g.cfg.StepTimeout)
		}
	}
	at(g.number, "owner/taken back")
	g.do(func() { g.next = t.next + 1 })
	g.reopen()
	err := t.failed(fmt.Errorf("generation %d lost ownership in probation: %w", t.next, why))
	if !errors.Is(why, errDied) {
		t.link.sendWithin(g.cfg.StepTimeout, frameSimple{Type: typeRevoked})
	}
	return err
}

// drain: the successor owns everything for good.
func (t *takeover) drain() error {
	g := t.g
	at(g.number, "owner/drain")
	g.movable.Store(t.takes)
	g.do(func() {
		g.letGo(ErrSuperseded)
		g.takeover = nil
	})
	g.log.Info("superseded", "by", t.next)
	return g.tellSuccessor(t.link, t.takes)
}
