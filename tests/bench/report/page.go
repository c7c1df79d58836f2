package report

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Figures is the file with the results, beside the page.
const Figures = "benchmarks.json"

// tried is written by hand: what was changed because of the figures.
//
//go:embed tried.md
var tried string

// WriteAll writes the page, the plots and the figures into a directory.
func WriteAll(dir string, r, second *Results) error {
	if err := os.MkdirAll(filepath.Join(dir, "img"), 0o755); err != nil {
		return err
	}
	if err := r.Write(filepath.Join(dir, Figures)); err != nil {
		return err
	}
	if err := plots(filepath.Join(dir, "img"), r); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := Page(f, r, second); err != nil {
		return err
	}
	return f.Close()
}

// Page writes the page. second may be nil.
func Page(w io.Writer, r, second *Results) error {
	p := &page{w: w, r: r, second: second}
	p.head()
	p.targets()
	p.contenders()
	p.loads()
	p.passing()
	p.scaling()
	p.steady()
	p.idle()
	p.line("## What was tried\n\n%s", strings.TrimSpace(tried))
	return p.err
}

// page is one being written.
type page struct {
	w         io.Writer
	r, second *Results
	err       error
}

// line writes a paragraph.
func (p *page) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n\n", args...)
	}
}

// table writes a table, whose first row is its head.
func (p *page) table(rows [][]string) {
	var b strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(row)) + "\n")
		}
	}
	p.line("%s", strings.TrimSuffix(b.String(), "\n"))
}

func (p *page) head() {
	m, r := p.r.Machine, p.r
	p.line("# Benchmarks")
	p.line("Written by `make bench`, which measures everything side by side on the machine that it runs on. The figures are in [%s](%s), the program is [tests/bench](../tests/bench/doc.go). Whatever figure or comparison is here was printed by the run; only \"What was tried\" is written by hand.", Figures, Figures)
	if r.Short {
		p.line("**This was a short run, which shows that everything works. Its figures mean nothing.**")
	}
	rows := [][]string{{"", ""},
		{"machine", fmt.Sprintf("%d CPUs, %s, %s", m.CPUs, m.CPU, mebibytes(float64(m.Memory)))},
		{"system", m.Kernel + ", " + m.System},
		{"versions", m.Go + ", handoverd " + m.Revision},
		{"date", fmt.Sprintf("%s UTC, %.0f minutes", r.Started.UTC().Format("2006-01-02 15:04"), r.Took.Minutes())},
	}
	if s := p.second; s != nil {
		rows = append(rows, []string{"confirmed by", fmt.Sprintf("a second run of %s UTC, of handoverd %s, on %s", s.Started.UTC().Format("2006-01-02 15:04"), s.Machine.Revision, s.Machine.Kernel)})
	}
	p.table(rows)
	if p.second == nil {
		p.line("A single run is no proof of an order, so this page compares nothing in words. With a second one (`-confirm`) it says where both agree.")
	} else {
		p.line("Comparisons in words are made only where the middle halves of the two samples do not overlap, in the same direction in both runs.")
	}
	p.line("A figure with a range is the median with the least and the greatest value. Clients and servers share the %d CPUs.", m.CPUs)
}

func (p *page) targets() {
	p.line("## What it has to hold")
	head := []string{"target", "measured", "met"}
	if p.second != nil {
		head = []string{"target", "first run", "second run", "met"}
	}
	rows := [][]string{head}
	for _, t := range targets() {
		text, met, known := t.of(p.r)
		if !known {
			continue
		}
		row := []string{t.what, text}
		if p.second != nil {
			text2, met2, known2 := t.of(p.second)
			row = append(row, text2)
			met = met && met2 && known2
		}
		rows = append(rows, append(row, map[bool]string{true: "yes", false: "**no**"}[met]))
	}
	p.table(rows)
}

// groups have a name for people.
var groups = []struct {
	group Group
	name  string
}{{Services, "Servers with the same handler"}, {Proxies, "Proxies in front of the same server"}, {Pythons, "The same application under gunicorn"}}

func (p *page) contenders() {
	p.line("## Who")
	rows := [][]string{{"", "an upgrade, from the trigger on", "version"}}
	for _, g := range groups {
		rows = append(rows, []string{"*" + g.name + "*", "", ""})
		for _, c := range p.r.Contenders {
			if c.Group != g.group {
				continue
			}
			version := c.Version
			if c.Missing != "" {
				version = "**missing**: " + c.Missing
			} else if version == "" {
				version = "of this repository"
			}
			rows = append(rows, []string{c.Title, c.How, version})
		}
	}
	p.table(rows)
}

