package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/handoverd/handoverd/scm"
)

func (w *frameWelcome) peer(phase Phase, stats Stats, report []byte) PeerStatus {
	return PeerStatus{Generation: w.Generation, Phase: phase, Program: w.Program, Build: w.Build, PID: w.PID, Stats: stats, Report: report}
}

// recordDraining notes what a predecessor says of its drain.
func (g *Generation) recordDraining(st PeerStatus) {
	g.do(func() {
		if st.Phase == PhaseDone {
			g.recordDrained(st)
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
		left := *st // others have seen st
		left.Phase, left.Lost = PhaseDone, true
		g.recordDrained(left)
		g.emit(Event{Peer: &left})
	})
}

// progressEvery is how often a draining generation says how far it is.
const progressEvery = 500 * time.Millisecond

// tellOperator tells whoever asked for a stop how the drain goes.
func (g *Generation) tellOperator(l *link) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-g.drained:
			return g.tellReport(l)
		case in := <-l.in:
			dropFrame(in.frame)
			if in.err != nil {
				return in.err
			}
		case <-tick.C:
			// One that does not read misses progress, not the report.
			l.sendWithin(100*time.Millisecond, g.progress())
		case <-g.ctx.Done():
			return g.ctx.Err()
		}
	}
}

// tellSuccessor talks with the successor until the drain has ended.
func (g *Generation) tellSuccessor(l *link, takes bool) error {
	t := &parting{g: g, l: l, takes: takes, give: &patience{Timer: stoppedTimer()}}
	defer close(g.movesOver)
	defer g.movable.Store(false)
	return t.run()
}

func (t *parting) run() error {
	g := t.g
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	defer t.give.Stop()
	defer func() {
		if t.l != nil {
			t.lose(true)
		}
		t.refuse("this generation has ended")
	}()
	for {
		t.press()
		// One batch is in flight: more might meet ETOOMANYREFS (unix(7)).
		var in <-chan inbound
		moves := g.moves
		if t.l != nil {
			in = t.l.in
			if g.movable.Load() && (!t.takes || t.batch != nil) {
				moves = nil
			}
		}
		select {
		case <-g.drained:
			return t.report()
		case m := <-moves:
			t.queue = append(t.queue, m)
		case f := <-in:
			t.hear(f)
		case <-tick.C:
			if t.l == nil && !t.dial() {
				continue
			}
			// One that does not read misses progress, not the report.
			t.l.sendWithin(100*time.Millisecond, g.progress())
		case <-t.give.C:
			if t.l != nil && !t.give.again(t.l) {
				t.expire()
			}
		case <-g.ctx.Done():
			return g.ctx.Err()
		}
	}
}

// hear is told what the listener says.
func (t *parting) hear(in inbound) {
	dropFrame(in.frame)
	if in.err != nil {
		t.end(true)
		return
	}
	switch f := in.frame.(type) {
	case *frameAdopted:
		if !t.fits(f) {
			t.g.log.Warn("an answer about connections that were not sent")
			t.lose(true)
			return
		}
		t.answered(f)
	case *frameRefuse: // it closes, too
		t.refuse(f.Message)
	case *frameSimple:
		if f.Type == typeOK && t.dialed && !t.takes {
			t.takes, t.deaf = true, 0
			t.give.Stop()
		}
	}
	// Anything else, alive or commit, is late.
}

// dial finds the present owner. One that closes at once has just been superseded.
func (t *parting) dial() bool {
	var err error
	for range moveTries {
		if t.l, err = t.g.redial(); err == nil || !gone(err) {
			break
		}
	}
	if err != nil {
		t.g.log.Debug("no owner found", "error", err)
		return false
	}
	t.dialed, t.takes = true, false
	if t.g.movable.Load() {
		t.give.reset(t.g.cfg.moveTimeout)
	}
	return true
}

// report has the last word.
func (t *parting) report() error {
	if t.l == nil && !t.dial() {
		return nil // nobody is there to hear it
	}
	return t.g.tellReport(t.l)
}

func (g *Generation) progress() frameProgress {
	return frameProgress{Type: typeProgress, Generation: g.number, Stats: g.stats()}
}

func (g *Generation) tellReport(l *link) error {
	f := frameDrained{Type: typeDrained, Generation: g.number}
	g.do(func() {
		if g.report == nil {
			return
		}
		b, err := json.Marshal(g.report)
		if err == nil && len(b) > maxFrame/2 {
			err = fmt.Errorf("%d bytes, the limit is %d", len(b), maxFrame/2)
		}
		if err != nil {
			g.log.Warn("report of the drain left out", "error", err)
			return
		}
		f.Report = b
	})
	return l.sendWithin(g.cfg.StepTimeout, f)
}

// redial finds the present owner and announces a report to it.
func (g *Generation) redial() (*link, error) {
	ctx, cancel := context.WithTimeout(g.ctx, time.Second)
	defer cancel()
	conn, err := scm.Dial(ctx, "unixpacket", g.cfg.Socket)
	if err != nil {
		return nil, err
	}
	l := newLink(conn, 0)
	err = l.send(ctx, frameHello{
		Type: typeHello, Protocols: g.cfg.protocols, Intent: intentReport,
		Program: g.cfg.Program, Build: g.cfg.Build, PID: os.Getpid(), Generation: g.number,
		Moves: g.movable.Load(),
	})
	if err != nil {
		l.close()
		return nil, err
	}
	l.startReader()
	return l, nil
}

// hearReport listens to an earlier generation that drains.
func (g *Generation) hearReport(l *link, hello *frameHello) error {
	if hello.Generation >= g.number {
		return refusef(CodeProtocol, "generation %d does not come before %d", hello.Generation, g.number)
	}
	if err := g.enterLasting(); err != nil {
		return err
	}
	defer g.leaveLasting()
	peer := PeerStatus{Generation: hello.Generation, Phase: PhaseDraining, Program: hello.Program, Build: hello.Build, PID: hello.PID}
	g.recordDraining(peer)
	defer func() { g.predecessorLeft(peer.Generation) }() // unless it has said so
	if err := g.welcomeMoves(l, hello); err != nil && !gone(err) {
		return err
	}
	for reset := false; ; {
		f, err := l.recvMoved(g.ctx)
		if isConnReset(err) && !reset {
			reset = true // as in link.read
			continue
		}
		if err != nil {
			return nil
		}
		switch f := f.(type) {
		case *frameConnections:
			if err := g.adopt(l, f, func() bool { return false }); err != nil && !gone(err) {
				return err
			}
			continue
		case *frameProgress:
			peer.Stats = f.Stats
		case *frameDrained:
			peer.Stats, peer.Phase, peer.Report = Stats{}, PhaseDone, f.Report
		default:
			return refusef(CodeProtocol, "%T in a report", f)
		}
		g.recordDraining(peer)
		if peer.Phase == PhaseDone {
			return nil
		}
	}
}

// welcomeMoves tells a predecessor that would like to move connections whether
// it may.
func (g *Generation) welcomeMoves(l *link, hello *frameHello) error {
	switch {
	case hello.Moves && g.cfg.NoMove:
		return l.sendWithin(g.cfg.StepTimeout, frameAdopted{Type: typeAdopted, Stop: takesNone})
	case hello.Moves:
		if err := l.conn.SetPassRights(true); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		l.makeRoom(scm.MaxFDs)
		return l.sendWithin(g.cfg.StepTimeout, frameSimple{Type: typeOK})
	}
	return nil
}
