package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/load"
	"github.com/handoverd/handoverd/tests/bench/report"
)

// times are those of one round.
type times struct {
	warm time.Duration // before anything is looked at
	report.Settings
}

// measureUpgrade upgrades a service once, under a load.
func measureUpgrade(ctx context.Context, c *contender, k *loadKind, s service, t times, tl *timeline) (report.Upgrade, error) {
	r := &round{contender: c, load: k, service: s, times: t}
	r.out = report.Upgrade{Contender: c.Name, Load: k.Name}
	if k.Name != quiet {
		clients, err := load.Start(ctx, k.on(s.base(), c.Group))
		if err != nil {
			return r.out, err
		}
		r.clients = clients
		defer clients.Stop()
	}
	err := r.run(ctx, tl)
	return r.out, err
}

// A round is one upgrade that is looked at.
type round struct {
	contender *contender
	load      *loadKind
	service   service
	times     times
	clients   *load.Run // nil: quiet

	triggered time.Time
	before    load.Result // at the trigger
	wg        sync.WaitGroup
	out       report.Upgrade
}

func (r *round) run(ctx context.Context, tl *timeline) error {
	if err := sleep(ctx, r.times.warm); err != nil {
		return err
	}
	first := r.snapshot()
	var sampler *sampler
	if tl != nil && r.clients != nil {
		sampler = startSampler(r.clients, r.times.Slot)
		defer sampler.stop()
	}
	if r.clients != nil {
		if err := sleep(ctx, r.times.Steady); err != nil {
			return err
		}
	}
	leaving := r.service.leaving()
	r.out.OldMemory = memory(r.service.members())
	defer r.wg.Wait()
	end := make(chan load.Result, 1)
	probe, upgraded := r.begin(ctx, watchDeaths(leaving), end)
	defer probe.stop()
	err := <-upgraded
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("upgrade of %s: %w", r.contender.Name, err)
	}
	if err := probe.wait(ctx); err != nil {
		return err
	}
	r.wg.Wait() // until the old process has ended, or should have
	r.service.base().lab.reap(leaving)
	atWindow := <-end
	if sampler != nil {
		sampler.stop()
		tl.add(sampler, r.triggered)
	}
	r.out.NewMemory = memory(r.service.members())
	r.count(first, atWindow, probe)
	r.out.FirstAnswer = probe.answered.Sub(r.triggered)
	r.out.ReadyToOwner = r.readyToOwner()
	return nil
}

// begin starts the upgrade, and says in upgraded how it went. The counts at the
// end of the window go into end, and the end of the old process into r.out.
func (r *round) begin(ctx context.Context, deaths *deathwatch, end chan<- load.Result) (*probe, <-chan error) {
	p := newProbe(r.service.base(), r.service.base().generation+1)
	upgraded := make(chan error, 1)
	begun := false
	u := &upgrading{served: p.found, trigger: func() {
		begun = true
		r.before = r.snapshot()
		r.triggered = time.Now()
		time.AfterFunc(r.times.Window, func() { end <- r.snapshot() })
		r.wg.Go(func() { r.awaitDeaths(deaths) })
		p.start()
	}}
	go func() {
		err := r.service.upgrade(ctx, u)
		if !begun {
			deaths.close()
		}
		upgraded <- err
	}()
	return p, upgraded
}

// awaitDeaths notes when the old process has ended.
func (r *round) awaitDeaths(deaths *deathwatch) {
	if deaths.wait(r.triggered.Add(r.times.Patience)) {
		r.out.OldExit = time.Since(r.triggered)
	}
}

func (r *round) snapshot() load.Result {
	if r.clients == nil {
		return load.Result{}
	}
	return r.clients.Snapshot()
}

// count fills in what the clients saw.
func (r *round) count(first, atWindow load.Result, p *probe) {
	o := &r.out
	if r.clients == nil {
		o.Requests, o.Failed = p.requests, p.failed
		return
	}
	last := r.clients.Stop()
	o.Requests = last.Requests - r.before.Requests
	o.Failed = failures(last, r.before)
	for _, n := range failures(r.before, load.Result{}) {
		o.FailedEarly += n
	}
	o.Faults = last.ClientFault
	o.Announced = last.AnnouncedReconnects - r.before.AnnouncedReconnects
	o.Unannounced = last.UnannouncedReconnects - r.before.UnannouncedReconnects
	o.Steady = latency(&r.before, &first)
	o.Upgrade = latency(&atWindow, &r.before)
}

func latency(to, from *load.Result) report.Latency {
	h := to.Latency.Since(&from.Latency)
	return report.Latency{Count: h.Count(), P50: h.Quantile(.5), P99: h.Quantile(.99), P999: h.Quantile(.999), Max: h.Max()}
}

// failures are those between two moments, by kind.
func failures(to, from load.Result) map[string]int64 {
	all := make(map[string]int64)
	for _, k := range []struct {
		name     string
		to, from int64
	}{
		{"refused", to.Refused, from.Refused},
		{"dial failed", to.DialFailed, from.DialFailed},
		{"reset", to.Reset, from.Reset},
		{"closed before the answer", to.EOFBeforeAnswer, from.EOFBeforeAnswer},
		{"closed in the answer", to.EOFInAnswer, from.EOFInAnswer},
		{"timeout", to.Timeout, from.Timeout},
		{"malformed", to.Malformed, from.Malformed},
		{"wrong answer", to.WrongAnswer, from.WrongAnswer},
		{"bad status", to.BadStatus, from.BadStatus},
		{"stream reset", to.StreamReset, from.StreamReset},
		{"refused by GOAWAY", to.GoAwayRefused, from.GoAwayRefused},
		{"behind a close", to.BehindClose, from.BehindClose},
		{"other", to.OtherError, from.OtherError},
	} {
		if n := k.to - k.from; n > 0 {
			all[k.name] = n
		}
	}
	return all
}

// readyToOwner is the time from when the new process said that it was ready
// until it had the sockets, or until its predecessor knew. 0: nobody tells.
func (r *round) readyToOwner() time.Duration {
	s := r.service.base()
	if b, err := os.ReadFile(s.path(receiptName(s.generation))); err == nil {
		var rec handover.Receipt
		if json.Unmarshal(b, &rec) == nil {
			return rec.Steps.Owner.Sub(rec.Steps.Ready)
		}
	}
	ready, ok := s.lab.event(s.name, s.generation, "ready")
	if !ok {
		return 0
	}
	if owner, ok := s.lab.event(s.name, s.generation, "owner"); ok {
		return time.Duration(owner.At - ready.At)
	}
	if over, ok := s.lab.event(s.name, s.generation-1, "superseded"); ok && r.contender.toldAtOnce {
		return time.Duration(over.At - ready.At)
	}
	return 0
}

// sleep lets a load go on for a while.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
