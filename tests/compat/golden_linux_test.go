package compat

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

var update = flag.Bool("update", false, "write testdata anew, from what frozen peers say to each other")

// pair is who plays: the present implementation on one side at most.
type pair struct {
	currentOwner, currentSuccessor bool // the latter, or the operator
}

var pairs = map[string]pair{
	"frozen owner, frozen successor":  {},
	"present owner, frozen successor": {currentOwner: true},
	"frozen owner, present successor": {currentSuccessor: true},
}

// stage is where one scene is played.
type stage struct {
	t       testing.TB
	p       pair
	path    string
	o       owner
	records map[string]*record // by side
}

func newStage(t testing.TB, p pair, revision uint64) *stage {
	st := &stage{t: t, p: p, path: controlPath(t), records: map[string]*record{"O": {}, "S": {}}}
	if p.currentOwner {
		cfg := currentConfig(st.path)
		cfg.Revision = revision
		st.o = newCurrentO(t, cfg)
	} else {
		fc := frozenConfig(st.path)
		fc.Revision = revision
		st.o = newFrozenO(t, st.records["O"].by("O", fc))
	}
	t.Cleanup(st.o.close)
	return st
}

func (st *stage) successor(revision uint64) successor {
	var s successor
	if st.p.currentSuccessor {
		cfg := currentConfig(st.path)
		cfg.Revision = revision
		s = newCurrentS(st.t, cfg)
	} else {
		fc := frozenConfig(st.path)
		fc.Revision = revision
		s = &frozenS{fc: st.records["S"].by("S", fc)}
	}
	st.t.Cleanup(s.close)
	return s
}

// mortal is a successor that can be killed.
func (st *stage) mortal() successor {
	if !st.p.currentSuccessor {
		return st.successor(0)
	}
	s := &mortalS{newCurrentS(st.t, currentConfig(st.path)), startChild(st.t, st.path)}
	st.t.Cleanup(s.close)
	return s
}

func (st *stage) operator() operator {
	if st.p.currentSuccessor {
		return currentOp{handover.Operator{Socket: st.path, Timeout: patience}}
	}
	return frozenOp{st.records["S"].by("S", frozenConfig(st.path))}
}

// inTheMiddle is a successor that answers an operator, as O. Its conversation
// with its owner, before the record begins, is not recorded.
func (st *stage) inTheMiddle() (s successor, begins func()) {
	if st.p.currentOwner {
		s, begins = newCurrentS(st.t, currentConfig(st.path)), func() {}
	} else {
		fc := st.records["O"].by("O", frozenConfig(st.path))
		record, recording := fc.OnConn, false
		fc.OnConn = func(c *v1.Conn) {
			if recording {
				record(c)
			}
		}
		s, begins = &frozenS{fc: fc}, func() { recording = true }
	}
	st.t.Cleanup(s.close)
	return s, begins
}

// all runs steps at the same time, and returns when they have ended.
func (st *stage) all(steps ...func() error) {
	st.t.Helper()
	var under []*promise[struct{}]
	for _, step := range steps {
		under = append(under, call(step))
	}
	for _, p := range under {
		p.wait(st.t)
	}
}

// inProbation plays up to there.
func (st *stage) inProbation(s successor) {
	st.t.Helper()
	st.all(st.o.handOver, s.takeOver)
	st.all(st.o.grant, s.ready)
}

