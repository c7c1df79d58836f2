package faults

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// reference is a takeover without any fault.
type reference struct {
	batches       int      // of sockets
	first, later  holdings // of a first generation, and of one that took over, at rest
	steps, stepsS []string // of the predecessor and the successor
}

// nth is which one of its kind p is.
func (r reference) nth(p point) int {
	if !p.first && (strings.HasSuffix(p.step, "/sockets") || strings.HasSuffix(p.step, "/received") && p.at() == predecessor) {
		return r.batches
	}
	return 1
}

// undisturbed is a takeover without a fault, ordered to be committed.
func undisturbed(t *testing.T, sockets int) (ref reference) {
	t.Helper()
	r := newRun(t, cell{sockets: sockets}, libraryProgram, &result{})
	relaxed := timing{step: patience, ready: never, alive: patience, probation: never}
	r.p = r.program(r, "predecessor", r.spec(labelP), false, relaxed)
	await(t, "the predecessor owns", func() bool { return r.p.phase() == "owner" })
	r.startLoad(r.p)
	r.stopLoad()
	ref.first = r.steadyHoldings(r.p)
	r.startLoad(r.p)
	r.s = r.program(r, "successor", r.spec(labelS), true, relaxed)
	r.orderWhenInProbation(t.Context(), "commit")
	await(t, "the predecessor has ended", r.p.hasEnded)
	r.awaitAnswers(r.s)
	r.stopLoad()
	ref.later = r.steadyHoldings(r.s)
	ref.steps, ref.stepsS = r.p.trace, r.s.trace
	ref.batches = r.p.steps["owner/sockets"]
	op := handover.Operator{Socket: r.socket(), Timeout: patience}
	if _, err := op.Stop(t.Context(), nil); err != nil {
		t.Error(err)
	}
	await(t, "the successor has ended", r.s.hasEnded)
	return ref
}

// tries is how often a cell begins again because a deadline has passed before
// its step; each time deadlines are longer.
const tries = 5

// try carries out a cell.
func try(t *testing.T, c cell, ref reference, res *result) {
	t.Helper()
	stretch := time.Duration(1)
	for range tries {
		r := newRun(t, c, libraryProgram, res)
		if r.carryOut(ref, stretch) {
			return
		}
		t.Logf("the step was not reached with deadlines stretched by %d: again\n  %v\n  %v", stretch, r.p, r.s)
		r.abandon()
		stretch *= 3
	}
	res.problems = append(res.problems, unreached)
	t.Fatalf("the step was not reached in %d tries", tries)
}

// abandon ends the processes.
func (r *run) abandon() {
	for _, p := range []*process{r.p, r.s} {
		p.kill()
	}
}

// TestFaults is a cell of each kind.
func TestFaults(t *testing.T) {
	needNamespaces(t)
	ref := undisturbed(t, 1)
	chosen := map[fault][]string{
		killed:   {"owner/sockets", "successor/sockets", "successor/probation"},
		stopped:  {"owner/paused", "owner/granted", "successor/alive"},
		paused:   {"owner/moved", "successor/received"},
		hungUp:   {"owner/received", "successor/alive"},
		starved:  {"owner/hello", "successor/welcome"},
		readOnly: {"owner/paused", "successor/granted"},
		full:     {"owner/drain", "owner/taken back"},
		slow:     {"owner/welcome", "successor/hello"},
	}
	for _, c := range rows() {
		if c.sockets = 1; c.exists() && c.victim == c.point.at() && slices.Contains(chosen[c.fault], c.point.step) {
			t.Run(c.String(), func(t *testing.T) {
				t.Parallel()
				try(t, c, ref, &result{})
			})
		}
	}
}

var (
	matrix = flag.String("matrix", "", "carry out the whole matrix and write `file`, a table of it")
	only   = flag.String("cells", "", "of the matrix only the cells whose name matches `regexp`")
)

// TestMatrix is all cells.
func TestMatrix(t *testing.T) {
	if *matrix == "" {
		t.Skip("make faults runs it, with -matrix")
	}
	needNamespaces(t)
	wanted := regexp.MustCompile(*only)
	all := newTable()
	t.Run("cells", func(t *testing.T) {
		for _, sockets := range all.sockets {
			all.refs[sockets] = undisturbed(t, sockets)
		}
		for _, row := range rows() {
			for _, sockets := range all.sockets {
				c := row
				if c.sockets = sockets; !c.exists() || !wanted.MatchString(c.String()) {
					continue
				}
				t.Run(fmt.Sprintf("%s, %d sockets", c, c.sockets), func(t *testing.T) {
					t.Parallel()
					var res result
					defer func() { all.note(c, res) }()
					try(t, c, all.refs[c.sockets], &res)
				})
			}
		}
	})
	if err := all.write(*matrix); err != nil {
		t.Fatal(err)
	}
}

// A step that is new in package handover has to be in the matrix.
func TestMatrixHasEveryStep(t *testing.T) {
	files, err := filepath.Glob("../../handover/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source of package handover: %v", err)
	}
	call := regexp.MustCompile(`\bat\([^"\n]*"((?:owner|successor)/[^"]*)"\)`)
	found := map[string]bool{}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
	}
	for _, p := range points {
		if !found[p.step] {
			t.Errorf("the matrix has a step %s that package handover does not have", p.step)
		}
		if p.first {
			continue // it is there twice
		}
		delete(found, p.step)
	}
	for step := range found {
		if !slices.ContainsFunc(points, func(p point) bool { return p.step == step }) {
			t.Errorf("the matrix lacks the step %s", step)
		}
	}
}

// The steps of a takeover come in the order of the matrix, each side for itself.
func TestStepsOfATakeover(t *testing.T) {
	needNamespaces(t)
	ref := undisturbed(t, 1)
	for _, side := range []struct {
		side side
		got  []string
	}{{predecessor, ref.steps}, {successor, ref.stepsS}} {
		var want []string
		for _, p := range points {
			if p.at() == side.side && !p.first && p.stage < returning {
				want = append(want, p.step)
			}
		}
		if got := slices.Compact(side.got); !slices.Equal(got, want) {
			t.Errorf("steps of the %s:\n%v\nwant\n%v", side.side, got, want)
		}
	}
}
