package main

import (
	"sync"
	"time"

	"github.com/handoverd/handoverd/internal/load"
	"github.com/handoverd/handoverd/tests/bench/report"
)

// A sampler looks at a load again and again.
type sampler struct {
	run  *load.Run
	slot time.Duration
	end  chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	samples []sample // known when it has stopped
}

// A sample is what has happened since the one before.
type sample struct {
	at      time.Time // its middle
	latency load.Histogram
	failed  int64
}

func startSampler(run *load.Run, slot time.Duration) *sampler {
	s := &sampler{run: run, slot: slot, end: make(chan struct{})}
	s.wg.Go(s.look)
	return s
}

func (s *sampler) look() {
	t := time.NewTicker(s.slot)
	defer t.Stop()
	last, began := s.run.Snapshot(), time.Now()
	for {
		select {
		case <-t.C:
		case <-s.end:
			return
		}
		now, at := s.run.Snapshot(), time.Now()
		s.samples = append(s.samples, sample{
			at: began.Add(at.Sub(began) / 2), latency: now.Latency.Since(&last.Latency), failed: now.Failed() - last.Failed(),
		})
		last, began = now, at
	}
}

func (s *sampler) stop() {
	s.once.Do(func() { close(s.end) })
	s.wg.Wait()
}

// A timeline is what all rounds of a contender have seen, by the time from the
// trigger.
type timeline struct {
	slot     time.Duration
	from, to time.Duration
	rounds   int
	merged   []sample
}

func newTimeline(t report.Settings) *timeline {
	tl := &timeline{slot: t.Slot, from: -t.Steady / 2, to: t.Window + t.Window/5}
	tl.merged = make([]sample, (tl.to-tl.from)/tl.slot)
	return tl
}

func (tl *timeline) add(s *sampler, trigger time.Time) {
	tl.rounds++
	for _, x := range s.samples {
		i := x.at.Sub(trigger) - tl.from
		if i < 0 || int(i/tl.slot) >= len(tl.merged) {
			continue
		}
		m := &tl.merged[i/tl.slot]
		m.latency.Merge(&x.latency)
		m.failed += x.failed
	}
}

func (tl *timeline) report(contender, load string) report.Timeline {
	r := report.Timeline{Contender: contender, Load: load, Rounds: tl.rounds}
	for i := range tl.merged {
		m := &tl.merged[i]
		r.Slots = append(r.Slots, report.Slot{
			From: tl.from + time.Duration(i)*tl.slot, Count: m.latency.Count(), Failed: m.failed,
			P50: m.latency.Quantile(.5), P99: m.latency.Quantile(.99), Max: m.latency.Max(),
		})
	}
	return r
}
