package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/tests/bench/report"
)

// A bench is one run.
type bench struct {
	opts    *options
	lab     *lab
	times   times
	all     []*contender
	started time.Time
	out     *report.Results

	services  map[string]service   // that have been started, by contender and whether they speak TLS
	timelines map[string]*timeline // by contender and load
	backend   *spawned             // of proxies
}

// measure makes a run.
func measure(ctx context.Context, o *options) (*report.Results, error) {
	l, err := newLab(ctx)
	if err != nil {
		return nil, err
	}
	defer l.close()
	// A fork keeps its P until the exec is done, and clients should not wait for it.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
	// The load generator's garbage collection should not be what is measured.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	b := &bench{opts: o, lab: l, started: time.Now(), services: make(map[string]service), timelines: make(map[string]*timeline)}
	b.times = times{warm: 250 * time.Millisecond, Settings: report.Settings{
		Steady: 500 * time.Millisecond, Window: 500 * time.Millisecond, Probation: probation, Patience: 5 * time.Second, Slot: 10 * time.Millisecond}}
	if o.short {
		b.times.warm, b.times.Steady, b.times.Window, b.times.Patience = 50*time.Millisecond, 150*time.Millisecond, 300*time.Millisecond, 1500*time.Millisecond
	}
	b.out = &report.Results{Machine: machine(ctx, l), Started: b.started, Short: o.short, Settings: b.times.Settings}
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{{"upgrades", b.upgrades}, {"passing", b.passing}, {"scaling", b.scaling}, {"steady", b.steady}, {"idle", b.idle}} {
		if o.parts != "" && !slices.Contains(strings.Split(o.parts, ","), part.name) {
			continue
		}
		b.say("%s", part.name)
		if err := part.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	b.out.Took = time.Since(b.started)
	return b.out, nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}

// prepare builds what is needed and finds out what is missing.
func (b *bench) prepare(ctx context.Context) error {
	b.say("building")
	if err := b.lab.buildAll(ctx); err != nil {
		return err
	}
	b.backend = &spawned{site: site{lab: b.lab, name: "backend"}, argv: func(s *site) []string {
		return []string{s.lab.path("bin/plain"), "-listen", s.addr}
	}}
	if err := b.backend.start(ctx); err != nil {
		return err
	}
	wanted := strings.Split(b.opts.only, ",")
	for _, c := range contenders(func() string { return b.backend.addr }) {
		if b.opts.only != "" && !slices.Contains(wanted, c.Name) {
			continue
		}
		var err error
		if c.Name == "tableroll" && !b.opts.fetch {
			err = errors.New("its module was not fetched, as -fetch=false says")
		} else {
			c.Version, err = c.get(ctx, b.lab)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			c.Missing = err.Error()
			b.say("%s is missing: %v", c.Title, err)
		}
		b.all = append(b.all, c)
		b.out.Contenders = append(b.out.Contenders, c.Contender)
	}
	return nil
}

// upgrades upgrades each contender under each load, in rounds.
func (b *bench) upgrades(ctx context.Context) error {
	rounds := b.opts.rounds
	if rounds == 0 {
		rounds = 5
	}
	kinds := loads()
	if b.opts.short {
		rounds = 1
		kinds = slices.DeleteFunc(kinds, func(k *loadKind) bool { return !k.timeline && k.Name != quiet && k.Name != "http2" })
	}
	if b.opts.loads != "" {
		wanted := strings.Split(b.opts.loads, ",")
		kinds = slices.DeleteFunc(kinds, func(k *loadKind) bool { return !slices.Contains(wanted, k.Name) })
	}
	for _, k := range kinds {
		b.out.Loads = append(b.out.Loads, k.Load)
	}
	for round := range rounds {
		for _, k := range kinds {
			if round%k.every != 0 {
				continue
			}
			b.say("round %d of %d, load %s", round+1, rounds, k.Name)
			for i := range b.all { // who comes first changes
				c := b.all[(i+round)%len(b.all)]
				if c.Missing != "" || !c.serves(k) || b.opts.short && c.Group == report.Pythons && k.Name != quiet {
					continue
				}
				if err := b.upgrade(ctx, c, k, round); err != nil {
					return err
				}
			}
		}
	}
	b.endServices()
	for _, c := range b.all {
		for _, k := range kinds {
			if tl := b.timelines[c.Name+" "+k.Name]; tl != nil && tl.rounds > 0 {
				b.out.Timelines = append(b.out.Timelines, tl.report(c.Name, k.Name))
			}
		}
	}
	return nil
}

// upgrade upgrades one contender once. What goes wrong with it is a result; the
// error is that of ctx.
func (b *bench) upgrade(ctx context.Context, c *contender, k *loadKind, round int) error {
	key := fmt.Sprint(c.Name, " ", k.tls)
	s := b.services[key]
	var tl *timeline
	if k.timeline {
		name := c.Name + " " + k.Name
		if b.timelines[name] == nil {
			b.timelines[name] = newTimeline(b.times.Settings)
		}
		tl = b.timelines[name]
	}
	u := report.Upgrade{Contender: c.Name, Load: k.Name}
	var err error
	if s == nil {
		s = c.make(site{lab: b.lab, name: b.lab.unique(c.Name), tls: k.tls})
		if err = s.start(ctx); err == nil {
			b.services[key] = s
		} else {
			s.stop()
		}
	}
	if err == nil {
		u, err = measureUpgrade(ctx, c, k, s, b.times, tl)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	u.Round = round
	if err != nil {
		u.Error = err.Error()
		b.say("%s, load %s: %v", c.Name, k.Name, err)
	}
	if err != nil || u.OldExit == 0 { // one that cannot go on begins anew
		s.stop()
		delete(b.services, key)
	}
	b.out.Upgrades = append(b.out.Upgrades, u)
	return nil
}

func (b *bench) endServices() {
	for key, s := range b.services {
		s.stop()
		delete(b.services, key)
	}
}

func (b *bench) passing(ctx context.Context) (err error) {
	if b.out.RoundTrips, err = measureRoundTrips(ctx, b.lab, b.opts.short); err == nil {
		b.out.Passing, err = measurePassing(ctx, b.lab, b.opts.short)
	}
	return err
}

func (b *bench) scaling(ctx context.Context) (err error) {
	if b.out.Takeovers, err = measureTakeovers(ctx, b.lab, b.opts.short); err == nil {
		b.out.Moves, err = measureMoves(ctx, b.lab, b.opts.short)
	}
	return err
}

// withGrace tells whether the server of package httpdown was built.
func (b *bench) withGrace() bool {
	return slices.ContainsFunc(b.all, func(c *contender) bool { return c.Name == "grace" && c.Missing == "" })
}

func (b *bench) steady(ctx context.Context) (err error) {
	b.out.Steady, err = measureSteady(ctx, b.lab, b.withGrace(), b.opts.short)
	return err
}

func (b *bench) idle(ctx context.Context) (err error) {
	b.out.Idle, err = measureIdle(ctx, b.lab, b.withGrace(), b.opts.short)
	return err
}

// machine is where this runs.
func machine(ctx context.Context, l *lab) report.Machine {
	m := report.Machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.Memory = int64(si.Totalram) * int64(si.Unit)
	}
	m.CPU = field("/proc/cpuinfo", "model name", ":")
	m.System = strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`)
	cmd := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty")
	cmd.Dir = l.root
	if out, err := cmd.Output(); err == nil {
		m.Revision = strings.TrimSpace(string(out))
	}
	return m
}

// field finds the value of a name in a file of lines.
func field(file, name, separator string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, separator); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
