package handover

import (
	"context"
	"errors"
	"maps"
	"slices"
)

// Stop asks this generation to end. An owner gives its sockets up; what is
// left of it is told by Superseded and Cause. With a successor that has
// received everything or is in probation, ownership goes to that one; in
// probation of our own it goes back to the predecessor. ctx bounds the wait
// for the other side.
func (g *Generation) Stop(ctx context.Context) error {
	for {
		again, err := g.stopOnce(ctx)
		if err == nil {
			err = ctx.Err()
		}
		if !again {
			return nil
		}
		// The phase may have changed since it was looked at.
		if err != nil && !errors.Is(err, errKept) && !errors.Is(err, errNotNow) {
			return err
		}
	}
}

// stopOnce is one look at the phase and what follows from it. It asks to be
// called again until ownership is given up.
func (g *Generation) stopOnce(ctx context.Context) (again bool, err error) {
	var t *takeover
	var back bool
	if g.do(func() {
		switch g.phase {
		case PhasePreparing, PhaseWaiting:
			if g.pred == nil || g.adopted {
				g.giveUp(ErrStopRequested)
			} else {
				back = true
			}
		case PhaseOwner:
			g.giveUp(ErrStopRequested)
		case PhaseHanding, PhaseGranting, PhaseStandby:
			t = g.takeover
			t.leave()
		case PhaseProbation, PhaseReturning:
			back = true
		}
	}) != nil {
		return false, nil // closed
	}
	switch {
	case t != nil:
		select {
		case <-g.superseded:
		case <-t.ended:
		case <-ctx.Done():
		}
	case back:
		err = g.pred.command(ctx, cmdRollback)
	}
	select {
	case <-g.superseded:
		return false, nil
	default:
		return true, err
	}
}

// shared tells whether another generation may have what this one has added.
func (g *Generation) shared() bool {
	switch g.phase {
	case PhasePreparing, PhaseWaiting, PhaseProbation, PhaseReturning, PhaseOwner:
		return false
	}
	return true
}

// giveUp ends ownership without a successor: sockets are closed, paths and
// the lock are removed. It runs on run.
func (g *Generation) giveUp(cause error) {
	g.gate.end()
	g.controlGate.end()
	for _, s := range g.sockets {
		s.unlink()
	}
	for _, s := range g.inherited {
		s.unlink()
	}
	g.removeDropped()
	g.gaveUp = true
	if g.control != nil {
		g.control.unlink()
	}
	g.releaseSockets()
	g.changePhase(PhaseDraining, cause)
}

// letGo ends ownership in favour of another generation, which has copies of
// everything. It runs on run.
func (g *Generation) letGo(cause error) {
	for _, s := range g.sockets {
		if s.added && !g.shared() {
			s.unlink()
		}
	}
	g.gate.end()
	g.controlGate.end()
	g.releaseSockets()
	g.changePhase(PhaseDraining, cause)
}

// releaseSockets closes all sockets of the set and what came with it.
func (g *Generation) releaseSockets() {
	for _, s := range g.sockets {
		g.bury(s)
	}
	g.sockets = nil
	clear(g.byName)
	for _, s := range g.inherited {
		g.bury(s)
	}
	clear(g.inherited)
	for _, fd := range g.states {
		closeFD(fd)
	}
	clear(g.states)
	if g.control != nil {
		g.control.close()
	}
	g.netns.close()
	// Conversations with predecessors and operators end, so that they find
	// the next owner. The one with our own successor goes on.
	for l, keep := range g.conns {
		if !keep {
			l.conn.Close()
		}
	}
	if g.pred != nil {
		g.pred.link.conn.Close()
	}
}

// bury closes a socket, when its descriptor is not being sent.
func (g *Generation) bury(s *socket) {
	s.passageClose()
	if g.sending {
		g.graveyard = append(g.graveyard, s)
		return
	}
	s.closeDescriptor()
}

// endSending closes what was given up meanwhile.
func (g *Generation) endSending() {
	g.sending = false
	for _, s := range g.graveyard {
		s.closeDescriptor()
	}
	g.graveyard = nil
}

// settleUnclaimed closes what was inherited and not asked for, unless it is to
// be kept. Its paths stay until ownership is settled, since the predecessor
// might need them again.
func (g *Generation) settleUnclaimed() {
	if g.cfg.Unclaimed != KeepUnclaimed {
		for _, name := range slices.Sorted(maps.Keys(g.inherited)) {
			g.drop(g.inherited[name])
		}
		clear(g.inherited)
	}
	for name, fd := range g.states {
		closeFD(fd)
		delete(g.states, name)
	}
}

// drop closes one socket that was inherited and not asked for.
func (g *Generation) drop(s *socket) {
	g.unclaimed = append(g.unclaimed, s.public())
	g.dropped = append(g.dropped, s)
	s.closeDescriptor()
	g.log.Warn("inherited and not asked for: closed", "name", s.Name, "network", s.Network, "address", s.Address)
}

func (g *Generation) removeDropped() {
	for _, s := range g.dropped {
		s.unlink()
	}
	g.dropped = nil
}

// Drained tells the successor, and operators who wait, that this generation
// has finished its connections. report is anything that encodes as JSON, in at
// most 32 KiB, or nil. It does not wait; Close does.
func (g *Generation) Drained(report any) error {
	return g.do(func() {
		if !g.finished {
			g.finished, g.report = true, report
			close(g.drained)
		}
	})
}

// Close ends this generation in whatever phase it is, in favour of whoever
// can own the sockets, and returns when all its goroutines have ended and
// all its descriptors are closed. An owner without a successor closes its
// sockets and removes the control path. Close sends what Drained told, and
// waits for that at most Config.StepTimeout. It returns nil.
func (g *Generation) Close() error {
	g.closeOnce.Do(g.shutdown)
	return nil
}

func (g *Generation) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.StepTimeout)
	defer cancel()
	if err := g.Stop(ctx); err != nil {
		g.log.Warn("closed without the other side", "error", err)
	}
	g.Drained(nil)
	stop := context.AfterFunc(ctx, g.cancel) // whoever still waits gives up
	defer stop()
	g.do(g.stopHere)
	if g.pred != nil {
		close(g.pred.quit)
	}
	g.wg.Wait()
	g.cancel()
	g.do(func() {
		if g.phase != PhaseDraining {
			g.letGo(ErrStopRequested)
		}
		g.changePhase(PhaseDone, nil)
	})
	<-g.ended
	g.endSending()
	g.gate.closeArrived()
	g.word.close()
}

// stopHere ends what Stop could not, without the other side. With a successor
// the conversation with it does so, when its context ends. It runs on run.
func (g *Generation) stopHere() {
	g.closing = true // a takeover that fails from now on gives up, too
	g.rehearseNoMore()
	switch g.phase {
	case PhaseOwner:
		g.giveUp(ErrStopRequested)
	case PhasePreparing, PhaseWaiting:
		if g.pred != nil && !g.adopted && !g.pred.decline() && !g.word.load().probation() {
			g.giveUp(ErrStopRequested) // ownership came, for good, and nobody has noticed
			return
		}
		g.letGo(ErrStopRequested)
	case PhaseProbation, PhaseReturning:
		// The predecessor finds our end of the conversation closed.
		g.letGo(ErrStopRequested)
	}
}
