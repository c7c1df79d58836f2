package e2e

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// After many takeovers in a row a generation is as large as an early one: in
// memory, descriptors, goroutines, and files in the directory.
//
// For long: go test ./tests/e2e -run ChainOfTakeovers -soak 1000 -timeout 0 -v
func TestChainOfTakeoversDoesNotGrow(t *testing.T) {
	b := newBench(t)
	owner := b.serve("--listen", b.listener(), "--listen", "local=unix://"+b.path("local"), "--listen", "dns=udp://"+b.server.addr+":0")
	n := uint64(rounds(30, 15))
	c := &chain{b: b, owner: owner, generation: 1}
	c.reach(10)
	early := c.measure()
	t.Logf("generation %d: %v", c.generation, early)
	begin := time.Now()
	from := c.generation
	c.reach(n)
	t.Logf("%d takeovers in %v", c.generation-from, time.Since(begin).Round(time.Millisecond))
	late := c.measure()
	t.Logf("generation %d: %v", c.generation, late)
	// What is settled a moment later is looked at again.
	for tries := 0; tries < 10 && !late.fits(early); tries++ {
		c.reach(c.generation + 1)
		late = c.measure()
		t.Logf("generation %d: %v", c.generation, late)
	}
	if !late.fits(early) {
		t.Errorf("generation %d has grown: %v, and %d files", c.generation, late, late.files)
	}
}

// A size is what a generation takes.
type size struct {
	descriptors, goroutines, files int
	rss                            int // KiB, the median of several generations
}

func (s size) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %d KiB resident, %d files in the directory", s.descriptors, s.goroutines, s.rss, s.files)
}

func (s size) fits(early size) bool {
	return s.descriptors <= early.descriptors && s.goroutines <= early.goroutines && s.files <= early.files &&
		s.rss <= early.rss*11/10
}

// A chain is a sequence of generations.
type chain struct {
	b          *bench
	owner      *process
	generation uint64
	rss        []int // KiB, of each generation when it had served for a moment
}

// reach has one process after the other take over, without probation, until
// the given generation serves.
func (c *chain) reach(generation uint64) {
	c.b.t.Helper()
	for c.generation < generation {
		successor := c.b.takeover("--probation=0")
		st := c.b.awaitStatus("the successor owns the sockets", func(st *handover.Status) bool {
			return st.PID == successor.pid() && st.Phase == handover.PhaseOwner
		})
		c.owner.wantCode(0)
		c.owner, c.generation = successor, st.Generation
		c.b.wantGeneration(c.generation)
		c.rss = append(c.rss, resident(c.b.t, successor))
	}
}

// measure measures the last generation, and that of its successors.
func (c *chain) measure() size {
	c.b.t.Helper()
	// The fewest: some that end with a conversation may be there for a moment.
	s := size{files: len(c.b.files()), goroutines: min(c.goroutines(), c.goroutines(), c.goroutines())}
	s.descriptors = len(settled(c.b.t, c.owner))
	// What one process takes depends on when its garbage was collected last.
	last := slices.Clone(c.rss[max(0, len(c.rss)-9):])
	slices.Sort(last)
	s.rss = last[len(last)/2]
	return s
}

// goroutine 0 is no goroutine, but the thread that got the signal.
var goroutine = regexp.MustCompile(`(?m)^goroutine [1-9]\d* `)

// goroutines counts those of a successor on probation, which tells of them as
// it dies from SIGQUIT. The last generation takes the sockets back then.
func (c *chain) goroutines() int {
	c.b.t.Helper()
	successor := c.b.takeover("--probation=30m")
	st := c.b.awaitStatus("the successor is on probation", func(st *handover.Status) bool {
		return st.PID == successor.pid() && st.Phase == handover.PhaseProbation
	})
	c.b.wantGeneration(st.Generation)
	successor.signal(syscall.SIGQUIT)
	successor.wantCode(2)
	c.b.awaitStatus("the sockets are taken back", func(st *handover.Status) bool {
		return st.PID == c.owner.pid() && st.Phase == handover.PhaseOwner
	})
	return len(goroutine.FindAllString(successor.text(), -1))
}

// resident is the resident memory of a process in KiB.
func resident(t testing.TB, p *process) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "VmRSS:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatalf("no VmRSS in\n%s", text)
	return 0
}
