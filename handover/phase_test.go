package handover

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Every pair of phases: allowed exactly as the comments on the constants say.
func TestEveryTransition(t *testing.T) {
	allowed := map[string]bool{}
	for _, s := range strings.Fields(`
		preparing>waiting preparing>owner preparing>draining
		waiting>probation waiting>owner waiting>draining
		probation>owner probation>returning probation>draining
		owner>handing owner>draining
		handing>owner handing>granting handing>draining
		granting>owner granting>standby granting>draining
		standby>owner standby>draining
		returning>owner returning>draining
		draining>done`) {
		allowed[s] = true
	}
	for p := range phaseCount {
		for q := range phaseCount {
			pair := fmt.Sprintf("%v>%v", p, q)
			if p.mayBecome(q) != allowed[pair] {
				t.Errorf("%s: mayBecome is %v", pair, p.mayBecome(q))
			}
			if p == q {
				continue
			}
			g := newGeneration(Config{Logger: discard()}, 1)
			g.phase = p
			panicked := func() (yes bool) {
				defer func() { yes = recover() != nil }()
				g.changePhase(q, nil)
				return false
			}()
			if panicked == allowed[pair] {
				t.Errorf("%s: changePhase panics: %v", pair, panicked)
			}
			g.cancel()
		}
	}
}

// From every phase the end can be reached, and nothing leaves the end.
func TestEveryPhaseLeadsToTheEnd(t *testing.T) {
	for p := range phaseCount {
		reached := []Phase{p}
		for i := 0; i < len(reached); i++ {
			for _, q := range transitions[reached[i]] {
				if !slices.Contains(reached, q) {
					reached = append(reached, q)
				}
			}
		}
		if !slices.Contains(reached, PhaseDone) {
			t.Errorf("%v does not lead to the end", p)
		}
	}
}

func TestPhaseText(t *testing.T) {
	for p := range phaseCount {
		b, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var q Phase
		if err := q.UnmarshalText(b); err != nil || q != p {
			t.Errorf("%s became %v: %v", b, q, err)
		}
	}
	if err := new(Phase).UnmarshalText([]byte("asleep")); err == nil {
		t.Error("asleep is a phase")
	}
	if s := Phase(77).String(); s != "phase(77)" {
		t.Error(s)
	}
}

func TestOwnershipWordKeepsItsParts(t *testing.T) {
	for _, generation := range []uint64{1, 2, 1 << 20, maxGeneration} {
		for _, attempt := range []uint64{0, 1, attemptMask} {
			for _, o := range []ownership{settled(generation, attempt), declined(generation, attempt)} {
				if o.generation() != generation || o.attempt() != attempt || o.probation() {
					t.Errorf("%d, %d: %v", generation, attempt, o)
				}
			}
		}
		if o := onProbation(generation, 3); o.generation() != generation || o.attempt() != 3 || !o.probation() || o == settled(generation, 3) {
			t.Errorf("%d: %v", generation, o)
		}
	}
	if settled(1, attemptMask+1) != settled(1, 0) {
		t.Error("the attempt does not wrap")
	}
}

func TestConfigErrors(t *testing.T) {
	for want, cfg := range map[string]Config{
		"ReadyTimeout is negative": {ReadyTimeout: -1},
		"AliveTimeout of 1ns":      {AliveTimeout: 1},
		"probation of 2h0m0s":      {Probation: 2 * maxProbation},
		"text of 5000 bytes":       {Program: strings.Repeat("x", 5000)},
	} {
		if _, err := Start(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
