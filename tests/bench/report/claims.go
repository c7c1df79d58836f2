package report

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A metric is a figure of upgrades of which less is better.
type metric struct {
	name   string
	figure func(r *Results, contender, load string) Spread
}

// all keeps zeros, which are figures.
func counted(of func(Upgrade) int64) func(*Results, string, string) Spread {
	return func(r *Results, contender, load string) Spread {
		var v []float64
		for _, u := range r.upgrades(contender, load) {
			v = append(v, float64(of(u)))
		}
		return spread(v)
	}
}

// timed leaves out what is not known.
func timed(of func(Upgrade) time.Duration) func(*Results, string, string) Spread {
	return func(r *Results, contender, load string) Spread {
		return spread(pick(r.upgrades(contender, load), of))
	}
}

var (
	failed       = metric{"failed requests", counted(Upgrade.Failures)}
	reconnects   = metric{"connections made anew", counted(Upgrade.Reconnects)}
	tail         = metric{"p99.9 around the upgrade", timed(func(u Upgrade) time.Duration { return u.Upgrade.P999 })}
	tailOfAll    = metric{"p99.9 around the upgrade, failures included", counted(u999)}
	firstAnswer  = metric{"time from the trigger to the first answer", timed(func(u Upgrade) time.Duration { return u.FirstAnswer })}
	readyToOwner = metric{"time from ready to ownership", timed(func(u Upgrade) time.Duration { return u.ReadyToOwner })}
	oldExit      = metric{"time until the old process has ended", timed(func(u Upgrade) time.Duration { return u.OldExit })}
	newMemory    = metric{"memory of the new process", counted(func(u Upgrade) int64 { return u.NewMemory })}
)

// never is the latency of a request that has failed, in nanoseconds.
const never = 1 << 62

// u999 is the p99.9 around an upgrade if requests that fail are never answered.
func u999(u Upgrade) int64 {
	if n := u.Failures(); n*1000 > n+u.Upgrade.Count {
		return never
	}
	return int64(u.Upgrade.P999)
}

// flagship is whom others of a group are compared with.
func flagship(g Group) string {
	switch g {
	case Proxies:
		return "handoverd-proxy"
	case Pythons:
		return "handoverd-gunicorn"
	}
	return "handoverd"
}

// agreed is the verdict of both runs on two contenders, or 0 if they do not have
// the same.
func agreed(a, b *Results, m metric, one, other, load string) int {
	va := verdict(m.figure(a, one, load), m.figure(a, other, load))
	vb := verdict(m.figure(b, one, load), m.figure(b, other, load))
	if va != vb {
		return 0
	}
	return va
}

