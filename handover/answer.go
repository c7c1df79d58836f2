package handover

import (
	"context"
	"errors"
)

func (g *Generation) tellStatus(l *link) error {
	var st Status
	if err := g.do(func() { st = g.status() }); err != nil {
		return err
	}
	all := make([]Socket, 0, len(st.Sockets))
	for _, s := range st.Sockets {
		all = append(all, s.Socket)
	}
	st.Namespace = g.namespace(all)
	ctx, cancel := context.WithTimeout(g.ctx, g.cfg.StepTimeout)
	defer cancel()
	for pages := st.pages(); len(pages) > 0; pages = pages[1:] {
		if err := l.send(ctx, frameStatus{Type: typeStatus, Status: pages[0], More: len(pages) > 1}); err != nil {
			return err
		}
	}
	return nil
}

func (g *Generation) obeyProbation(l *link, intent string) error {
	var phase Phase
	if err := g.do(func() { phase = g.phase }); err != nil {
		return err
	}
	if phase != PhaseProbation {
		if intent == intentCommit && phase == PhaseOwner {
			return l.sendWithin(g.cfg.StepTimeout, frameSimple{Type: typeOK})
		}
		return refusef(CodeState, "generation %d is not in probation but %v: there is nothing to %s", g.number, phase, intent)
	}
	g.do(func() { g.conns[l] = true }) // the answer outlives a rollback
	ctx, cancel := context.WithTimeout(g.ctx, 2*g.cfg.StepTimeout)
	defer cancel()
	kind := cmdCommit
	if intent == intentRollback {
		kind = cmdRollback
	}
	if err := g.pred.command(ctx, kind); err != nil {
		return refusef(CodeState, "%s: %v", intent, err)
	}
	return l.sendWithin(g.cfg.StepTimeout, frameSimple{Type: typeOK})
}

// enterLasting admits a conversation that lasts. Each success is followed by
// one leaveLasting.
func (g *Generation) enterLasting() (err error) {
	e := g.do(func() {
		if g.lasting >= maxLasting {
			err = refusef(CodeLimit, "more than %d lasting conversations: try again later", maxLasting)
			return
		}
		g.lasting++
	})
	return errors.Join(e, err)
}

func (g *Generation) leaveLasting() { g.do(func() { g.lasting-- }) }

// obeyStop stops, and then tells the operator how the drain goes.
func (g *Generation) obeyStop(l *link) error {
	if err := g.enterLasting(); err != nil {
		return err
	}
	defer g.leaveLasting()
	var phase Phase
	if err := g.do(func() { phase = g.phase; g.conns[l] = true }); err != nil {
		return err
	}
	switch phase {
	case PhaseOwner:
	case PhaseProbation:
		if err := g.pred.command(g.ctx, cmdCommit); err != nil {
			return refusef(CodeState, "stop: %v", err)
		}
	case PhaseDraining:
	default:
		return refusef(CodeBusy, "generation %d is %v: a successor takes over; wait for it, then stop that", g.number, phase)
	}
	if err := g.Stop(g.ctx); err != nil {
		return refusef(CodeState, "stop: %v", err)
	}
	l.startReader()
	return g.tellOperator(l)
}
