package handover

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// The protocol between an owner O and its successor S as a small model, of which
// every interleaving of steps, messages, deaths and timeouts is looked at. A
// process that is stopped is one whose steps come late, so that is covered: each
// step may come at any time. So may each timeout.
//
// O is generation 1, S is 2, and 0 is the one attempt. The ownership word is
// that of the implementation, as are the phases.
//
// What must hold in every state that can be reached:
//
//   - whoever opens its gate is named by the word at that moment, so that never
//     two accept;
//   - whoever ends without having been asked to leaves ownership to the other;
//   - when nothing is left to happen, and some process has not come to its end,
//     then one that lives accepts, and the word names it.

const (
	modelBefore   = "1"          // settled(1, 0)
	modelDeclined = "1 declined" // declined(1, 0)
	modelAfter    = "1 again"    // settled(1, 1)
	modelOnTrial  = "2 on trial" // onProbation(2, 0)
	modelSettled  = "2"          // settled(2, 0)
)

// modelWord is what the model's words are in memory.
var modelWord = map[string]ownership{
	modelBefore: settled(1, 0), modelDeclined: declined(1, 0), modelAfter: settled(1, 1),
	modelOnTrial: onProbation(2, 0), modelSettled: settled(2, 0),
}

// A modelState is everything there is, comparable.
type modelState struct {
	word  string
	o, s  modelProcess
	toO   string // messages on their way, one letter each
	toS   string
	chaos int // deaths and the like that may still happen
}

// A modelProcess is one side.
type modelProcess struct {
	phase   Phase
	dead    bool
	open    bool // the gate
	hungUp  bool // has ended the conversation
	adopted bool // S: ownership came without O's doing
	leaving bool // asked to stop
	present bool // S: has connected

	// then is what it is in the middle of: between a move of the word and what
	// follows from it anything may happen.
	then string
}

// Messages. Alive is left out: it carries nothing but time.
const (
	msgReady    = "r"
	msgGranted  = "g"
	msgCommit   = "c"
	msgRollback = "b"
	msgRevoked  = "v"
	msgEnd      = "." // the conversation has ended
)

// A modelStep is one thing that may happen.
type modelStep struct {
	name string
	next modelState
}

// model collects what may follow a state.
type model struct {
	from  modelState
	steps []modelStep
	fault string
	seen  map[string]bool // transitions of phases
}

func (m *model) add(name string, f func(*modelState)) {
	s := m.from
	f(&s)
	m.steps = append(m.steps, modelStep{name, s})
}

// swap is the compare-and-swap on the word.
func (s *modelState) swap(from, to string) bool {
	if s.word != from {
		return false
	}
	s.word = to
	return true
}

// The phase is changed only through these, so that each transition is noted.

func (m *model) oPhase(s *modelState, p Phase) { m.change(&s.o, p) }
func (m *model) sPhase(s *modelState, p Phase) { m.change(&s.s, p) }

func (m *model) change(p *modelProcess, next Phase) {
	if p.phase != next {
		m.seen[fmt.Sprintf("%v>%v", p.phase, next)] = true
		if !p.phase.mayBecome(next) {
			m.fault = fmt.Sprintf("no transition from %v to %v", p.phase, next)
		}
	}
	p.phase = next
	if next == PhaseDraining {
		p.open = false
	}
}

func (m *model) openO(s *modelState) {
	s.o.open = true
	if modelWord[s.word].generation() != 1 {
		m.fault = fmt.Sprintf("O opens its gate, and the word is %q", s.word)
	}
}

func (m *model) openS(s *modelState) {
	s.s.open = true
	if modelWord[s.word].generation() != 2 {
		m.fault = fmt.Sprintf("S opens its gate, and the word is %q", s.word)
	}
}

// tellS and tellO send, if the other side still listens.
func (s *modelState) tellS(msg string) bool {
	if s.s.dead || s.s.hungUp || s.o.hungUp {
		return false
	}
	s.toS += msg
	return true
}

func (s *modelState) tellO(msg string) bool {
	if s.o.dead || s.o.hungUp || s.s.hungUp {
		return false
	}
	s.toO += msg
	return true
}

// hangUpO ends the conversation from O's side.
func (s *modelState) hangUpO() {
	if !s.o.hungUp {
		s.o.hungUp = true
		s.toO = ""
		if !s.s.dead && !s.s.hungUp {
			s.toS += msgEnd
		}
	}
}

