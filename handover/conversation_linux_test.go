package handover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/scm"
)

// script reads choices from the bytes of a fuzzer or a seeded generator.
type script struct{ rest []byte }

func (s *script) more() bool { return len(s.rest) > 0 }

// pick gives a number below n, 0 when the script is over.
func (s *script) pick(n int) int {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return int(b) % n
}

func (s *script) bytes() []byte {
	n := min(s.pick(64), len(s.rest))
	b := s.rest[:n]
	s.rest = s.rest[n:]
	return b
}

// rubbish is a frame that is nearly one, or nothing like it.
func (s *script) rubbish() []byte {
	types := []string{
		typeHello, typeRefuse, typeWelcome, typeSockets, typeReceived, typeReady, typeGranted, typeAlive, typeCommit,
		typeRollback, typeRevoked, typeProgress, typeDrained, typeStatus, typeOK, typeMoved, typeAdopted, "", "no such type",
	}
	typ := types[s.pick(len(types))]
	switch s.pick(4) {
	case 0:
		return append([]byte{1}, s.bytes()...)
	case 1:
		return fmt.Appendf(nil, `{"type":%q}`, typ)
	case 2:
		return fmt.Appendf(nil, `{"type":%q,"first":%d,"count":%d,"cookies":["%d"],"items":[{}],"protocols":[1],"intent":%q}`,
			typ, s.pick(300)-20, s.pick(300)-20, s.pick(256), s.bytes())
	}
	return fmt.Appendf(nil, `{"type":%q,%q:%q`, typ, s.bytes(), s.bytes())
}

// listenBriefly receives one frame, if it comes soon.
func (p *peer) listenBriefly(d time.Duration) any {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	f, fds, err := p.recv(ctx)
	if s, ok := f.(*frameSockets); ok && err == nil {
		r := received(s.First)
		for _, fd := range fds {
			if info, err := inspect(fd); err == nil {
				r.Cookies = append(r.Cookies, info.cookie)
			}
		}
		closeAll(fds)
		return r
	}
	closeAll(fds)
	if err != nil {
		return err
	}
	return f
}

// mutter sends what it is told to, whether or not anybody listens.
func (p *peer) mutter(f any, fds ...int) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if b, ok := f.([]byte); ok {
		p.conn.Send(ctx, b, fds)
		return
	}
	p.send(ctx, f, fds...)
}

// playSuccessor acts as the script says, and leaves.
func playSuccessor(p *peer, s *script) {
	proof := received(0)
	for steps := 0; s.more() && steps < 40; steps++ {
		switch s.pick(17) {
		case 0, 1:
			p.mutter(hello(intentTakeover))
		case 2:
			p.mutter(hello([]string{intentStatus, intentCommit, intentRollback, intentReport, "?", intentBorrow}[s.pick(6)]))
		case 3, 4, 5:
			for {
				f := p.listenBriefly(20 * time.Millisecond)
				if r, ok := f.(frameReceived); ok {
					proof = r
				}
				if _, ok := f.(*frameWelcome); !ok {
					break
				}
			}
		case 6, 7:
			p.mutter(proof)
		case 8, 9:
			p.mutter(simple(typeReady))
		case 10:
			p.mutter(simple([]string{typeAlive, typeCommit, typeRollback, typeRevoked, typeOK}[s.pick(5)]))
		case 11:
			wrong := received(s.pick(5)-1, proof.Cookies[:min(len(proof.Cookies), s.pick(6))]...)
			p.mutter(wrong)
		case 12:
			p.mutter(s.rubbish())
		case 13:
			p.mutter(s.rubbish(), int(os.Stdin.Fd()))
		case 14:
			h := hello([]string{intentReport, intentTakeover}[s.pick(2)])
			h.Moves = true
			p.mutter(h)
		case 15, 16:
			p.mutterConnections(s)
		}
	}
}

// mutterConnections sends something as connections.
func (p *peer) mutterConnections(s *script) {
	f := frameConnections{Type: typeMoved, Withdrawn: uint64(s.pick(3))}
	all := []int{int(os.Stdin.Fd()), p.fd()}
	var fds []int
	for range s.pick(5) {
		fd := all[s.pick(len(all))]
		info, err := inspect(fd)
		if err != nil {
			p.t.Fatal(err)
		}
		f.Items = append(f.Items, movedItem{Listener: []string{"app", "none", "@lock"}[s.pick(3)], Cookie: info.cookie + cookie(s.pick(2))})
		if s.pick(8) > 0 {
			fds = append(fds, fd)
		}
	}
	p.mutter(f, fds...)
}

