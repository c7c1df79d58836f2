package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// Of many successors that come at once exactly one gets in, each time. All
// others are told that the owner is busy. Nobody else notices.
func TestManySuccessorsAtOnce(t *testing.T) {
	for _, n := range []int{2, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := newBench(t)
			owner := b.serve()
			load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), Workers: 16})
			witness := b.watch(2)
			last := uint64(1)
			for range rounds(5, 2) {
				all := b.atOnce(n, "--probation=30m")
				winner := onlyOneLeft(t, all)
				last++
				if st := b.awaitPhase(last, handover.PhaseProbation); st.PID != winner.pid() {
					t.Fatalf("process %d is on probation, want %d, which has not ended", st.PID, winner.pid())
				}
				for _, p := range all {
					if p != winner {
						p.wantCode(4)
						p.awaitText("refused (busy)")
					}
				}
				b.wantRun(0, "committed", "commit")
				owner.wantCode(0)
				b.awaitOwner(last)
				b.wantGeneration(last)
				load.awaitMore(last)
				owner = winner
			}
			witness.end()
			load.wantPerfect(int(last))
		})
	}
}

// Those that have time follow one after the other.
func TestManySuccessorsThatWait(t *testing.T) {
	for _, n := range []int{2, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := newBench(t)
			owner := b.serve()
			load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), Workers: 16})
			witness := b.watch(2)
			all := b.atOnce(n, "--wait=10m", "--probation=20ms")
			last := onlyOneLeft(t, all)
			if st := b.awaitOwner(uint64(n) + 1); st.PID != last.pid() {
				t.Errorf("process %d is the owner, want %d, which has not ended", st.PID, last.pid())
			}
			for _, p := range append(all, owner) {
				if p != last {
					p.wantCode(0)
				}
			}
			load.awaitMore(uint64(n) + 1)
			witness.end()
			load.wantPerfect(1)
			last.wantAlive()
		})
	}
}

// atOnce starts n successors.
func (b *bench) atOnce(n int, args ...string) []*process {
	b.t.Helper()
	all := make([]*process, n)
	for i := range all {
		all[i] = b.takeover(args...)
	}
	return all
}

// onlyOneLeft waits until all but one have ended, and returns that one.
func onlyOneLeft(t testing.TB, all []*process) *process {
	t.Helper()
	ends := make(chan *process, len(all))
	for _, p := range all {
		go func() { // until the test's end at the latest, when all are killed
			<-p.ended
			ends <- p
		}()
	}
	left := map[*process]bool{}
	for _, p := range all {
		left[p] = true
	}
	for len(left) > 1 {
		select {
		case p := <-ends:
			delete(left, p)
		case <-time.After(patience):
			t.Fatalf("%d of %d processes have not ended", len(left), len(all))
		}
	}
	for p := range left {
		p.wantAlive()
		return p
	}
	panic("no process")
}

// Many cold starts at once, on a path where there is nothing, or what a killed
// owner has left there: exactly one starts a first generation. The others take
// over, one after the other, or are refused.
func TestManyColdStartsAtOnce(t *testing.T) {
	const n = 20
	for _, tt := range []struct {
		name  string
		stale bool
		flags []string
		codes string // of those that have ended
	}{
		{"fresh path", false, nil, " 0 4 "},
		{"stale path", true, nil, " 0 4 "},
		{"fresh path, with time", false, []string{"--wait=10m"}, " 0 "},
		{"stale path, with time", true, []string{"--wait=10m"}, " 0 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := n
			times := rounds(3, 1)
			if tt.flags != nil { // each waits for its turn
				n, times = 10, rounds(1, 1)
			}
			for range times {
				b := newBench(t)
				if tt.stale {
					b.serve().kill()
					if files := b.files(); len(files) != 2 {
						t.Fatalf("the killed owner has left %v", files)
					}
				}
				args := append([]string{"--or-serve", "--probation=20ms", "--listen", b.listener()}, tt.flags...)
				all := b.atOnce(n, args...)
				last := onlyOneLeft(t, all)
				st := b.awaitStatus("the last one is the owner", func(st *handover.Status) bool {
					return st.PID == last.pid() && st.Phase == handover.PhaseOwner
				})
				b.wantGeneration(st.Generation)
				first, owners, codes := 0, uint64(0), map[int]int{}
				for _, p := range all {
					first += strings.Count(p.text(), `msg="first generation"`)
					if p == last {
						owners++
						continue
					}
					codes[p.code]++
					if p.code == 0 {
						owners++
					}
					if !strings.Contains(tt.codes, fmt.Sprintf(" %d ", p.code)) {
						t.Errorf("pid %d: exit code %d, want one of%s", p.pid(), p.code, tt.codes)
					}
				}
				if first != 1 || st.Generation != owners {
					t.Errorf("%d first generations, and %d processes have been owners; the last one is generation %d", first, owners, st.Generation)
				}
				t.Logf("%d generations; exit codes of the others %v", st.Generation, codes)
				last.wantAlive()
				b.wantRun(0, "stopped", "stop")
				last.wantCode(0)
				if files := b.files(); len(files) != 0 {
					t.Errorf("left behind: %v", files)
				}
			}
		})
	}
}