func (s *modelState) hangUpS() {
	if !s.s.hungUp {
		s.s.hungUp = true
		s.toS = ""
		if !s.o.dead && !s.o.hungUp {
			s.toO += msgEnd
		}
	}
}

// failed is (*takeover).failed.
func (m *model) failed(s *modelState) {
	if !s.swap(modelBefore, modelAfter) {
		s.swap(modelDeclined, modelAfter)
	}
	s.hangUpO()
	if s.o.phase != PhaseDraining {
		m.oPhase(s, PhaseOwner)
	}
}

// grant is (*takeover).grant, in three steps.
func (m *model) grant(s *modelState, trial bool) {
	m.oPhase(s, PhaseGranting)
	s.o.open = false // waits for the last accept, or cannot
	s.o.then = "move the word, settled"
	if trial {
		s.o.then = "move the word, on trial"
	}
}

func (m *model) moves(s *modelState, to string) {
	if !s.swap(modelBefore, to) {
		s.o.then = ""
		if s.word == modelDeclined {
			m.openO(s)
			m.failed(s)
			return
		}
		m.oDrains(s)
		return
	}
	s.o.then = "say granted, settled"
	if to == modelOnTrial {
		m.oPhase(s, PhaseStandby)
		s.o.then = "say granted, on trial"
	}
}

func (m *model) says(s *modelState, trial bool) {
	s.o.then = ""
	told := s.tellS(msgGranted)
	switch {
	case trial && told:
	case trial:
		m.takeBack(s, false)
	case !told && s.s.dead && s.swap(modelSettled, modelBefore):
		m.openO(s)
		m.failed(s)
	default:
		m.oDrains(s)
	}
}

// takeBack is (*takeover).takeBack, in two steps. kills: O kills S, if it may.
func (m *model) takeBack(s *modelState, kills bool) {
	if !s.swap(modelOnTrial, modelAfter) {
		m.oDrains(s)
		return
	}
	s.o.then = "open again"
	if kills {
		s.o.then = "kill, and open again"
	}
}

func (m *model) opensAgain(s *modelState, kills bool) {
	s.o.then = ""
	if kills && !s.s.dead {
		s.hangUpS()
		s.s.dead, s.s.open = true, false
	}
	m.openO(s)
	s.tellS(msgRevoked)
	m.failed(s)
}

func (m *model) oDrains(s *modelState) {
	m.oPhase(s, PhaseDraining)
	if modelWord[s.word].generation() != 2 && !s.o.leaving {
		m.fault = fmt.Sprintf("O drains, and the word is %q", s.word)
	}
}

// ofO adds what O may do.
func (m *model) ofO() {
	s := m.from
	if s.o.dead {
		return
	}
	msg, rest := head(s.toO)
	goesOn := func(f func(*modelState)) { m.add("O goes on: "+s.o.then, f) }
	switch s.o.then {
	case "move the word, on trial":
		m.add("O: accept cannot be paused", func(s *modelState) {
			s.o.then = ""
			m.openO(s)
			m.failed(s)
		})
		goesOn(func(s *modelState) { m.moves(s, modelOnTrial) })
		return
	case "move the word, settled":
		goesOn(func(s *modelState) { m.moves(s, modelSettled) })
		return
	case "say granted, on trial":
		goesOn(func(s *modelState) { m.says(s, true) })
		return
	case "say granted, settled":
		goesOn(func(s *modelState) { m.says(s, false) })
		return
	case "open again":
		goesOn(func(s *modelState) { m.opensAgain(s, false) })
		return
	case "kill, and open again":
		goesOn(func(s *modelState) { m.opensAgain(s, true) })
		return
	}
	switch s.o.phase {
	case PhaseOwner:
		if !s.s.present && s.word == modelBefore {
			m.add("S connects, and gets everything", func(s *modelState) {
				s.s = modelProcess{phase: PhasePreparing, present: true}
				m.oPhase(s, PhaseHanding)
			})
		}
		if s.o.leaving {
			m.add("O stops", func(s *modelState) { m.oDrains(s) })
		}
	case PhaseHanding:
		m.add("O: S is not ready in time", func(s *modelState) { m.failed(s) })
		if s.o.leaving {
			m.add("O leaves while S prepares", func(s *modelState) { m.grant(s, false) })
		}
		if s.s.dead {
			m.add("O: the pidfd says that S is dead", func(s *modelState) { m.failed(s) })
		}
		switch msg {
		case msgReady:
			m.add("O hears ready", func(s *modelState) { s.toO = rest; m.grant(s, true) })
			m.add("O hears ready, without a probation", func(s *modelState) { s.toO = rest; m.grant(s, false) })
		case msgRollback, msgEnd:
			m.add("O: S withdraws", func(s *modelState) { s.toO = rest; m.failed(s) })
		}
	case PhaseStandby:
		m.add("O: S is silent, and is killed", func(s *modelState) { m.takeBack(s, true) })
		m.add("O: S is silent, and cannot be killed", func(s *modelState) { m.takeBack(s, false) })
		if s.o.leaving {
			m.add("O leaves in S's probation", func(s *modelState) {
				if s.swap(modelOnTrial, modelSettled) {
					s.tellS(msgCommit)
				}
				m.oDrains(s)
			})
		}
		if s.s.dead {
			m.add("O: the pidfd says that S is dead", func(s *modelState) { m.takeBack(s, false) })
		}
		switch msg {
		case msgCommit:
			m.add("O hears commit", func(s *modelState) {
				s.toO = rest
				if s.word == modelOnTrial {
					m.takeBack(s, false) // it breaks the protocol
					return
				}
				m.oDrains(s)
			})
		case msgRollback, msgEnd:
			m.add("O: S gives back", func(s *modelState) { s.toO = rest; m.takeBack(s, false) })
		case msgReady:
			m.add("O: ready twice", func(s *modelState) { s.toO = rest; m.takeBack(s, false) })
		}
	case PhaseDraining:
		m.add("O has drained", func(s *modelState) {
			s.hangUpO()
			m.oPhase(s, PhaseDone)
			s.o.dead = true // a process that has ended
		})
	}
}

