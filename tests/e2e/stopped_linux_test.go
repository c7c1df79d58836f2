package e2e

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// The owner, the successor, or both are stopped at a random moment of a
// takeover, and go on later: soon, or when the other side has given them up.
// Whoever then is the owner, never do two accept, nobody is refused, and no
// request fails but those in a successor that was killed because it was silent.
//
// For long: go test ./tests/e2e -run StoppedInTakeover -soak 200 -timeout 0 -v
func TestStoppedInTakeover(t *testing.T) {
	b := newBench(t)
	random := chance(t)
	s := &stops{b: b, random: random, owner: b.serve(usual...)}
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), PostRatio: .5, Workers: 32})
	witness := b.watch(4)
	n := rounds(20, 8)
	for i := range n {
		s.round(i)
		load.awaitMore(s.generation())
	}
	cut := witness.end(s.back...)
	res := load.stop()
	failed := res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	if res.Refused != 0 || res.Failed() != failed || res.ClientFault != 0 {
		t.Errorf("%d refused, %d cut off, %d failed in all; want none but those cut off by a death", res.Refused, failed, res.Failed())
	}
	if most := s.killed * (res.Workers + 4); int(failed)+cut > most {
		t.Errorf("%d requests failed, and %d of the witness; want at most %d, after %d deaths", failed, cut, most, s.killed)
	}
	t.Logf("%d takeovers: %d succeeded, %d did not, of these %d in probation; %d successors were killed, with %d requests, and %d of the witness; of %d requests %d were refused",
		n, s.done, n-s.done, len(s.back), s.killed, failed, cut, res.Requests, res.Refused)
}

// usual are the timeouts that are the program's default.
var usual = []string{"--alive-timeout=3s", "--step-timeout=5s"}

// stops are takeovers in which processes are stopped.
type stops struct {
	b      *bench
	random *rand.Rand
	owner  *process
	back   []uint64 // generations that have owned the sockets and lost them again
	done   int      // takeovers that succeeded
	killed int      // successors that the owner has killed
}

func (s *stops) generation() uint64 {
	return s.b.awaitStatus("the owner is settled", func(st *handover.Status) bool {
		return st.PID == s.owner.pid() && st.Phase == handover.PhaseOwner
	}).Generation
}

// round makes one takeover.
func (s *stops) round(i int) {
	s.b.t.Helper()
	before := s.generation()
	successor := s.b.takeover(append([]string{"--probation=300ms"}, usual...)...)
	stopped := [][]*process{{s.owner}, {successor}, {s.owner, successor}}[i%3]
	// Mostly less than what the other side waits, sometimes more: a successor
	// in probation may be silent for 3 s, and an owner may take 5 s to answer.
	pause := time.Duration(s.random.Int64N(int64(300 * time.Millisecond)))
	if i%4 == 3 {
		pause = 2*time.Second + time.Duration(s.random.Int64N(int64(5*time.Second)))
	}
	span := 20 * time.Millisecond // from the start of the successor, or
	switch s.random.IntN(4) {
	case 0:
		awaitGrant(successor, false)
		span /= 8
	case 1, 2:
		awaitGrant(successor, true)
	}
	time.Sleep(time.Duration(s.random.Int64N(int64(span))))
	for _, p := range stopped {
		// Not an error if it has ended.
		p.cmd.Process.Signal(syscall.SIGSTOP)
	}
	time.Sleep(pause)
	s.random.Shuffle(len(stopped), func(i, j int) { stopped[i], stopped[j] = stopped[j], stopped[i] })
	for _, p := range stopped {
		p.cmd.Process.Signal(syscall.SIGCONT)
	}
	s.settle(before, successor)
}

// settle waits for the end of one of the two, and then the other one has to be
// the owner.
func (s *stops) settle(before uint64, successor *process) {
	s.b.t.Helper()
	select {
	case <-s.owner.ended:
		s.owner.wantCode(0)
		s.owner = successor
		s.done++
		s.generation()
		return
	case <-successor.ended:
	case <-time.After(2 * patience):
		s.b.t.Fatal("neither the owner nor the successor has ended")
	}
	switch successor.code {
	case 1, 4, 5: // withdrew, or was refused, before the grant
	case 6: // was told that the owner has taken back
	case -1:
		s.killed++
	default:
		s.b.t.Fatalf("the successor has ended with exit code %d", successor.code)
	}
	if now := s.generation(); now != before {
		s.b.t.Fatalf("generation %d is the owner, want %d", now, before)
	}
	var lost uint64
	st := s.b.awaitOwner(before)
	if _, err := fmt.Sscanf(st.LastFailure, "generation %d lost ownership in probation", &lost); err == nil {
		s.back = append(s.back, lost)
	}
}
