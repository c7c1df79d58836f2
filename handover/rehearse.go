package handover

import (
	"encoding/json"
	"sync"
	"time"
)

// The first time that a process does something is slow: package json finds out
// what a type consists of, and the kernel fetches each page of code and of fresh
// memory in a page fault. In a takeover everything happens for the first time, and
// somebody waits for it. So each side goes through what is to come when it has
// nothing else to do: the owner a while after it has become that, and the
// successor from the start, beside what waits for the owner.

// calm is how long an owner waits with its rehearsal: whatever comes with a
// takeover is over then.
const calm = time.Second

// rehearseLater has the owner rehearse. It runs on run.
func (g *Generation) rehearseLater() {
	g.wg.Add(1)
	g.rehearsal = time.AfterFunc(calm, func() {
		defer g.wg.Done()
		rehearseOwner()
	})
}

// rehearseNoMore calls it off. It runs on run.
func (g *Generation) rehearseNoMore() {
	if g.rehearsal != nil && g.rehearsal.Stop() {
		g.wg.Done()
	}
}

// Frames of a takeover in their order, and what each side has to do with them.
var (
	ownersFrames = []rehearsal{
		{frame: frameHello{Type: typeHello, Protocols: []int{1}, Intent: intentTakeover, Program: "p", PID: 1, Probation: 1}, reads: true},
		{frame: frameWelcome{Type: typeWelcome, Next: 1, Count: 1, AliveEvery: millis(time.Second)}},
		{frame: rawSockets{Type: typeSockets, Items: []json.RawMessage{}}},
		{frame: item{Name: "n", Kind: KindListener, Network: "tcp", Cookie: 1}},
		{frame: frameReceived{Type: typeReceived, Cookies: []cookie{1}}, reads: true},
		{frame: frameSimple{Type: typeReady}, reads: true},
		{frame: frameGranted{Type: typeGranted}},
		{frame: rawConnections{Type: typeMoved, Items: []json.RawMessage{}}},
		{frame: movedItem{Listener: "n", Cookie: 1}},
		{frame: frameAdopted{Type: typeAdopted, Cookies: []cookie{1}}, reads: true},
	}
	successorsFrames = []rehearsal{
		{frame: frameHello{Type: typeHello, Protocols: []int{1}, Intent: intentTakeover, Program: "p", PID: 1, Probation: 1}},
		{frame: frameWelcome{Type: typeWelcome, Next: 1, Count: 1, AliveEvery: millis(time.Second)}, reads: true},
		{frame: frameSockets{Type: typeSockets, Items: []item{{Name: "n", Kind: KindListener, Network: "tcp", Cookie: 1}}}, reads: true},
		{frame: frameReceived{Type: typeReceived, Cookies: []cookie{1}}},
		{frame: frameSimple{Type: typeReady}, reads: true},
		{frame: frameGranted{Type: typeGranted}, reads: true},
	}
)

// A rehearsal is one frame that is written, and perhaps read.
type rehearsal struct {
	frame any
	reads bool
}

// Once in a process is enough: after that nothing is new.
var (
	rehearseOwner     = sync.OnceFunc(func() { rehearse(ownersFrames) })
	rehearseSuccessor = sync.OnceFunc(func() { rehearse(successorsFrames) })
)

// rehearse writes and reads frames. Whether that succeeds is not important.
func rehearse(frames []rehearsal) {
	for _, r := range frames {
		p, err := encodeFrame(r.frame)
		if err == nil && r.reads {
			_, _ = decodeFrame(p)
		}
	}
}