func head(queue string) (msg, rest string) {
	if queue == "" {
		return "", ""
	}
	return queue[:1], queue[1:]
}

// settle is (*predecessor).toSettled.
func (s *modelState) settle(from ...string) bool {
	for _, f := range from {
		if s.swap(f, modelSettled) {
			return true
		}
	}
	return s.word == modelSettled
}

// decline is (*predecessor).decline.
func (s *modelState) decline() bool {
	return s.swap(modelBefore, modelDeclined) || !s.wordIsSs()
}

func (s *modelState) wordIsSs() bool { return s.word == modelSettled || s.word == modelOnTrial }

func (m *model) sOwns(s *modelState, p Phase) {
	m.sPhase(s, p)
	m.openS(s)
}

func (m *model) sEnds(s *modelState) {
	s.hangUpS()
	m.sPhase(s, PhaseDraining)
	if s.wordIsSs() && !s.s.leaving {
		m.fault = fmt.Sprintf("S ends, and the word is %q", s.word)
	}
}

// granted is (*predecessor).granted.
func (m *model) granted(s *modelState) {
	switch {
	case !s.wordIsSs():
		if s.s.phase == PhaseWaiting || s.s.phase == PhasePreparing {
			s.decline()
			m.sEnds(s)
		}
	case s.s.phase == PhasePreparing:
		s.settle(modelOnTrial)
		s.s.adopted = true
	case s.s.phase == PhaseWaiting && s.word == modelOnTrial:
		m.sOwns(s, PhaseProbation)
	case s.s.phase == PhaseWaiting:
		m.sOwns(s, PhaseOwner)
	}
}

// commits is (*predecessor).settle.
func (m *model) commits(s *modelState) {
	if !s.settle(modelOnTrial) {
		m.revoked(s)
		return
	}
	if s.s.phase == PhaseReturning {
		m.sOwns(s, PhaseOwner)
	} else {
		m.sPhase(s, PhaseOwner)
	}
	s.s.then = "say commit"
}

// revoked is (*predecessor).revoked.
func (m *model) revoked(s *modelState) {
	switch s.s.phase {
	case PhaseReturning:
		m.sEnds(s)
	case PhaseProbation:
		if s.wordIsSs() {
			m.lost(s)
			return
		}
		m.sEnds(s)
	default:
		m.refused(s)
	}
}

// refused is (*predecessor).refused.
func (m *model) refused(s *modelState) {
	if (s.s.phase == PhasePreparing || s.s.phase == PhaseWaiting) && s.decline() {
		m.sEnds(s)
		return
	}
	m.lost(s)
}