// withOwner plays one conversation against the owner, which must be as good
// as before.
func withOwner(t testing.TB, cfg Config, g *Generation, data []byte) {
	t.Helper()
	p := dialPeer(t, cfg)
	playSuccessor(p, &script{data})
	p.close()
	within(t, 10*time.Second, "owner again", func() {
		for g.Phase() != PhaseOwner {
			time.Sleep(time.Millisecond)
		}
	})
	if !g.holdsWord() {
		t.Fatalf("the ownership word says %v", g.word.load())
	}
	if st, err := (Operator{Socket: cfg.Socket}).Status(testContext(t)); err != nil || st.Generation != 1 {
		t.Fatalf("status %+v: %v", st, err)
	}
}

func patientOwner(t testing.TB) (Config, *Generation, string) {
	t.Helper()
	cfg := testConfig(t)
	cfg.StepTimeout, cfg.ReadyTimeout, cfg.AliveTimeout = 100*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
	cfg.Lend = true
	g, _, addr := owner(t, cfg)
	cfg.StepTimeout = 20 * time.Second // of our own, when we take over
	cfg.Lend = false
	return cfg, g, addr
}

// Random successors against a real owner.
func TestRandomConversationsWithAnOwner(t *testing.T) {
	leak.Check(t)
	n := 3000
	if testing.Short() {
		n = 300
	}
	cfg, g, addr := patientOwner(t)
	before := takeStock(t)
	for seed := range uint64(n) {
		// In a subtest what each conversation leaves for the end ends at once.
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { withOwner(t, cfg, g, randomBytes(seed, 1)) }) {
			break
		}
	}
	before.unchanged(t)
	unharmed(t, cfg, g, addr)
}

func randomBytes(seed, stream uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, stream))
	b := make([]byte, 4+rnd.IntN(60))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	if rnd.IntN(2) == 0 {
		// Half of them begin well: hello, listen, received.
		b = append([]byte{0, 3, 6}, b...)
	}
	return b
}

// playOwner acts as the script says, and leaves.
func (f *fake) playOwner(p *peer, s *script) {
	for steps := 0; s.more() && steps < 40; steps++ {
		switch s.pick(14) {
		case 0, 1:
			w := welcome(len(f.set) + max(0, s.pick(12)-9))
			w.Probation, w.AliveEvery = millis(time.Duration(s.pick(50))*time.Millisecond), millis(10*time.Millisecond)
			p.mutter(w)
		case 2, 3:
			f.mutterGifts(p, 0, f.set...)
		case 4:
			set := append([]gift(nil), f.set...)
			set[s.pick(len(set))].fd = f.set[s.pick(len(set))].fd
			f.mutterGifts(p, max(0, s.pick(8)-6), set...)
		case 5, 6:
			p.listenBriefly(20 * time.Millisecond)
		case 7, 8, 9:
			// As a real owner does: the word first.
			to := onProbation(2, 0)
			if s.pick(2) == 0 {
				to = settled(2, 0)
			}
			f.word.swap(settled(1, 0), to)
			p.mutter(frameGranted{Type: typeGranted, Generation: 2})
		case 10:
			// Takes back.
			f.word.swap(onProbation(2, 0), settled(1, 1))
			p.mutter(simple(typeRevoked))
		case 11:
			p.mutter(simple([]string{typeGranted, typeRevoked, typeCommit, typeReady, typeAlive}[s.pick(5)]))
		case 12:
			p.mutter(s.rubbish())
		case 13:
			p.mutter(frameRefuse{Type: typeRefuse, Code: CodeBusy})
		}
	}
}

func (f *fake) mutterGifts(p *peer, first int, gifts ...gift) {
	s := frameSockets{Type: typeSockets, First: first}
	var fds []int
	for _, g := range gifts {
		s.Items, fds = append(s.Items, g.item), append(fds, g.fd)
	}
	p.mutter(s, fds...)
}

