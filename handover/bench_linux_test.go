package handover

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// takeoverTimes are the parts of a takeover, as the successor sees them.
type takeoverTimes struct {
	sockets   time.Duration // from the dial until all sockets are here
	listening time.Duration // until the application has asked for each
	granted   time.Duration // from ready until ownership is granted
	whole     time.Duration
}

// timedTakeover takes over n listeners, or makes them, with an accept pending
// on each.
func timedTakeover(cfg Config, n int, serving *sync.WaitGroup) (*Generation, takeoverTimes, error) {
	ctx := context.Background()
	t0 := time.Now()
	g, err := Start(ctx, cfg)
	if err != nil {
		return nil, takeoverTimes{}, err
	}
	t1 := time.Now()
	for i := range n {
		ln, err := g.Listen(fmt.Sprintf("l%d", i), "tcp", "127.0.0.1:0")
		if err != nil {
			return g, takeoverTimes{}, err
		}
		serving.Go(func() { acceptAndClose(ln) })
	}
	t2 := time.Now()
	if err := g.Ready(ctx); err != nil {
		return g, takeoverTimes{}, err
	}
	t3 := time.Now()
	return g, takeoverTimes{t1.Sub(t0), t2.Sub(t1), t3.Sub(t2), t3.Sub(t0)}, nil
}

func acceptAndClose(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

func reportTakeovers(b *testing.B, all []takeoverTimes) {
	b.ReportMetric(0, "ns/op")
	for _, m := range []struct {
		name string
		part func(takeoverTimes) time.Duration
	}{
		{"dial-to-sockets", func(t takeoverTimes) time.Duration { return t.sockets }},
		{"listen", func(t takeoverTimes) time.Duration { return t.listening }},
		{"ready-to-granted", func(t takeoverTimes) time.Duration { return t.granted }},
		{"dial-to-granted", func(t takeoverTimes) time.Duration { return t.whole }},
	} {
		var d []time.Duration
		for _, t := range all {
			d = append(d, m.part(t))
		}
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2])/1e3, m.name+"-us(median)")
	}
}

// BenchmarkTakeover measures takeovers from the successor's dial to granted,
// both sides warm and in one process.
func BenchmarkTakeover(b *testing.B) {
	for _, n := range []int{1, 16, 1000} {
		b.Run(fmt.Sprintf("listeners=%d", n), func(b *testing.B) {
			cfg := testConfig(b)
			var serving sync.WaitGroup
			defer serving.Wait()
			last, _, err := timedTakeover(cfg, n, &serving)
			if err != nil {
				b.Fatal(err)
			}
			var all []takeoverTimes
			// The timer runs through all of it: stopping it would stop the
			// world, and what is reported is measured here.
			for b.Loop() {
				next, d, err := timedTakeover(cfg, n, &serving)
				if err != nil {
					b.Fatal(err)
				}
				all = append(all, d)
				<-last.Superseded()
				last.Close()
				last = next
			}
			last.Close()
			reportTakeovers(b, all)
		})
	}
}

// BenchmarkTakeoverBetweenProcesses measures the same between processes, as
// in life: each successor is a new process that has warmed up on a set of its
// own.
func BenchmarkTakeoverBetweenProcesses(b *testing.B) {
	for _, n := range []int{1, 16, 1000} {
		b.Run(fmt.Sprintf("listeners=%d", n), func(b *testing.B) {
			cfg := testConfig(b)
			start := func() *child {
				c := startChild(b, cfg.Socket)
				c.do("probation -1s", fmt.Sprint("warm ", n))
				return c
			}
			last := start()
			last.do(fmt.Sprint("measure ", n))
			var all []takeoverTimes
			for b.Loop() {
				next := start()
				var d takeoverTimes
				fmt.Sscan(next.do(fmt.Sprint("measure ", n)), &d.sockets, &d.listening, &d.granted, &d.whole)
				all = append(all, d)
				last.do("close")
				last.kill()
				last = next
			}
			reportTakeovers(b, all)
		})
	}
}
