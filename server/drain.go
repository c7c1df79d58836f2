package server

import (
	"context"
	"net"
	"net/http"
	"time"
)

const (
	// defaultTimeout is httpdown's, for both of its timeouts.
	defaultTimeout = time.Minute

	// silentTimeout is how long net/http lets a new connection be silent
	// while it shuts down.
	silentTimeout = 5 * time.Second

	// goAwayGrace is for how long at least an idle HTTP/2 connection is left
	// to close itself.
	goAwayGrace = farewellTimeout + farewellSettle + closeGrace + time.Second

	// sweepInterval is the least time between two looks at all connections.
	sweepInterval = 10 * time.Millisecond

	// pruneInterval is how often hijacked connections are looked at, whose
	// end may not have been seen.
	pruneInterval = 100 * time.Millisecond
)

// A plan is what a drain goes by.
type plan struct {
	stop, kill, linger time.Duration

	// atStart are functions to run when the drain begins. They are waited for.
	atStart []func()

	// onDrain is called for each connection that is in this state when the
	// drain begins, or that is accepted in it later.
	onDrain func(net.Conn)
	state   http.ConnState
}

func makePlan(stop, kill, linger time.Duration) plan {
	p := plan{stop: orDefault(stop, defaultTimeout), kill: orDefault(kill, defaultTimeout)}
	p.linger = orDefault(linger, p.stop)
	return p
}

// orDefault reads a setting: zero is the default, negative is nothing at all.
func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return max(d, 0)
}

// stop drains with the plan, or joins the drain that has begun already, and
// returns its report. When ctx ends, what is left is killed at once.
func (r *registry) stop(ctx context.Context, makePlan func() plan) Report {
	r.begin(makePlan)
	select {
	case <-r.done:
	case <-ctx.Done():
		r.escalate()
		<-r.done
	}
	return r.report
}

// close kills everything and returns when it is closed. It does not wait for
// handlers.
func (r *registry) close(makePlan func() plan) error {
	r.begin(makePlan)
	r.escalate()
	<-r.closed
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lnErr
}

func (r *registry) escalate() { r.killOnce.Do(func() { close(r.killNow) }) }

// begin starts the drain, once.
func (r *registry) begin(makePlan func() plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.initLocked()
	if r.phase.Load() != serving {
		return
	}
	r.plan, r.began = makePlan(), r.now()
	r.phase.Store(draining)
	close(r.draining)
	for l := range r.listeners {
		r.closing++
		go r.closeListener(l)
	}
	for _, f := range r.plan.atStart {
		r.hooks++
		go r.runHook(f)
	}
	var movers []*entry
	for e := range r.entries {
		st, _ := e.load()
		if st == http.StateHijacked {
			r.tally.Hijacked++
		}
		r.tellLocked(e)
		if e.pass.mover != nil {
			movers = append(movers, e)
		}
	}
	r.turns, r.poking = make(chan struct{}, moveAtOnce(len(movers))), true
	go r.pokeAll(movers)
	go r.run(r.plan)
}

// tellLocked tells the owner of a connection that the drain has begun.
func (r *registry) tellLocked(e *entry) {
	if st, _ := e.load(); r.plan.onDrain != nil && st == r.plan.state {
		r.hooks++
		go r.runConnHook(r.plan.onDrain, e.outer)
	}
}

// late reports, in a drain, whether half of the stop timeout is over. A
// connection that has not moved by then has a client that always has another
// request on the way.
func (r *registry) late() bool { return r.now()-r.began > r.plan.stop/2 }

// run is the drain. It ends within p.stop + p.kill: nothing in it waits for
// anything but a timer or a change.
func (r *registry) run(p plan) {
	defer close(r.done)
	r.lingerOn(p)
	r.killAll()
	r.waitQuiet(p.kill)
	r.finish()
}