// scenes are the main conversations, by the name of their file.
var scenes = map[string]struct {
	about string
	play  func(t testing.TB, p pair) *stage
}{
	"takeover-commit": {"A takeover: probation, commit, drain.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		s := st.successor(0)
		st.inProbation(s)
		st.all(st.o.committed, s.commit)
		st.all(st.o.drain, s.hearDrain)
		return st
	}},
	"connections": {"A takeover, after which a connection moves.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		client := dial(t, "tcp", st.o.address())
		st.all(func() error { return st.o.accept(1) })
		s := st.successor(0)
		st.inProbation(s)
		st.all(st.o.committed, s.commit)
		st.all(st.o.move, s.adopt)
		st.all(st.o.drain, s.hearDrain)
		client.Close()
		return st
	}},
	"rollback": {"A successor gives back in probation, and the next one takes over.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		s := st.successor(0)
		st.inProbation(s)
		st.all(st.o.takenBack, s.rollback)
		s.close()
		s = st.successor(0)
		st.inProbation(s)
		st.all(st.o.committed, s.commit)
		st.all(st.o.drain, s.hearDrain)
		return st
	}},
	"death": {"A successor dies in probation.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		s := st.mortal()
		st.inProbation(s)
		st.all(st.o.takenBack, s.die)
		return st
	}},
	"leave": {"An owner leaves in the probation of its successor.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		s := st.successor(0)
		st.inProbation(s)
		st.all(st.o.leave, s.settle)
		st.all(st.o.drain, s.hearDrain)
		return st
	}},
	"withdraw": {"A successor gives up before it is ready.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		s := st.successor(0)
		st.all(st.o.handOver, s.takeOver)
		st.all(st.o.withdrawn, s.withdraw)
		return st
	}},
	"refuse-busy": {"A second successor is refused; then the first gives up.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		s := st.successor(0)
		st.all(st.o.handOver, s.takeOver)
		st.all(st.o.refuse, st.successor(0).refused)
		st.all(st.o.withdrawn, s.withdraw)
		return st
	}},
	"refuse-revision": {"A successor with a lower revision is refused.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 5)
		st.all(st.o.refuse, st.successor(4).refused)
		return st
	}},
	"operator-status": {"An operator asks for the status.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 3)
		st.all(st.o.tellStatus, st.operator().status)
		return st
	}},
	"operator-commit": {"An operator has an owner commit that is committed already.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		st.all(st.o.obeyCommit, st.operator().commit)
		return st
	}},
	"operator-rollback": {"An operator has a generation in probation give back. Its owner hears what is in the file rollback.", func(t testing.TB, p pair) *stage {
		// The owner is none of the two sides here: it is frozen, and not recorded.
		st := &stage{t: t, p: p, path: controlPath(t), records: map[string]*record{"O": {}, "S": {}}}
		o := newFrozenO(t, frozenConfig(st.path))
		t.Cleanup(o.close)
		s, begins := st.inTheMiddle()
		st.o = o
		st.inProbation(s)
		begins()
		st.all(o.takenBack, s.obeyRollback, st.operator().rollback)
		return st
	}},
	"operator-stop": {"An operator stops an owner.", func(t testing.TB, p pair) *stage {
		st := newStage(t, p, 0)
		st.all(st.o.obeyStop, st.operator().stop)
		return st
	}},
}

// What is said in the main conversations is what version 1 says, whoever plays
// which side.
func TestGoldenConversations(t *testing.T) {
	for name, scene := range scenes {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".golden")
			if *update {
				st := scene.play(t, pair{})
				must(t, os.WriteFile(file, []byte("# "+scene.about+"\n\n"+st.records["O"].String()), 0o644))
			}
			want, err := os.ReadFile(file)
			must(t, err)
			for who, p := range pairs {
				t.Run(who, func(t *testing.T) {
					leak.Check(t)
					st := scene.play(t, p)
					for side, r := range st.records {
						if frozen := side == "O" && !p.currentOwner || side == "S" && !p.currentSuccessor; !frozen {
							continue
						}
						got := "# " + scene.about + "\n\n" + r.String()
						same(t, "as "+side+" saw it", strings.Split(string(want), "\n"), strings.Split(got, "\n"))
					}
				})
			}
		})
	}
}

// Each file is played.
func TestEachGoldenFileHasItsScene(t *testing.T) {
	files, err := filepath.Glob("testdata/*.golden")
	must(t, err)
	if len(files) != len(scenes) {
		t.Errorf("%d files, %d scenes", len(files), len(scenes))
	}
	for _, f := range files {
		if _, ok := scenes[strings.TrimSuffix(filepath.Base(f), ".golden")]; !ok {
			t.Errorf("%s has no scene", f)
		}
	}
}