// withSuccessor has a real successor take over from a scripted owner. It must
// come to an end in time, and own the sockets only if the word says so.
func withSuccessor(t testing.TB, data []byte) {
	t.Helper()
	cfg := testConfig(t)
	cfg.Mode, cfg.StepTimeout = TakeOverOnly, 40*time.Millisecond
	f := newFake(t, cfg)
	s := &script{data}
	stopToo := s.pick(2) == 0
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			g, err := Start(context.Background(), cfg)
			if err != nil {
				return nil
			}
			defer g.Close()
			if _, err := g.Listen("app", "", ""); err != nil {
				return nil
			}
			err = g.Ready(context.Background())
			was := f.word.load().generation()
			if err == nil && g.Phase() == PhaseOwner && !isOpen(g) {
				return errors.New("owner, and does not accept")
			}
			if err == nil && was != g.Number() {
				// Taken back meanwhile: that has to arrive.
				for end := time.Now().Add(10 * time.Second); g.Phase().Owns(); time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						return fmt.Errorf("ready, %v, and the ownership word says %v", g.Phase(), f.word.load())
					}
				}
			}
			if err != nil && was == g.Number() && !errors.Is(err, ErrRevoked) {
				return fmt.Errorf("ready failed (%w), and the ownership word says %v", err, f.word.load())
			}
			if stopToo {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				if err := g.Stop(ctx); errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("stop: %w", err)
				}
			}
			return nil
		}()
	}()
	p := f.accept()
	f.playOwner(p, s)
	p.close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(15 * time.Second):
		within(t, 0, "the successor's end", func() { <-done })
	}
}

// A real successor against random owners.
func TestRandomConversationsWithASuccessor(t *testing.T) {
	leak.Check(t)
	n := 2000
	if testing.Short() {
		n = 150
	}
	before := takeStock(t)
	for seed := range uint64(n) {
		data := randomBytes(seed, 2)
		if data[0] == 0 && data[1] == 3 {
			// Those that begin well: welcome, sockets.
			data = append([]byte{data[2], 0, 0, 2, 5}, data[3:]...)
		}
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { withSuccessor(t, data) }) {
			break
		}
	}
	before.unchanged(t)
}

func FuzzAgainstOwner(f *testing.F) {
	cfg, g, _ := patientOwner(f)
	f.Add([]byte{0, 3, 6, 8, 3, 10, 1})                  // granted, then commit without the word
	f.Add([]byte{0, 3, 6, 8, 3, 10, 0, 10, 0, 10, 2})    // alive, alive, rollback
	f.Add([]byte{0, 3, 6, 6, 8})                         // received twice
	f.Add([]byte{2, 0, 3, 2, 3, 12, 5, 2, 1, 1, 1, 'x'}) // status, and again
	f.Add([]byte{14, 0, 3, 15, 0, 1, 0, 0, 0, 1, 3})     // a report, and a file in place of a connection
	f.Fuzz(func(t *testing.T, data []byte) { withOwner(t, cfg, g, data) })
}

func FuzzAgainstSuccessor(f *testing.F) {
	f.Add([]byte{0, 0, 0, 30, 2, 5, 5, 7, 1})      // granted, and the end
	f.Add([]byte{1, 0, 0, 30, 2, 5, 5, 7, 1, 10})  // granted and revoked
	f.Add([]byte{1, 0, 0, 30, 2, 5, 11, 2})        // commit without a grant
	f.Add([]byte{0, 0, 0, 0, 4, 1, 2, 0, 5, 7, 0}) // a descriptor for another
	f.Fuzz(func(t *testing.T, data []byte) { withSuccessor(t, data) })
}