// lost is (*predecessor).lost.
func (m *model) lost(s *modelState) {
	died := s.o.dead
	s.hangUpS()
	switch s.s.phase {
	case PhasePreparing, PhaseWaiting:
		if s.s.adopted {
			return
		}
		kept := false
		if died {
			kept = s.settle(modelBefore, modelOnTrial)
		} else {
			kept = !s.decline() && s.settle(modelOnTrial)
		}
		switch {
		case !kept:
			m.sEnds(s)
		case s.s.phase == PhaseWaiting:
			m.sOwns(s, PhaseOwner)
		default:
			s.s.adopted = true
		}
	case PhaseProbation:
		if !s.settle(modelOnTrial) {
			m.sEnds(s)
			return
		}
		m.sPhase(s, PhaseOwner)
	case PhaseReturning:
		if !s.settle(modelOnTrial) && !(died && s.settle(modelAfter)) {
			m.sEnds(s)
			return
		}
		m.sOwns(s, PhaseOwner)
	}
}

// ofS adds what S may do.
func (m *model) ofS() {
	s := m.from
	if s.s.dead || !s.s.present {
		return
	}
	msg, rest := head(s.toS)
	switch s.s.then {
	case "say commit":
		m.add("S says commit", func(s *modelState) {
			s.s.then = ""
			s.tellO(msgCommit)
		})
		return
	case "end":
		m.add("S says rollback, and ends", func(s *modelState) {
			s.s.then = ""
			s.tellO(msgRollback)
			m.sEnds(s)
		})
		return
	}
	hears := func(name string, f func(*modelState)) {
		m.add("S hears "+name, func(s *modelState) { s.toS = rest; f(s) })
	}
	switch s.s.phase {
	case PhasePreparing, PhaseWaiting, PhaseProbation, PhaseReturning, PhaseOwner:
		switch msg {
		case msgGranted:
			hears("granted", func(s *modelState) { m.granted(s) })
		case msgEnd:
			if s.s.phase != PhaseOwner {
				hears("the end", func(s *modelState) { m.lost(s) })
			} else {
				hears("the end, late", func(s *modelState) { s.hangUpS() })
			}
		case msgRevoked:
			hears("revoked", func(s *modelState) { m.revoked(s) })
		case msgCommit:
			hears("commit", func(s *modelState) {
				switch {
				case s.s.phase != PhasePreparing && s.s.phase != PhaseWaiting:
					if s.s.phase != PhaseOwner {
						m.commits(s)
					}
				case s.wordIsSs():
					s.settle(modelOnTrial)
					m.granted(s)
				default:
					m.refused(s)
				}
			})
		}
	}
	switch s.s.phase {
	case PhasePreparing:
		m.add("S is ready", func(s *modelState) {
			if s.s.adopted {
				m.sOwns(s, PhaseOwner)
				return
			}
			m.sPhase(s, PhaseWaiting)
			s.tellO(msgReady) // if O has gone, its end is what S hears next
		})
		if s.s.leaving && s.s.adopted {
			m.add("S stops", func(s *modelState) { m.sEnds(s) })
		}
		if s.s.leaving && !s.s.adopted {
			m.add("S withdraws", func(s *modelState) { m.withdraw(s) })
		}
	case PhaseWaiting:
		m.add("S: ready is not answered in time", func(s *modelState) {
			m.withdraw(s)
		})
		if s.s.leaving {
			m.add("S withdraws", func(s *modelState) { m.withdraw(s) })
		}
	case PhaseProbation:
		m.add("S: probation is over", func(s *modelState) { m.commits(s) })
		if s.s.leaving {
			m.add("S rolls back", func(s *modelState) {
				m.sPhase(s, PhaseReturning)
				s.s.open = false
				s.tellO(msgRollback)
			})
		}
	case PhaseReturning:
		m.add("S: rollback is not answered in time", func(s *modelState) {
			if s.settle(modelOnTrial) {
				m.commits(s)
				return
			}
			m.sEnds(s)
		})
	case PhaseOwner:
		if s.s.leaving {
			m.add("S stops", func(s *modelState) { m.sEnds(s) })
		}
	case PhaseDraining:
		m.add("S has drained", func(s *modelState) {
			s.hangUpS()
			m.sPhase(s, PhaseDone)
			s.s.dead = true
		})
	}
}

// withdraw is (*predecessor).withdraw.
func (m *model) withdraw(s *modelState) {
	if s.decline() {
		s.s.then = "end"
		return
	}
	m.granted(s)
}