// compare says in words how the first of a group does against the others, as far
// as both runs agree. Without a second run it says nothing.
func compare(a, b *Results, m metric, g Group, load string) string {
	if b == nil {
		return ""
	}
	ours := a.contender(flagship(g))
	if ours == nil || len(a.upgrades(ours.Name, load)) == 0 {
		return ""
	}
	var less, more []string
	for _, c := range a.Contenders {
		if c.Group != g || c.Name == ours.Name {
			continue
		}
		switch agreed(a, b, m, ours.Name, c.Name, load) {
		case -1:
			less = append(less, c.Title)
		case 1:
			more = append(more, c.Title)
		}
	}
	var parts []string
	if len(less) > 0 {
		parts = append(parts, "less than "+list(less))
	}
	if len(more) > 0 {
		parts = append(parts, "**more than "+list(more)+"**")
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("%s: %s has %s", m.name, ours.Title, strings.Join(parts, ", and "))
}

// A target is something that this project wants to hold, with what was measured.
type target struct {
	what string
	of   func(r *Results) (text string, met, known bool)
}

// lossless are those whose drain is this project's own.
var lossless = []string{"handoverd", "library", "cmd-server", "handoverd-proxy"}

// movers are those of them that move connections.
var movers = []string{"handoverd", "library", "handoverd-proxy"}

func targets() []target {
	return []target{
		{"no request fails, under any load (" + titlesOf(lossless) + ")", func(r *Results) (string, bool, bool) {
			return sumOver(r, lossless, func(Load) bool { return true }, Upgrade.Failures, "failed")
		}},
		{"no client has to connect again, with HTTP/1.1 and without TLS (" + titlesOf(movers) + ")", func(r *Results) (string, bool, bool) {
			return sumOver(r, movers, func(l Load) bool { return l.Keeps && l.Plain }, Upgrade.Reconnects, "made anew")
		}},
		{"from *ready* to ownership less than 300 µs, with one listener", func(r *Results) (string, bool, bool) {
			s := readyToOwner.figure(r, "library", "quiet")
			text := duration(s.Median)
			if trip := spread(r.RoundTrips); trip.N > 0 {
				text += fmt.Sprintf(" (a bare round trip between two processes: %s)", duration(trip.Median))
			}
			return text, s.Median < 300e3, s.N > 0
		}},
		{"from exec to the first answer no slower than tableflip", func(r *Results) (string, bool, bool) {
			ours, library, theirs := firstAnswer.figure(r, "handoverd", "quiet"), firstAnswer.figure(r, "library", "quiet"), firstAnswer.figure(r, "tableflip", "quiet")
			return fmt.Sprintf("handoverd %s, the packages in a program %s, tableflip %s", duration(ours.Median), duration(library.Median), duration(theirs.Median)),
				ours.Median <= theirs.Median && library.Median <= theirs.Median, ours.N > 0 && theirs.N > 0 && library.N > 0
		}},
		{"package scm within 1.3 times the bare system calls, for 253 descriptors, with one processor", func(r *Results) (string, bool, bool) {
			p := passing(r, "sockets", 253)
			s := spread(ratios(p.SCM, p.Bare))
			return digits(s.Median) + " times", s.Median <= 1.3, s.N > 0
		}},
		{"the whole handover of 10,000 sockets within 3 times the bare system calls", wholeWithin(3, func(p Passing) []time.Duration { return p.Between })},
		{"and within 3 times the bare system calls with a listener made of each socket", wholeWithin(3, func(p Passing) []time.Duration { return p.Listen })},
		{"package server answers at least 0.98 times the requests of bare net/http", func(r *Results) (string, bool, bool) {
			s := steadyRatio(r, "handover and server", rates)
			return fmt.Sprintf("%.3f times", s.Median), s.Median >= .98, s.N > 0
		}},
		{"the lowest p99.9 around the takeover of its group, under each load, of the requests that are answered", lowest(tail)},
		{"the same, if one that fails counts as never answered", lowest(tailOfAll)},
	}
}

// wholeWithin compares the whole handover of many sockets with a baseline.
func wholeWithin(times float64, baseline func(Passing) []time.Duration) func(r *Results) (string, bool, bool) {
	return func(r *Results) (string, bool, bool) {
		p := passing(r, "sockets", 10_000)
		base, whole := spread(baseline(p)), spread(p.Whole)
		if base.N == 0 || whole.N == 0 {
			return "", false, false
		}
		return digits(whole.Median/base.Median) + " times", whole.Median <= times*base.Median, true
	}
}

func titlesOf(names []string) string { return strings.Join(names, ", ") }

// sumOver adds a count of some contenders under some loads.
func sumOver(r *Results, names []string, which func(Load) bool, count func(Upgrade) int64, word string) (string, bool, bool) {
	var n, upgrades, requests int64
	for _, l := range r.Loads {
		if !which(l) {
			continue
		}
		for _, name := range names {
			for _, u := range r.upgrades(name, l.Name) {
				n += count(u)
				upgrades++
				requests += u.Requests
			}
		}
	}
	return fmt.Sprintf("%d %s in %d upgrades with %d requests", n, word, upgrades, requests), n == 0, upgrades > 0
}

// lowest names the loads under which somebody else has a lower figure, and who
// has the lowest.
func lowest(m metric) func(*Results) (string, bool, bool) {
	return func(r *Results) (string, bool, bool) { return lowestOf(r, m) }
}

func lowestOf(r *Results, m metric) (string, bool, bool) {
	var lost []string
	known := false
	for _, l := range r.Loads {
		for _, g := range []Group{Services, Proxies} {
			ours := m.figure(r, flagship(g), l.Name)
			if ours.N == 0 || l.Name == "quiet" { // where nobody measures it
				continue
			}
			known = true
			if title, best := bestPeer(r, m, g, l.Name); title != "" && best < ours.Median {
				lost = append(lost, fmt.Sprintf("%s (%s: %s %s, ours %s)", l.Name, g, title, duration(best), duration(ours.Median)))
			}
		}
	}
	if len(lost) == 0 {
		return "under each", true, known
	}
	return "not under " + list(lost), false, known
}

// bestPeer has the lowest figure of a group that is not ours.
func bestPeer(r *Results, m metric, g Group, load string) (title string, best float64) {
	for _, c := range r.Contenders {
		theirs := m.figure(r, c.Name, load)
		if c.Group == g && !c.Ours && theirs.N > 0 && (title == "" || theirs.Median < best) {
			title, best = c.Title, theirs.Median
		}
	}
	return title, best
}

func passing(r *Results, kind string, n int) Passing {
	i := slices.IndexFunc(r.Passing, func(p Passing) bool { return p.Kind == kind && p.Count == n })
	if i < 0 {
		return Passing{}
	}
	return r.Passing[i]
}

func rates(s Steady) []float64 { return s.Rates }
func costs(s Steady) []float64 { return s.Costs }

// steadyRatio is a figure of a server in each turn, divided by that of the first.
func steadyRatio(r *Results, name string, figure func(Steady) []float64) Spread {
	for _, s := range r.Steady {
		if s.Name == name {
			return spread(ratios(figure(s), figure(r.Steady[0])))
		}
	}
	return Spread{}
}