// playHeir answers a generation that moves connections as the script says, and
// leaves. It tells which of them it has taken for certain: named in the first
// answer to them, in a conversation without a fault, that could be sent.
func (h *heir) playHeir(s *script) (taken map[cookie]bool) {
	taken = map[cookie]bool{}
	var batch *frameConnections
	p, clean := h.peer, true
	drop := func() {
		if batch != nil {
			dropFrame(batch)
			batch = nil
		}
	}
	defer drop()
	answer := func(a frameAdopted, proper bool) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := p.send(ctx, a)
		if clean = clean && proper; clean && err == nil {
			for _, c := range a.Cookies {
				taken[c] = true
			}
		}
		drop()
	}
	for steps := 0; s.more() && steps < 60; steps++ {
		if p == nil {
			if p = h.acceptBriefly(); p == nil {
				break
			}
			clean = true
		}
		switch s.pick(12) {
		case 0, 1, 2, 3, 4:
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			f, err := p.recvMoved(ctx)
			cancel()
			if m, ok := f.(*frameConnections); ok && err == nil {
				drop()
				batch = m
			}
			if gone(err) {
				drop()
				p.close()
				p = nil
			}
		case 5, 6:
			if batch != nil {
				answer(adopted(batch.cookies()...), true)
			} else {
				p.mutter(simple(typeOK))
			}
		case 7:
			if batch != nil {
				answer(adopted(batch.cookies()[:s.pick(len(batch.Items)+1)]...), true)
			}
		case 8:
			if batch != nil {
				answer(adopted(append(batch.cookies(), cookie(s.pick(3)))...), false)
			} else {
				answer(adopted(cookie(s.pick(3))), false)
			}
		case 9:
			p.mutter([]any{simple(typeAlive), simple(typeOK), frameRefuse{Type: typeRefuse, Code: CodeLimit}}[s.pick(3)])
		case 10:
			p.mutter(s.rubbish())
			clean = false
		case 11:
			drop()
			p.close()
			p = nil
		}
	}
	if p != nil {
		p.close()
	}
	return taken
}

func (h *heir) acceptBriefly() *peer {
	h.control.SetDeadline(time.Now().Add(20 * time.Millisecond))
	c, err := h.control.AcceptUnix()
	if err != nil {
		return nil
	}
	conn, err := scm.NewConn(c)
	if err != nil {
		h.t.Fatal(err)
	}
	return &peer{h.t, newLink(conn, scm.MaxFDs)}
}

// withHeir has a real generation move connections to a scripted heir. All calls
// return; what was moved was taken, what was taken for certain has been moved,
// and the rest works on.
func withHeir(t testing.TB, data []byte) {
	t.Helper()
	cfg := testConfig(t)
	cfg.StepTimeout = 20 * time.Second
	s := &script{data}
	if s.pick(4) == 0 {
		cfg.moveTimeout = 40 * time.Millisecond
	}
	p := part(t, cfg, 1+s.pick(4))
	ids := make([]cookie, len(p.servers))
	errs := make([]error, len(p.servers))
	var moves sync.WaitGroup
	for i, server := range p.servers {
		info, err := inspect(fdOf(t, server))
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = info.cookie
		moves.Go(func() {
			for range 4 {
				if errs[i] = p.from.MoveConn(context.Background(), server, nil, nil); errs[i] == nil {
					server.Close()
					return
				}
			}
		})
	}
	taken := p.heir.playHeir(s)
	p.heir.control.Close()
	within(t, 15*time.Second, "the moves", moves.Wait)
	for i, err := range errs {
		if err != nil && taken[ids[i]] {
			t.Errorf("connection %d is on both sides: %v", i, err)
		}
		if err == nil {
			hangsUp(t, p.clients[i])
		} else {
			through(t, p.clients[i], p.servers[i])
		}
	}
	within(t, 15*time.Second, "Close", func() { p.old.Close() })
}

// A real generation against random heirs of its connections.
func TestRandomConversationsWithAnHeir(t *testing.T) {
	leak.Check(t)
	n := 300
	if testing.Short() {
		n = 60
	}
	before := takeStock(t)
	for seed := range uint64(n) {
		data := randomBytes(seed, 3)
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { withHeir(t, data) }) {
			break
		}
	}
	before.unchanged(t)
}

func FuzzAgainstPredecessor(f *testing.F) {
	f.Add([]byte{1, 3, 0, 5, 0, 5})             // takes all
	f.Add([]byte{1, 3, 0, 11, 5, 0, 5})         // goes away, is looked for, takes it
	f.Add([]byte{1, 3, 0, 8, 2, 5, 0, 7, 1})    // another one's cookie
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // silent
	f.Fuzz(func(t *testing.T, data []byte) { withHeir(t, data) })
}
