package handover

import (
	"context"
	"errors"
	"fmt"
)

// lend gives a borrower copies of all sockets, again and again: nothing here
// changes by it. A holder's generation does so, which never accepts.
func (g *Generation) lend(l *link, hello *frameHello) error {
	t := &takeover{g: g, link: l}
	defer func() { closeItems(t.items) }()
	var err error
	if e := g.do(func() { err = g.beginLending(t) }); e != nil {
		return refusef(CodeStopping, "generation %d ends", g.number)
	}
	if err != nil {
		return err
	}
	if err := t.sendAll(); err != nil {
		return fmt.Errorf("lend: %w", err)
	}
	g.log.Info("sockets lent", "program", hello.Program, "build", hello.Build, "pid", hello.PID, "count", len(t.items))
	return nil
}

// beginLending duplicates what is lent, since the generation may end
// meanwhile. It runs on run.
func (g *Generation) beginLending(t *takeover) error {
	switch {
	case !g.cfg.Lend:
		return refusef(CodeState, "generation %d of %s is no holder and lends nothing: take over from it, or name the socket of a holder", g.number, g.cfg.Program)
	case g.phase == PhasePreparing || g.phase == PhaseWaiting:
		return refusef(CodeNotReady, "generation %d is not ready itself: try again when it is", g.number)
	case !g.phase.Owns():
		return refusef(CodeBusy, "generation %d is %v: another one owns the sockets soon, try again then", g.number, g.phase)
	case len(g.sockets) == 0:
		return refusef(CodeState, "generation %d has no sockets to lend", g.number)
	}
	t.next, t.before = g.next, settled(g.number, g.attempt)
	for _, s := range g.sockets {
		fd, err := dupFD(s.fd)
		if err != nil {
			return refusef(CodeInternal, "duplicate %s: %v", s.Name, err)
		}
		t.items = append(t.items, &socket{item: s.item, fd: fd})
	}
	return nil
}

func closeItems(all []*socket) {
	for _, s := range all {
		closeFD(s.fd)
	}
}

// borrow gets copies of the sockets of the holder at cfg.Holder. With an
// error nothing stays open.
func borrow(ctx context.Context, cfg Config) (map[string]*socket, error) {
	sctx, cancel := context.WithTimeout(ctx, cfg.StepTimeout)
	defer cancel()
	conn, err := dialOwner(sctx, cfg.Holder)
	if errors.Is(err, ErrNoOwner) {
		return nil, fmt.Errorf("%w: no live process listens on %s", ErrNoHolder, cfg.Holder)
	}
	if err != nil {
		return nil, fmt.Errorf("holder: %w", err)
	}
	r := newReceiver(cfg, cfg.Holder, conn, intentBorrow)
	defer r.link.close()
	defer func() { r.proc.close() }()
	if err = r.receive(ctx); err == nil && len(r.reserved)+len(r.states) > 0 {
		err = fmt.Errorf("%w: a holder that lends more than sockets", errFrame)
	}
	if err != nil {
		r.discard()
		return nil, fmt.Errorf("holder: %w", err)
	}
	for _, s := range r.sockets {
		// The path is the holder's, and stays when we end.
		s.id, s.Dev, s.Ino, s.adopted = fileID{}, 0, 0, true
	}
	return r.sockets, nil
}
