package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/handoverd/handoverd/handover"
)

// stopAll stops processes, and waits until they stand still.
func stopAll(t testing.TB, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range pids {
		await(t, "the process has stopped", func() bool {
			f, ok := stat(pid)
			return ok && f[0] == "T"
		})
	}
}

// freezeProgram stops all of a program, the master first, so that it starts no
// worker meanwhile, and counts the connections that it has accepted.
func (s *stage) freezeProgram(p *process) (master, held int) {
	s.t.Helper()
	master = s.master(p)
	stopAll(s.t, []int{master})
	pids := s.group(master)
	stopAll(s.t, pids)
	for _, pid := range pids {
		held += s.accepted(pid)
	}
	return master, held
}

// killProgram kills all of a program at once. One after the other will not do:
// when the master has died its group is an orphaned one, whose stopped
// processes the kernel continues.
func killProgram(t testing.TB, master int) {
	t.Helper()
	if err := syscall.Kill(-master, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// A program that dies with all of its workers, under load, is started again on
// the same sockets. Nobody is refused; who waits in the queue is served then,
// and only what the dead had accepted is lost.
func TestForeignProgramIsKilled(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    foreign
	}{
		{"gunicorn", gunicorn().under("notify", loadSpec{Workers: 16})},
		{"gunicorn, keep-alive", gunicorn(threads...).under("notify", loadSpec{Workers: 16, KeepAlive: true, Think: think})},
		{"nginx", nginx().under(pidFile, loadSpec{Workers: 16})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t, tt.f)
			p := s.begin()
			proof := s.prove(p)
			load := s.load()
			n, held := rounds(5, 2), 0
			for range n {
				master, h := s.freezeProgram(p)
				held += h
				clients := s.queueMore(20)
				s.wantAcceptsNothing(p)
				killProgram(t, master)
				s.wantAllServed(clients)
				load.awaitMore(1)
			}
			res := load.stop()
			cut := proof.blame(p, res, n)
			if cut > int64(held) {
				t.Errorf("%d requests were cut off, but the dead had accepted %d connections", cut, held)
			}
			t.Logf("%s was killed %d times, with %d accepted connections in all; %d clients that waited in the queue were served by the next one", tt.f.name, n, held, 20*n)
			if got := strings.Count(p.text(), `msg="program started"`); got < n+1 {
				t.Errorf("the program was started %d times, want at least %d", got, n+1)
			}
			s.end(p)
		})
	}
}

// queueMore connects clients that send a request each while nobody accepts.
func (s *stage) queueMore(n int) []*rawConn {
	s.t.Helper()
	clients := make([]*rawConn, n)
	for i := range clients {
		c, err := s.client.dial("tcp", webAddress(s.bench))
		if err != nil {
			s.t.Fatal(err)
		}
		clients[i] = newRawConn(s.t, c)
		clients[i].send("GET /version HTTP/1.1\r\nHost: queue\r\nConnection: close\r\n\r\n")
	}
	return clients
}

// wantAllServed checks that each client is answered.
func (s *stage) wantAllServed(clients []*rawConn) {
	s.t.Helper()
	for i, c := range clients {
		res, err := http.ReadResponse(c.br, nil)
		if err != nil {
			s.t.Fatalf("client %d of those that waited in the queue: %v", i, err)
		}
		res.Body.Close()
		c.Close()
		if res.StatusCode != http.StatusOK {
			s.t.Fatalf("client %d of those that waited in the queue: %s", i, res.Status)
		}
	}
}

