package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// table gathers what cells came to, and makes a document of it.
type table struct {
	began   time.Time
	sockets []int
	refs    map[int]reference

	mu      sync.Mutex
	results map[cell]result
}

func newTable() *table {
	return &table{
		began: time.Now(), sockets: []int{1, 1000},
		refs: map[int]reference{}, results: map[cell]result{},
	}
}

func (a *table) note(c cell, res result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.results[c] = res
}

// totals are over all cells.
type totals struct {
	cells, failed, fresh, none int
	with                       map[problem]int
	requests, cut              int64
	longest                    time.Duration
	longestAt                  cell
}

func (a *table) totals() (t totals) {
	t.with = map[problem]int{}
	for c, res := range a.results {
		t.cells++
		t.requests += res.requests
		switch {
		case len(res.problems) > 0:
			t.failed++
		case res.owner == none:
			t.none++
		case res.owner == afresh:
			t.fresh++
		default:
			t.cut += res.failed
		}
		for i, p := range res.problems {
			if !slices.Contains(res.problems[:i], p) {
				t.with[p]++
			}
		}
		if res.recovery > t.longest {
			t.longest, t.longestAt = res.recovery, c
		}
	}
	return t
}

const introduction = `# Faults

What becomes of a takeover when one of the two processes is killed, stopped, cut off, starved or slowed down at each step of the protocol. ` + "`make faults`" + ` has measured this and written it; [protocol.md](protocol.md) says why it has to be so, and package ` + "`tests/faults`" + ` how it is done.

A step is reached, not slept for: the process stops there, the other one goes on as far as it can, and then the fault hits. Meanwhile %d clients send requests, each on a new connection, and never send one twice.

| | |
|---|---|
| kernel | %s, %d processors |
| Go | %s |
| date | %s, in %v |
| bound for a recovery, in each cell | %v |
| cells | %d |
| of these, with any of the following problems | %d |
%s| in which the sockets died with the predecessor, before the successor had them | %d: it started afresh |
| in which the owner died when probation was over | %d: the next start was afresh, without any cleaning up |
| requests | %d, of which %d failed: a process that was killed had accepted them |
| longest recovery | %v (%s, %d sockets) |

Columns: **owner** afterwards. **recovery**: the longest time from the fault on in which nobody accepted, though clients tried; where the owner itself was stopped, or had no descriptors, from the end of that on. **failed**: requests that were cut off; **refused**: connections; where the sockets had died both are those of a service that is down until it has started again, and not counted above. **held**: descriptors and goroutines of the owner before (predecessor) or without a fault (successor), and afterwards, at rest.
`

var explanations = map[fault]string{
	killed:   "While the process named here, or the other one, is at the step.",
	stopped:  "Until the other process has decided, after its deadlines (500 ms each), and served; then it goes on, and must not be in the way. A stopped owner stays the owner until it has granted ownership; in probation a stopped successor is killed by its predecessor.",
	paused:   "All threads stand still for a moment, no deadline passes.",
	hungUp:   "By shutdown(2), while both processes live on.",
	starved:  "The limit is lowered below what is open: nothing is lost, nothing can be opened, and nothing accepted.",
	readOnly: "It stays so until the next takeover is over.",
	full:     "It has no room for one more file, and stays so until the next takeover is over.",
	slow:     "That step, and each one after it on that side.",
}

// write writes the document.
func (a *table) write(path string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	t := a.totals()
	var b, problems strings.Builder
	for _, p := range []problem{unreached, noOwner, outOfTurn, wrongOwner, turnedAway, cutOff, leaked, noNext} {
		fmt.Fprintf(&problems, "| - %s | %d |\n", p, t.with[p])
	}
	fmt.Fprintf(&b, introduction, workers, unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU(), runtime.Version(),
		a.began.UTC().Format(time.DateOnly), time.Since(a.began).Round(time.Second), patience,
		t.cells, t.failed, problems.String(), t.fresh, t.none,
		t.requests, t.cut, rounded(t.longest), t.longestAt, t.longestAt.sockets)
	for _, f := range faults {
		fmt.Fprintf(&b, "\n## %s%s\n\n%s\n\n| hits | at |", strings.ToUpper(string(f[:1])), f[1:], explanations[f])
		for _, n := range a.sockets {
			fmt.Fprintf(&b, " %s: owner | recovery | failed | refused | held |", plural(n))
		}
		b.WriteString("\n|---|---|" + strings.Repeat("---|---|---|---|---|", len(a.sockets)) + "\n")
		for _, c := range rows() {
			if c.fault == f {
				a.writeRow(&b, c)
			}
		}
	}
	return os.WriteFile(filepath.Clean(path), []byte(b.String()), 0o644)
}

func (a *table) writeRow(b *strings.Builder, c cell) {
	fmt.Fprintf(b, "| %s | %s |", c.victim, c.point)
	for _, c.sockets = range a.sockets {
		res, ok := a.results[c]
		wrong := ""
		if len(res.problems) > 0 {
			wrong = fmt.Sprintf("**%s** ", res.problems[0])
		}
		switch {
		case !ok:
			b.WriteString(" | | | | |")
		case res.owner == none:
			fmt.Fprintf(b, " %s%s | | %d | %d | |", wrong, res.owner, res.failed, res.refused)
		default:
			fmt.Fprintf(b, " %s%s | %v | %d | %d | %v, %v |", wrong, res.owner, rounded(res.recovery), res.failed, res.refused, res.want, res.after)
		}
	}
	b.WriteString("\n")
}

func plural(n int) string {
	if n == 1 {
		return "1 socket"
	}
	return fmt.Sprintf("%d sockets", n)
}

func rounded(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func (h holdings) String() string { return fmt.Sprintf("%d+%d", h.descriptors, h.goroutines) }
