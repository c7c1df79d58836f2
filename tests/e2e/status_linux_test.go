package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// The status is answered at every moment of several takeovers, to the command
// and to programs, and never tells of an older generation than it did before.
func TestStatusThroughTakeovers(t *testing.T) {
	b := newBench(t)
	b.serve()
	n := uint64(scale(10, 4))
	failed := make(chan error, 1)
	go func() { failed <- succeedTimes(b, n) }()
	heard := false
	t.Cleanup(func() { // before the hosts end
		if !heard {
			<-failed
		}
	})
	phases := map[string]int{}
	var last uint64
	answers := 0
	for ended := false; !ended; answers++ {
		select {
		case err := <-failed:
			heard = true
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		default:
		}
		var st *handover.Status
		var err error
		if answers%50 == 0 || ended {
			st, err = b.status()
		} else {
			st, err = b.operator().Status(t.Context())
		}
		if err != nil {
			t.Fatalf("status %d, after generation %d: %v", answers+1, last, err)
		}
		phases[st.Phase.String()]++
		if st.Generation < last || len(st.Sockets) != 1 || st.Sockets[0].Name != "web" {
			t.Fatalf("after generation %d: %+v", last, st)
		}
		last = st.Generation
	}
	if last != n+1 {
		t.Errorf("the last status is of generation %d, want %d", last, n+1)
	}
	t.Logf("%d answers during %d takeovers, by phase: %v", answers, n, phases)
}

// succeedTimes makes n takeovers, for a goroutine that must not end a test.
func succeedTimes(b *bench, n uint64) error {
	for generation := uint64(2); generation <= n+1; generation++ {
		// It is the test's host that ends it, in the end.
		cmd := b.command("takeover", "--probation=100ms")
		if err := b.server.start(cmd); err != nil {
			return err
		}
		go cmd.Wait()
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			st, err := b.operator().Status(b.t.Context())
			if err == nil && st.Generation == generation && st.Phase == handover.PhaseOwner {
				break
			}
			if b.t.Context().Err() != nil || time.Now().After(end) {
				return fmt.Errorf("no takeover by generation %d within %v: the status is %+v, error %v", generation, patience, st, err)
			}
		}
	}
	return nil
}

// The status for people has the same in it.
func TestStatusForPeople(t *testing.T) {
	b := newBench(t)
	b.serve("--revision=3")
	address := b.address("web")
	text := b.wantRun(0, "1, owner", "status")
	for _, want := range []string{"web", address, "Revision", "3"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	b.takeover("--probation=30m", "--revision=4")
	b.awaitPhase(2, handover.PhaseProbation)
	b.wantRun(0, "probation", "status")
}

// An old version that is started again does not take over.
func TestLowerRevisionIsRefused(t *testing.T) {
	b := newBench(t)
	owner := b.serve("--revision=7")
	b.wantRun(4, "raise the revision", "takeover", "--revision=6")
	b.wantRun(4, "raise --revision", "check", "--revision=6")
	owner.wantAlive()
	b.wantGeneration(1)
	b.wantRun(0, "revision", "check", "--revision=7")
	b.succeed(2, "--revision=6", "--force")
	owner.wantCode(0)
}
