package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

// Intervals of what is shown while something goes on.
const (
	redrawInterval = 100 * time.Millisecond // on a terminal
	logInterval    = 5 * time.Second        // in the log
)

// watcher tells people and the service manager what happens to this
// generation and its predecessors. One goroutine does, so that nobody who has
// something to tell waits for a terminal or for the service manager.
type watcher struct {
	a    *app
	done sync.WaitGroup
	wake chan struct{} // one token: queue is not empty, or ended is set

	mu    sync.Mutex
	queue []func()
	ended bool

	// Owned by run.
	phase     handover.Phase
	number    uint64
	owned     bool                           // at any time
	probation time.Time                      // its end
	peers     map[uint64]handover.PeerStatus // predecessors that drain
	most      map[uint64]int64               // connections that each had at first; 0 is this process
	leaving   bool                           // this process drains
	logged    time.Time
}

func newWatcher(a *app) *watcher {
	return &watcher{
		a: a, wake: make(chan struct{}, 1),
		peers: map[uint64]handover.PeerStatus{}, most: map[uint64]int64{},
	}
}

// post has run run f. It never blocks.
func (w *watcher) post(f func()) {
	w.mu.Lock()
	w.queue = append(w.queue, f)
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// event is handover.Config.OnEvent.
func (w *watcher) event(e handover.Event) { w.post(func() { w.happened(e) }) }

// draining and drained bracket the drain of this process.
func (w *watcher) draining() { w.post(func() { w.leaving = true }) }

func (w *watcher) drained() {
	shown := make(chan struct{})
	w.post(func() {
		w.leaving = false
		w.a.console.clear()
		close(shown)
	})
	<-shown
}

func (w *watcher) start() { w.done.Go(w.run) }

// end returns when everything posted has run.
func (w *watcher) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.poke()
	w.done.Wait()
	w.a.console.clear()
}

func (w *watcher) run() {
	tick := time.NewTicker(redrawInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.redraw()
		case <-w.wake:
			w.mu.Lock()
			queue, ended := w.queue, w.ended
			w.queue = nil
			w.mu.Unlock()
			for _, f := range queue {
				f()
			}
			if ended {
				return
			}
		}
	}
}

// happened notes one event.
func (w *watcher) happened(e handover.Event) {
	w.number = e.Generation
	if e.Peer != nil {
		w.peer(*e.Peer)
		return
	}
	last := w.phase
	w.phase = e.Phase
	switch {
	case e.Phase == last:
	case e.Phase == handover.PhaseProbation:
		w.probation = e.Time.Add(time.Duration(w.a.opts.probation))
		w.owns(true)
	case e.Phase == handover.PhaseOwner && !w.owned:
		w.owns(w.number > 1)
	case e.Phase == handover.PhaseOwner && last == handover.PhaseProbation:
		w.a.console.clear()
		w.a.console.say("probation is over: generation %d owns the sockets for good", w.number)
		w.a.receipt.write()
		w.a.notify.status(w.statusLine())
	case e.Phase == handover.PhaseOwner && last == handover.PhaseStandby:
		w.a.console.clear()
		w.a.console.say("the successor is gone (%v): generation %d serves again", e.Cause, w.number)
		w.a.notify.ready(true, w.statusLine())
	case e.Phase == handover.PhaseOwner:
		w.a.console.clear()
		if e.Cause != nil {
			w.a.console.say("takeover failed (%v): generation %d serves on", e.Cause, w.number)
		}
		w.a.notify.status(w.statusLine())
	case e.Phase == handover.PhaseDraining && w.owned:
		w.a.console.clear()
		w.a.console.say("generation %d: %s", w.number, why(e.Cause))
		if errors.Is(e.Cause, handover.ErrStopRequested) {
			w.a.notify.stopping()
		}
	}
	w.redraw()
}

// owns is called when this generation becomes the owner for the first time.
func (w *watcher) owns(main bool) {
	w.owned = true
	w.a.console.clear()
	w.a.notify.ready(main, w.statusLine())
	if r, err := w.a.gen.Receipt(); err == nil && r.From != nil {
		w.a.log.Info("taken over", "from", r.From.Generation, "sockets", len(r.Sockets), "queued", queued(r.Sockets),
			"ready_to_owner", r.Steps.Owner.Sub(r.Steps.Ready), "unclaimed", len(r.Unclaimed))
		w.a.console.say("took over %s", receiptText(r))
	}
	w.a.receipt.write()
	if text := namespaceText(w.a.gen.Namespace()); text != "" {
		w.a.log.Warn("network namespace", "verdict", text)
		w.a.console.say("network namespace %s", text)
	}
}

func (w *watcher) statusLine() string {
	return fmt.Sprintf("generation %d: %s", w.number, w.phase)
}