// A holder owns the listener. Everything that serves is killed, handoverd and
// the program, again and again, under load of new connections: nobody is
// refused, and only what the dead had accepted is lost.
func TestHolderOutlivesForeignPrograms(t *testing.T) {
	f := gunicorn().under("notify", loadSpec{Workers: 16})
	s := newStage(t, f)
	held := *s.bench
	held.socket = s.path("held")
	t.Cleanup(held.endOwner)
	holder := launch(t, s.server, s.dir, held.command("hold", "--listen", s.listener()))
	held.awaitOwner(1)
	serve := func(generation uint64) *process {
		args := append([]string{"--or-serve", "--holder", held.socket}, s.args(generation)...)
		p := s.takeover(args...)
		s.awaitStatus("the new process owns the sockets", func(st *handover.Status) bool {
			return st.PID == p.pid() && st.Phase == handover.PhaseOwner
		})
		return p
	}
	p := serve(1)
	proof := s.prove(p)
	load := s.load()
	n, connections, queued := rounds(3, 3), 0, 0
	for i := range n {
		load.awaitMore(1)
		p.freeze() // or else it starts the program again
		master, h := s.freezeProgram(p)
		connections += h
		clients := s.queueMore(10)
		queued += len(clients)
		killProgram(t, master) // while its parent, which is stopped, lives: see killProgram
		p.kill()
		held.awaitOwner(1)
		holder.wantAlive()
		// Blue and green take turns here, too. The generation is the first one each
		// time: nobody was there to take over from.
		p = serve(uint64(i))
		s.wantAllServed(clients)
		s.wantVersion(uint64(i))
		s.wantAcceptsNothing(p, holder)
	}
	load.awaitMore(1)
	res := load.stop()
	cut := proof.blame(p, res, n)
	if cut > int64(connections) {
		t.Errorf("%d requests were cut off, but the dead had accepted %d connections", cut, connections)
	}
	if len(res.Generations) != 1 || res.Generations["1"] == 0 {
		t.Errorf("generations %v, want the first one only", res.Generations)
	}
	t.Logf("handoverd and %s were killed %d times, with %d accepted connections; %d clients that waited in the queue were served by the next one", f.name, n, connections, queued)
	// The holder is replaced, too, while the program serves.
	next := launch(t, s.server, s.dir, held.command("hold", "--takeover", "--probation=100ms"))
	held.awaitOwner(2)
	holder.wantCode(0)
	s.wantVersion(uint64(n - 1))
	s.wantRun(0, "stopped", "stop")
	p.wantCode(0)
	next.signal(syscall.SIGTERM)
	next.wantCode(0)
	s.wantEmpty()
}

// A program that does not come up leaves the old one alone, whatever it says.
func TestForeignProgramThatDoesNotComeUp(t *testing.T) {
	f := gunicorn().under("notify", loadSpec{Workers: 8})
	s := newStage(t, f)
	p := s.begin()
	proof := s.prove(p)
	master := s.master(p)
	load := s.load()
	broken := []string{"env", "PYTHONDONTWRITEBYTECODE=1", s.executable, "--chdir", "testdata/gunicorn/blue", "no_such_module:app"}
	n := 2
	for range n {
		out, code := s.run(append([]string{"takeover", "--ready-timeout=10m", "--ready", probed, "--"}, broken...)...)
		if code != 1 || !strings.Contains(out, "no_such_module") {
			t.Errorf("exit code %d, want 1 and a reason in\n%s", code, out)
		}
		s.awaitOwner(1)
		load.awaitMore(1)
	}
	if now := s.master(p); now != master {
		t.Errorf("the old program is process %d now, and was %d", now, master)
	}
	// Its workers accept from the same listener before they die, if they come so
	// far. Here they do not.
	if cut := proof.blame(p, load.stop(), n); cut != 0 {
		t.Errorf("%d requests were cut off", cut)
	}
	s.end(p)
}

// The program of a successor is killed in probation: the old one, which was
// never told to stop, serves on.
func TestForeignProgramIsKilledInProbation(t *testing.T) {
	f := gunicorn().under("notify", loadSpec{Workers: 16})
	s := newStage(t, f)
	p := s.begin()
	proof := s.prove(p)
	load := s.load()
	n, held := rounds(3, 2), 0
	for i := range n {
		generation := uint64(i) + 2
		green := s.takeover(s.args(generation, "--probation=30m", "--restart=never")...)
		s.awaitPhase(generation, handover.PhaseProbation)
		load.awaitAnswers(strconv.FormatUint(generation, 10), 1)
		master, h := s.freezeProgram(green)
		held += h
		killProgram(t, master)
		green.await()
		s.awaitOwner(1)
		load.awaitMore(1)
	}
	if text := p.text(); strings.Contains(text, "asked to stop") {
		t.Errorf("the old program was asked to stop:\n%s", text)
	}
	cut := proof.blame(p, load.stop(), n)
	if cut > int64(held) {
		t.Errorf("%d requests were cut off, but the dead had accepted %d connections", cut, held)
	}
	t.Logf("%d programs were killed in probation, with %d accepted connections", n, held)
	s.end(p)
}