func (p *page) loads() {
	s := p.r.Settings
	p.line("## Upgrades under load")
	p.line("Clients check each answer and never retry. Latency is that of the %v before the trigger (*steady*) and of the %v from it on; a request that failed has none. \"Made anew\" are connections that clients had to make again, announced by the server (`Connection: close`, GOAWAY) or not. The first answer is that of the new process to a client that asks on one new connection after the other, with a millisecond between them. An old process has not ended if it is there %v after the trigger.", s.Steady, s.Window, s.Patience)
	p.line("![latency around an upgrade](img/takeover.svg)")
	p.line("*Latency around an upgrade under the load \"pauses\": median and longest of each %v, all rounds together. A red cross is a failed request.*", s.Slot)
	for _, l := range p.r.Loads {
		p.load(l)
	}
}

func (p *page) load(l Load) {
	p.line("### %s", l.Name)
	p.line("%s.", upper(l.About))
	seen := [][]string{{"", "upgrades", "failed", "on average", "made anew", "announced", "first answer", "old process has ended"}}
	times := [][]string{{"", "p50 steady", "p50", "p99 steady", "p99", "p99.9 steady", "p99.9", "longest steady", "longest"}}
	owner := [][]string{{"", "ready to ownership", "memory of the old", "memory of the new"}}
	for _, g := range groups {
		for _, c := range p.r.Contenders {
			if c.Group != g.group {
				continue
			}
			all := p.r.upgrades(c.Name, l.Name)
			if row := p.seenRow(c, l, all); row != nil {
				seen = append(seen, row)
			}
			if len(all) > 0 && all[0].Steady.Count > 0 {
				times = append(times, timesRow(c, all))
			}
			if len(all) > 0 {
				owner = append(owner, ownerRow(p.r, c, l))
			}
		}
	}
	p.table(seen)
	if len(times) > 1 {
		p.table(times)
	} else {
		p.table(owner) // where nothing else is going on
	}
	p.verdicts(l)
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// seenRow is what clients saw, nil if the contender was not tried.
func (p *page) seenRow(c Contender, l Load, all []Upgrade) []string {
	tried, stayed := 0, 0
	for _, u := range p.r.Upgrades {
		if u.Contender == c.Name && u.Load == l.Name {
			tried++
		}
	}
	if tried == 0 {
		return nil
	}
	var announced []float64
	for _, u := range all {
		if u.OldExit == 0 {
			stayed++
		}
		announced = append(announced, float64(u.Announced))
	}
	upgrades, exit := fmt.Sprint(len(all)), ranged(oldExit.figure(p.r, c.Name, l.Name), duration)
	if tried > len(all) {
		upgrades = fmt.Sprintf("%d, and %d did not succeed", len(all), tried-len(all))
	}
	if stayed > 0 {
		exit += fmt.Sprintf("; not ended: %d", stayed)
	}
	return []string{c.Title, upgrades,
		ranged(failed.figure(p.r, c.Name, l.Name), digits), kinds(all),
		ranged(reconnects.figure(p.r, c.Name, l.Name), digits), ranged(spread(announced), digits),
		ranged(firstAnswer.figure(p.r, c.Name, l.Name), duration), exit}
}

// timesRow is the latency.
func timesRow(c Contender, all []Upgrade) []string {
	row := []string{c.Title}
	for _, of := range []func(Latency) float64{
		func(l Latency) float64 { return float64(l.P50) }, func(l Latency) float64 { return float64(l.P99) },
		func(l Latency) float64 { return float64(l.P999) }, func(l Latency) float64 { return float64(l.Max) },
	} {
		var steady, upgrade []float64
		for _, u := range all {
			steady, upgrade = append(steady, of(u.Steady)), append(upgrade, of(u.Upgrade))
		}
		row = append(row, ranged(spread(steady), duration), ranged(spread(upgrade), duration))
	}
	return row
}

func ownerRow(r *Results, c Contender, l Load) []string {
	old := counted(func(u Upgrade) int64 { return u.OldMemory })
	return []string{c.Title, ranged(readyToOwner.figure(r, c.Name, l.Name), duration),
		ranged(old(r, c.Name, l.Name), mebibytes), ranged(newMemory.figure(r, c.Name, l.Name), mebibytes)}
}

// verdicts are the comparisons that both runs make.
func (p *page) verdicts(l Load) {
	var all []string
	for _, g := range groups {
		for _, m := range []metric{failed, reconnects, tail, firstAnswer, readyToOwner, oldExit, newMemory} {
			if m.name == newMemory.name && l.Name != "quiet" || m.name == failed.name && l.Name == "quiet" {
				continue
			}
			if text := compare(p.r, p.second, m, g.group, l.Name); text != "" {
				all = append(all, "- "+text+".")
			}
		}
	}
	if len(all) > 0 {
		p.line("Both runs agree on:\n\n%s", strings.Join(all, "\n"))
	}
}

func (p *page) passing() {
	if len(p.r.Passing) == 0 {
		return
	}
	p.line("## The kernel's limit")
	p.line("What it takes to pass descriptors from one process to another. *Bare* is sendmsg(2) and recvmsg(2) with SCM_RIGHTS and nothing else, in messages of 253 at most, in one process with one processor; package scm takes turns with it there. (With more processors an idle thread of the runtime is woken by each message to a socket that Go watches, whoever sends it.)")
	rows := [][]string{{"", "number", "bare", "package scm", "ratio"}}
	for _, x := range p.r.Passing {
		rows = append(rows, []string{x.Kind, fmt.Sprint(x.Count), duration(spread(x.Bare).Median), duration(spread(x.SCM).Median),
			quartered(spread(ratios(x.SCM, x.Bare)), digits)})
	}
	p.table(rows)
	if trip := spread(p.r.RoundTrips); trip.N > 0 {
		p.line("A message of 64 bytes to another process, by package net, and its answer, when both have slept for 3 ms: %s. A takeover has three such round trips, the last one from *ready* to ownership.", ranged(trip, duration))
	}
	p.line("The times are medians; the ratio is the median of the repetitions' ratios, with the quartiles.")
	p.line("Below, a process that has just been started receives sockets: by bare system calls, from connect(2) to the last recvmsg(2); the same, and then a listener (net.FileListener) with an accept pending for each, which is the least that a server in Go can do with them; and by package handover, from the dial until all sockets have arrived and are checked, and until it owns them, with an accept pending on each. All of these processes begin with a small table of descriptors, as a server does, which the kernel has to enlarge meanwhile. Ratios are those of the medians.")
	rows = [][]string{{"sockets", "bare", "bare, listening", "handover, arrived", "to bare", "whole handover", "to bare", "to bare, listening"}}
	for _, x := range p.r.Passing {
		bare, listen, arrived, whole := spread(x.Between), spread(x.Listen), spread(x.Arrived), spread(x.Whole)
		if bare.N > 0 && whole.N > 0 {
			rows = append(rows, []string{fmt.Sprint(x.Count), ranged(bare, duration), ranged(listen, duration),
				ranged(arrived, duration), digits(arrived.Median / bare.Median),
				ranged(whole, duration), digits(whole.Median / bare.Median), digits(whole.Median / listen.Median)})
		}
	}
	p.table(rows)
}

func (p *page) scaling() {
	if len(p.r.Takeovers) == 0 && len(p.r.Moves) == 0 {
		return
	}
	p.line("## Scaling")
	p.line("![takeover and move times against sizes](img/scaling.svg)")
	p.points("The takeover of a number of listeners by a new process, from the dial to ownership", "sockets", p.r.Takeovers)
	p.points("The drain of a server with idle connections, all of which move to the successor alive", "connections", p.r.Moves)
}

func (p *page) points(about, what string, points []Point) {
	if len(points) == 0 {
		return
	}
	rows := [][]string{{what, "time", "each"}}
	for _, x := range points {
		s := spread(x.Times)
		row := []string{fmt.Sprint(x.Size), ranged(s, duration), duration(s.Median / float64(x.Size))}
		if s.N == 0 {
			row = []string{fmt.Sprint(x.Size), "failed: " + x.Error, ""}
		}
		rows = append(rows, row)
	}
	p.line("%s:", about)
	p.table(rows)
	if f, ok := fit(points); ok {
		p.line("Least squares: %s and %s for each, R² = %.4f.", duration(f.Intercept), duration(f.Slope), f.R2)
	}
}

func (p *page) steady() {
	if len(p.r.Steady) == 0 {
		return
	}
	p.line("## Between takeovers")
	p.line("Small requests on kept connections, as fast as answers come, in %d short turns that the servers take one after the other. Ratios are those to net/http in each round of turns: the median and the quartiles. The second net/http is another process of the same program; its ratio is noise.", len(p.r.Steady[0].Rates))
	rows := [][]string{{"", "requests per second", "ratio", "CPU per request", "ratio"}}
	for _, s := range p.r.Steady {
		rows = append(rows, []string{s.Name,
			digits(spread(s.Rates).Median), quartered(steadyRatio(p.r, s.Name, rates), thousandths),
			duration(spread(s.Costs).Median), quartered(steadyRatio(p.r, s.Name, costs), thousandths)})
	}
	p.table(rows)
}

func thousandths(x float64) string { return fmt.Sprintf("%.3f", x) }

func (p *page) idle() {
	if len(p.r.Idle) == 0 {
		return
	}
	p.line("Resident memory of the server's process for each of %d idle connections, once garbage has been given back:", p.r.Idle[0].Connections)
	rows := [][]string{{"", "bytes"}}
	for _, x := range p.r.Idle {
		rows = append(rows, []string{x.Name, ranged(spread(x.Bytes), digits)})
	}
	p.table(rows)
}