// chaos adds what befalls a process.
func (m *model) chaos() {
	if m.from.chaos == 0 {
		return
	}
	befalls := func(name string, f func(*modelState)) {
		m.add(name, func(s *modelState) { s.chaos--; f(s) })
	}
	if !m.from.o.dead {
		befalls("O is killed", func(s *modelState) { s.hangUpO(); s.o.dead, s.o.open = true, false })
		if !m.from.o.leaving {
			befalls("O is asked to stop", func(s *modelState) { s.o.leaving = true })
		}
	}
	if m.from.s.present && !m.from.s.dead {
		befalls("S is killed", func(s *modelState) { s.hangUpS(); s.s.dead, s.s.open = true, false })
		if !m.from.s.leaving {
			befalls("S is asked to stop or roll back", func(s *modelState) { s.s.leaving = true })
		}
		if !m.from.s.hungUp {
			befalls("S hangs up", func(s *modelState) { m.hangs(s) })
		}
	}
}

// hangs closes S's end of the conversation, which S finds out as the end.
func (m *model) hangs(s *modelState) {
	if !s.o.dead && !s.o.hungUp {
		s.toO += msgEnd
	}
	s.o.hungUp = true
	s.toS += msgEnd
}

// check says what is wrong with a state in which nothing more may happen but
// chaos, or "".
func (s modelState) check() string {
	lives := func(p modelProcess) bool { return !p.dead && p.phase != PhaseDraining && p.phase != PhaseDone }
	oServes := lives(s.o) && s.o.open && modelWord[s.word].generation() == 1
	sServes := s.s.present && lives(s.s) && s.s.open && modelWord[s.word].generation() == 2
	someLives := lives(s.o) || s.s.present && lives(s.s)
	switch {
	case oServes && sServes:
		return "both serve"
	case someLives && !oServes && !sServes:
		return "nobody serves, and nobody will"
	case lives(s.o) && s.o.phase == PhaseOwner && !oServes:
		return "O believes to be the owner, and is not"
	case s.s.present && lives(s.s) && s.s.phase == PhaseOwner && !sServes:
		return "S believes to be the owner, and is not"
	}
	return ""
}

// TestModel looks at every state that can be reached.
func TestModel(t *testing.T) {
	begin := modelState{word: modelBefore, o: modelProcess{phase: PhaseOwner, open: true}, chaos: 3}
	came := map[modelState]modelStep{begin: {}} // from where, by what
	seen := map[string]bool{}
	trace := func(s modelState) string {
		var steps []string
		for s != begin {
			c := came[s]
			steps = append(steps, fmt.Sprintf("%-45s %+v", c.name, s))
			s = c.next
		}
		slices.Reverse(steps)
		return strings.Join(steps, "\n")
	}
	queue := []modelState{begin}
	quiet := 0
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		m := &model{from: s, seen: seen}
		m.ofO()
		m.ofS()
		if m.fault != "" {
			t.Fatalf("%s after\n%s", m.fault, trace(s))
		}
		// A process that waits for something that cannot come any more has
		// a timeout, which is a step; and a step that changes nothing is none.
		m.steps = slices.DeleteFunc(m.steps, func(n modelStep) bool { return n.next == s })
		if len(m.steps) == 0 {
			quiet++
			if wrong := s.check(); wrong != "" {
				t.Fatalf("%s: %+v after\n%s", wrong, s, trace(s))
			}
		}
		m.chaos()
		for _, n := range m.steps {
			if _, ok := came[n.next]; !ok {
				came[n.next] = modelStep{n.name, s}
				queue = append(queue, n.next)
			}
		}
	}
	t.Logf("%d states, %d of them quiet", len(came), quiet)

	// The implementation may do what the model does, and nothing else.
	table := map[string]bool{}
	for p, all := range transitions {
		for _, q := range all {
			table[fmt.Sprintf("%v>%v", Phase(p), q)] = true
		}
	}
	for _, pair := range slices.Sorted(maps.Keys(seen)) {
		if !table[pair] {
			t.Errorf("%s happens in the model, and is not in the table", pair)
		}
	}
	for _, pair := range slices.Sorted(maps.Keys(table)) {
		if why, ok := notModelled[pair]; !seen[pair] && !ok {
			t.Errorf("%s is in the table, and does not happen in the model", pair)
		} else if seen[pair] && ok {
			t.Errorf("%s happens in the model, but is said not to: %s", pair, why)
		}
	}
}

// notModelled are transitions that have no part in a takeover.
var notModelled = map[string]string{
	"handing>draining": "only Close does that, when all else has failed",
}
