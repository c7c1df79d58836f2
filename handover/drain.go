package handover

import (
	"context"
	"encoding/json"
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

// tellDrain sends progress until the drain has ended, then its report. If
// the listener goes away it looks for the next owner, when redial says so.
func (g *Generation) tellDrain(l *link, redial bool) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	defer func() {
		if l != nil {
			l.close()
		}
	}()
	for {
		var in <-chan inbound
		if l != nil {
			in = l.in
		}
		select {
		case <-g.drained:
			if l == nil {
				if l = g.redial(); l == nil {
					return nil // nobody is there to hear it
				}
			}
			return g.tellReport(l)
		case f := <-in:
			if f.err == nil {
				continue // alive, commit: late
			}
			if !redial {
				return f.err
			}
			l.close()
			l = nil
		case <-tick.C:
			if l == nil {
				if l = g.redial(); l == nil {
					continue
				}
			}
			// One that does not read misses progress, not the report.
			l.sendWithin(100*time.Millisecond, g.progress())
		case <-g.ctx.Done():
			return g.ctx.Err()
		}
	}
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
func (g *Generation) redial() *link {
	ctx, cancel := context.WithTimeout(g.ctx, time.Second)
	defer cancel()
	conn, err := scm.Dial(ctx, "unixpacket", g.cfg.Socket)
	if err != nil {
		return nil
	}
	l := newLink(conn, 0)
	err = l.send(ctx, frameHello{
		Type: typeHello, Protocols: g.cfg.protocols, Intent: intentReport,
		Program: g.cfg.Program, Build: g.cfg.Build, PID: os.Getpid(), Generation: g.number,
	})
	if err != nil {
		l.close()
		return nil
	}
	l.startReader()
	return l
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
	for {
		f, err := l.recvPlain(g.ctx)
		if err != nil {
			g.predecessorLeft(peer.Generation)
			return nil
		}
		switch f := f.(type) {
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