// why says for people why a generation drains.
func why(cause error) string {
	switch {
	case errors.Is(cause, handover.ErrSuperseded):
		return "a successor owns the sockets, connections drain"
	case errors.Is(cause, handover.ErrStopRequested):
		return "stop requested, connections drain"
	}
	return cause.Error()
}

// peer notes what a predecessor says of its drain.
func (w *watcher) peer(p handover.PeerStatus) {
	if p.Phase != handover.PhaseDone {
		w.peers[p.Generation] = p
		w.most[p.Generation] = max(w.most[p.Generation], p.Stats.Total())
		w.redraw()
		return
	}
	delete(w.peers, p.Generation)
	delete(w.most, p.Generation)
	w.a.console.clear()
	if p.Lost {
		w.a.log.Warn("a predecessor ended without a report", "predecessor", p.Generation)
		w.a.console.say("generation %d ended without a report", p.Generation)
		w.a.receipt.write()
		return
	}
	w.a.log.Info("a predecessor has drained", "predecessor", p.Generation, "report", reportText(p.Report))
	w.a.console.say("generation %d: %s", p.Generation, reportText(p.Report))
	w.a.receipt.write()
}

// reportText is a report for people. Another program's may be anything.
func reportText(report json.RawMessage) string {
	if len(report) == 0 || string(report) == "null" {
		return "drained"
	}
	if text := programReportText(report); text != "" {
		return text
	}
	var r server.Report
	if json.Unmarshal(report, &r) == nil && r != (server.Report{}) {
		return r.String()
	}
	return "drained, report " + string(report)
}

// redraw brings the line of progress up to date, or from time to time the
// log.
func (w *watcher) redraw() {
	if !w.a.console.terminal && time.Since(w.logged) < logInterval {
		return
	}
	switch {
	case w.leaving:
		w.showDrain(w.number, 0, w.a.service.stats())
	case w.phase == handover.PhaseWaiting:
		w.a.console.show(progress{subject: "ready", text: fmt.Sprintf("generation %d is ready, waiting for its predecessor", w.number)})
	case w.phase == handover.PhaseProbation:
		whole := time.Duration(w.a.opts.probation)
		left := max(0, time.Until(w.probation))
		w.a.console.show(progress{
			subject: "probation", now: int64(whole - left), max: int64(whole),
			text: fmt.Sprintf("generation %d serves on probation, %.1fs left", w.number, left.Seconds()),
		})
	case w.phase == handover.PhaseHanding || w.phase == handover.PhaseGranting:
		w.a.console.show(progress{subject: "handing", text: "a successor prepares"})
	case w.phase == handover.PhaseStandby:
		w.a.console.show(progress{subject: "standby", text: "the successor serves on probation, this process stands by"})
	case len(w.peers) > 0:
		oldest := slices.Min(slices.Collect(maps.Keys(w.peers)))
		w.showDrain(oldest, oldest, w.peers[oldest].Stats)
	}
}

func (w *watcher) showDrain(number, key uint64, st handover.Stats) {
	if !w.a.console.terminal {
		w.logged = time.Now()
		w.a.log.Info("draining", "of", number, "connections", connectionText(st), "ended", orDash(endedText(st)),
			"oldest", st.Oldest.Round(time.Millisecond), "left", st.Remaining.Round(time.Millisecond))
		return
	}
	w.most[key] = max(w.most[key], st.Total())
	w.a.console.show(drainProgress(fmt.Sprintf("generation %d", number), st, w.most[key]))
}

// drainProgress is the line of progress of a drain that began with most
// connections.
func drainProgress(who string, st handover.Stats, most int64) progress {
	return progress{
		subject: who, now: most - st.Total(), max: max(most, 1),
		text: who + " drains: " + drainText(st),
	}
}

// drainText says what is left of a drain, and what has become of the rest.
func drainText(st handover.Stats) string {
	parts := []string{stateText(st)}
	if st.Total() == 0 {
		parts[0] = "no connections"
	}
	if st.Oldest > 0 {
		parts = append(parts, "oldest "+seconds(st.Oldest))
	}
	if st.Remaining > 0 {
		parts = append(parts, seconds(st.Remaining)+" left")
	}
	text := strings.Join(parts, ", ")
	if past := endedText(st); past != "" {
		text += "; " + past
	}
	return text
}

// connectionText is "3 connections (1 active, 2 idle)".
func connectionText(st handover.Stats) string {
	total := st.Total()
	text := fmt.Sprintf("%d connections", total)
	if total == 1 {
		text = "1 connection"
	}
	if states := counted(st.Connections); states != "" {
		text += " (" + states + ")"
	}
	return text
}

// seconds is a duration for people.
func seconds(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}
