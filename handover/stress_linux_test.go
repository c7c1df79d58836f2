package handover

import (
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A successor is stopped, refused for its silence, and sleeps until another
// one has taken over. When it wakes up it must not take that one's ownership
// for its own.
func TestRefusedSuccessorWakesUpUnderTheNextOwner(t *testing.T) {
	for _, probation := range []string{"-1s", "1h"} {
		t.Run("probation "+probation, func(t *testing.T) {
			cfg := testConfig(t)
			_, addr := firstGeneration(t, cfg.Socket, "readytimeout 300ms")
			late := successor(t, cfg.Socket, addr, "step 200ms")
			late.signal(syscall.SIGSTOP)
			eventually(t, "ready timeout", func() bool {
				st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
				return err == nil && st.Phase == PhaseOwner
			})
			next := successor(t, cfg.Socket, addr, "probation "+probation)
			next.do("ready")
			late.signal(syscall.SIGCONT)
			if got := late.ask("ready"); !strings.HasPrefix(got, "error") {
				t.Errorf("the refused successor is ready: %s, in phase %s; the other is in phase %s: two owners",
					got, late.do("phase"), next.do("phase"))
			}
			want := "owner"
			if probation == "1h" {
				want = "probation"
			}
			if got := next.do("phase"); got != want {
				t.Errorf("the owner is in phase %s, want %s", got, want)
			}
			if got := late.do("phase"); got != "draining" {
				t.Errorf("the refused successor is in phase %s", got)
			}
		})
	}
}

// The predecessor leaves before its successor is ready, and that one is taken
// over in turn while it still waits for the predecessor's end: what it
// remembers of its own takeover must not end its standby.
func TestStandbyOutlivesTheEndOfTheOwnPredecessor(t *testing.T) {
	cfg := testConfig(t)
	cfg.StepTimeout = time.Second
	a, _, addr := owner(t, cfg)
	b := begin(t, cfg)
	var s greeter
	s.serve(t, b, listen(t, b, "app", "", ""))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "adoption", b.pred.adopted)
	ready(t, b)
	long := cfg
	long.Probation = time.Hour
	c := begin(t, long)
	s.serve(t, c, listen(t, c, "app", "", ""))
	ready(t, c)
	await(t, "end of the conversation with the predecessor", b.pred.over)
	if p := b.Phase(); p != PhaseStandby {
		t.Errorf("in the successor's probation the predecessor is %v (cause: %v), want standby", p, b.Cause())
	}
	if err := c.Close(); err != nil { // gives back
		t.Fatal(err)
	}
	if p := b.Phase(); p != PhaseOwner {
		t.Fatalf("after the rollback the predecessor is %v: nobody owns the sockets", p)
	}
	answers(t, addr, "2")
	b.Close()
	s.wait()
}

// awaitFrames polls until some goroutine has a frame with each of the texts in
// its stack.
func awaitFrames(t testing.TB, what string, texts ...string) {
	t.Helper()
	buf := make([]byte, 1<<20)
	eventually(t, what, func() bool {
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			found := true
			for _, text := range texts {
				found = found && strings.Contains(g, text)
			}
			if found {
				return true
			}
		}
		return false
	})
}