// lingerOn closes what has been idle for long enough, until nothing is left,
// p.stop is over, or nobody wants to wait any longer.
func (r *registry) lingerOn(p plan) {
	stop := time.NewTimer(p.stop)
	defer stop.Stop()
	sweep := time.NewTimer(0)
	defer sweep.Stop()
	for !r.stopIfQuiet() {
		select {
		case <-r.changed:
		case <-sweep.C:
			sweep.Reset(r.sweep(p))
		case <-stop.C:
			return
		case <-r.killNow:
			return
		}
	}
}

// stopIfQuiet ends the drain if nothing is left of the server. An HTTP/2
// handler may start when its connection has gone already, so it looks at the
// handlers again when no more can start.
func (r *registry) stopIfQuiet() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.quietLocked() {
		return false
	}
	r.phase.Store(stopped)
	return r.quietLocked()
}

// sweep closes what is over its time and returns when to look again. What is
// busy now cannot be over its time earlier than one linger time from now.
func (r *registry) sweep(p plan) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	silent := min(p.linger, silentTimeout)
	next := now + silent
	for e := range r.entries {
		if st, _ := e.load(); st == http.StateHijacked {
			if !r.goneLocked(e) {
				next = min(next, now+pruneInterval)
			}
			continue
		}
		if e.pass.mover != nil { // it may have become movable
			select {
			case r.turns <- struct{}{}:
				e.poke()
			default:
			}
		}
		end, ok := e.endLocked(now, p.linger, silent)
		switch {
		case !ok || e.outcome != finished || e.pass.leaving.Load():
		case e.movable():
			// It waits for its turn, or its reader is on the way to the
			// move. How long that takes is up to the others and to the
			// machine, and says nothing against the connection.
		case end <= now:
			r.closeLocked(e, closed)
		default:
			next = min(next, end)
		}
	}
	return max(next-now, sweepInterval)
}

// endLocked is when the time of an idle or silent connection is over. It
// reports false if something is going on there.
func (e *entry) endLocked(now, linger, silent time.Duration) (time.Duration, bool) {
	st, at := e.load()
	at = max(at, e.reg.began)
	if e.muxed.Load() {
		linger, silent = max(linger, goAwayGrace), max(silent, goAwayGrace)
	}
	switch st {
	case http.StateNew:
		// Bytes of a TLS handshake are not yet a request, but a client that
		// has begun one is about to send its request.
		switch got := e.got.Load(); {
		case got && !e.opaque:
			return 0, false
		case got:
			e.got.Store(false)
			e.since, e.spoke = now, true
		}
		if e.spoke {
			silent = linger
		}
		return max(at, e.since) + silent, true
	case http.StateIdle:
		if !e.muxed.Load() && e.got.Load() {
			return 0, false
		}
		return at + linger, true
	}
	return 0, false
}

// killAll closes whatever is open.
func (r *registry) killAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase.CompareAndSwap(draining, killing)
	r.stayMoves()
	now := r.now()
	for e := range r.entries {
		if _, idle := e.endLocked(now, 0, 0); idle {
			r.closeLocked(e, closed)
		} else {
			r.closeLocked(e, killed)
		}
	}
}

// waitQuiet waits at most d until nothing is left, and tells close as soon as
// no Close is running any more.
func (r *registry) waitQuiet(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for expired := false; ; {
		r.mu.Lock()
		quiet := r.quietLocked()
		if quiet || expired || r.closing == 0 {
			select {
			case <-r.closed:
			default:
				close(r.closed)
			}
		}
		r.mu.Unlock()
		if quiet || expired {
			return
		}
		select {
		case <-r.changed:
		case <-timer.C:
			expired = true
		}
	}
}

// finish writes the report.
func (r *registry) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase.Store(stopped)
	r.stayMoves()
	r.report = r.tally
	for e := range r.entries {
		r.report.count(e.outcome)
		if !e.closed {
			r.report.Stuck++
		}
	}
	r.report.Stuck += len(r.listeners)
	r.report.Remaining = int(r.running.total()) + r.hooks
	r.report.Duration = r.now() - r.began
}
