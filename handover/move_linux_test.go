package handover

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// first is a ready generation with the listener "app".
func first(t testing.TB, cfg Config, network, address string) (*Generation, mover) {
	t.Helper()
	g := begin(t, cfg)
	ln := listen(t, g, "app", network, address)
	ready(t, g)
	return g, ln.(mover)
}

// succeed supersedes g by a generation that has asked for "app".
func succeed(t testing.TB, cfg Config, g *Generation) (*Generation, mover) {
	t.Helper()
	next := begin(t, cfg)
	ln := listen(t, next, "app", "", "")
	ready(t, next)
	await(t, "superseded", g.Superseded())
	return next, ln.(mover)
}

// connect gives both ends of a connection.
func connect(t testing.TB, ln net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.DialTimeout(ln.Addr().Network(), ln.Addr().String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// acceptMoved gives the next connection, which must have been moved here.
func acceptMoved(t testing.TB, ln net.Listener) *movedConn {
	t.Helper()
	var c net.Conn
	var err error
	within(t, 20*time.Second, "Accept", func() { c, err = ln.Accept() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	m, ok := c.(*movedConn)
	if !ok {
		t.Fatalf("%T, which was not moved here", c)
	}
	return m
}

// moves moves what must move.
func moves(t testing.TB, ln mover, c net.Conn, unread, state string) {
	t.Helper()
	within(t, 20*time.Second, "MoveConn", func() {
		if err := ln.MoveConn(testContext(t), c, []byte(unread), []byte(state)); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// stays tries to move what must not move, and checks that it works on.
func stays(t testing.TB, ln mover, client, server net.Conn, why string) {
	t.Helper()
	var err error
	within(t, 20*time.Second, "MoveConn", func() { err = ln.MoveConn(testContext(t), server, nil, nil) })
	notMoved(t, err, why)
	through(t, client, server)
}

func notMoved(t testing.TB, err error, why string) {
	t.Helper()
	if !errors.Is(err, ErrNotMoved) || !strings.Contains(err.Error(), why) {
		t.Errorf("moved: %v, want %v because %q", err, ErrNotMoved, why)
	}
}

// through sends something both ways.
func through(t testing.TB, a, b net.Conn) {
	t.Helper()
	for range 2 {
		passes(t, a, b)
		a, b = b, a
	}
}

func passes(t testing.TB, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	to.SetReadDeadline(time.Now().Add(20 * time.Second))
	defer to.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// hangsUp asserts that the other end has been closed by everybody, in order.
func hangsUp(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d bytes, %v, want the end", n, err)
	}
}

// The successor gets the connection with what was read and what was not, and
// the client notices nothing.
func TestMoveTakesEverythingAlong(t *testing.T) {
	for _, network := range []string{"tcp", "tcp4", "tcp6", "unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			address := "127.0.0.1:0"
			switch network {
			case "tcp6":
				address = "[::1]:0"
			case "unix", "unixpacket":
				address = filepath.Join(filepath.Dir(cfg.Socket), "app")
			}
			old, from := first(t, cfg, network, address)
			client, server := connect(t, from)
			local, remote := server.LocalAddr().String(), server.RemoteAddr().String()
			_, to := succeed(t, cfg, old)
			if !from.Movable() || to.Movable() {
				t.Fatalf("movable: the old one %v, the new one %v", from.Movable(), to.Movable())
			}
			if _, err := client.Write([]byte("to come")); err != nil {
				t.Fatal(err)
			}
			moves(t, from, server, "was read, ", "state")
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			m := acceptMoved(t, to)
			bare, unread, state := m.Moved()
			if string(unread) != "was read, " || string(state) != "state" || bare != m.Conn {
				t.Errorf("moved: %T, %q, %q", bare, unread, state)
			}
			if m.LocalAddr().String() != local || m.RemoteAddr().String() != remote {
				t.Errorf("from %v to %v, was from %s to %s", m.RemoteAddr(), m.LocalAddr(), remote, local)
			}
			want := "was read, to come"
			got := make([]byte, len(want))
			if _, err := io.ReadFull(m, got); err != nil || string(got) != want {
				t.Errorf("read %q, %v, want %q", got, err, want)
			}
			through(t, m, client)
			if err := m.CloseWrite(); err != nil {
				t.Errorf("CloseWrite: %v", err)
			}
			hangsUp(t, client)
			passes(t, client, m)
			m.Close()
		})
	}
}

// Closing the moved connection ends it: nobody keeps a copy.
func TestMoveLeavesNoCopies(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	_, to := succeed(t, cfg, old)
	moves(t, from, server, "", "")
	server.Close()
	acceptMoved(t, to).Close()
	hangsUp(t, client)
}

// A moved connection moves on, with what is left unread, and what its server
// has read since comes first.
func TestMoveThroughManyGenerations(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	g, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	unread := "abcdefghijklmnopqrstuvwxyz"
	for i := range 10 {
		next, to := succeed(t, cfg, g)
		moves(t, from, server, unread, fmt.Sprint(i))
		server.Close()
		m := acceptMoved(t, to)
		if string(m.state) != fmt.Sprint(i) {
			t.Fatalf("state %q in hop %d", m.state, i)
		}
		two := make([]byte, 2)
		if _, err := io.ReadFull(m, two); err != nil {
			t.Fatal(err)
		}
		g.Close()
		g, from, server = next, to, m
		unread = string(two[1:]) // one of them was dealt with
	}
	server.SetReadDeadline(time.Now().Add(20 * time.Second))
	rest := make([]byte, 15)
	if _, err := io.ReadFull(server, rest); err != nil || string(rest) != "lmnopqrstuvwxyz" {
		t.Fatalf("%q, %v", rest, err)
	}
	through(t, client, server)
}

// Whoever waits in Accept, and with whatever deadline, gets what was moved, and
// then again what connects.
func TestMoveReachesPendingAccepts(t *testing.T) {
	for name, deadline := range map[string]time.Duration{"no deadline": 0, "a deadline": time.Hour} {
		for _, n := range []int{1, 5} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				leak.Check(t)
				cfg := testConfig(t)
				old, from := first(t, cfg, "tcp", "127.0.0.1:0")
				var clients, servers []net.Conn
				for range n {
					c, s := connect(t, from)
					clients, servers = append(clients, c), append(servers, s)
				}
				_, to := succeed(t, cfg, old)
				ln := to.(*listener)
				if deadline > 0 {
					ln.SetDeadline(time.Now().Add(deadline))
				}
				got := make(chan net.Conn, n)
				accept := func(count int) {
					for range count {
						go func() {
							c, err := to.Accept()
							if err != nil {
								t.Errorf("accept: %v", err)
							}
							got <- c
						}()
					}
					awaitAccepts(t, ln, count)
				}
				accept(n)
				for i, s := range servers {
					go func() {
						if err := from.MoveConn(testContext(t), s, nil, []byte{byte(i)}); err != nil {
							t.Error(err)
						}
						s.Close()
					}()
				}
				within(t, 20*time.Second, "Accepts", func() {
					for range n {
						m, ok := (<-got).(*movedConn)
						if !ok {
							t.Error("a connection that was not moved")
							return
						}
						defer m.Close()
						through(t, clients[m.state[0]], m)
					}
				})
				// The same Accepts work on, for those who connect.
				accept(n)
				for range n {
					c, err := net.Dial("tcp", to.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
				}
				within(t, 20*time.Second, "Accepts of new connections", func() {
					for range n {
						c := <-got
						if _, ok := c.(*movedConn); ok || c == nil {
							t.Errorf("%T for a new connection", c)
						}
						c.Close()
					}
				})
				// And the user's deadline still counts.
				timeout := make(chan error, 1)
				go func() {
					_, err := to.Accept()
					timeout <- err
				}()
				awaitAccepts(t, ln, 1)
				ln.SetDeadline(time.Now())
				within(t, 20*time.Second, "deadline", func() {
					if err := <-timeout; !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
					}
				})
			})
		}
	}
}

// awaitAccepts waits until n callers are in the accept of the system.
func awaitAccepts(t testing.TB, ln *listener, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d Accepts", n), func() bool {
		ln.way.gate.mu.Lock()
		defer ln.way.gate.mu.Unlock()
		return ln.way.inflight == n
	})
}

// arrivals is how many connections wait for Accept.
func arrivals(ln net.Listener) int {
	way := ln.(*listener).way
	way.gate.mu.Lock()
	defer way.gate.mu.Unlock()
	return len(way.arrived)
}

// Nobody is in Accept, or its deadline has passed: what was moved waits.
func TestMoveWaitsForAccept(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	a, as := connect(t, from)
	b, bs := connect(t, from)
	_, to := succeed(t, cfg, old)
	to.(*listener).SetDeadline(longAgo)
	if _, err := to.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	moves(t, from, as, "", "")
	moves(t, from, bs, "", "")
	as.Close()
	bs.Close()
	eventually(t, "arrival", func() bool { return arrivals(to) == 2 })
	through(t, a, acceptMoved(t, to))
	through(t, b, acceptMoved(t, to))
	if _, err := to.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
}

// A successor that is on its way to be superseded itself takes connections,
// and gives them to its application though it does not accept any.
func TestMoveToAnOwnerThatHandsOver(t *testing.T) {
	for phase, play := range map[Phase]func(t *testing.T, p *peer, to *listener){
		PhaseHanding: func(t *testing.T, p *peer, to *listener) { p.untilReady() },
		PhaseGranting: func(t *testing.T, p *peer, to *listener) {
			p.untilReady()
			if _, err := to.way.enter(); err != nil { // one that does not return
				t.Fatal(err)
			}
			t.Cleanup(func() { to.way.leave(nil) })
			p.say(simple(typeReady))
		},
		PhaseStandby: func(t *testing.T, p *peer, to *listener) { p.untilGranted() },
	} {
		t.Run(phase.String(), func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			cfg.StepTimeout, cfg.AliveTimeout = 20*time.Second, time.Minute
			old, from := first(t, cfg, "tcp", "127.0.0.1:0")
			a, as := connect(t, from)
			b, bs := connect(t, from)
			next, to := succeed(t, cfg, old)
			p := dialPeer(t, cfg)
			play(t, p, to.(*listener))
			awaitPhase(t, next, phase)
			moves(t, from, as, "", "")
			as.Close()
			through(t, a, acceptMoved(t, to))
			if phase != PhaseHanding {
				// And with an Accept that waits at the gate.
				got := make(chan net.Conn, 1)
				go func() {
					c, _ := to.Accept()
					got <- c
				}()
				eventually(t, "Accept at the gate", func() bool {
					g := next.gate
					g.mu.Lock()
					defer g.mu.Unlock()
					return to.(*listener).way.waiting == 1
				})
				moves(t, from, bs, "", "")
				bs.Close()
				within(t, 20*time.Second, "Accept", func() {
					c := <-got
					through(t, b, c)
					c.Close()
				})
			}
			if got := next.Phase(); got != phase {
				t.Errorf("%v, was %v", got, phase)
			}
		})
	}
}

// More at once than fit one packet, for their number or for their size.
func TestMoveOfManyAtOnce(t *testing.T) {
	for name, size := range map[string]func(i int) (unread, state int){
		"small":           func(int) (int, int) { return 0, 0 },
		"of the limit":    func(int) (int, int) { return maxMoved / 4, maxMoved - maxMoved/4 - 8 },
		"mixed":           func(i int) (int, int) { return i * 37 % 20_000, i % 10_000 },
		"all but nothing": func(i int) (int, int) { return i % 2, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			n := 1100
			if u, st := size(7); u+st > 1 || testing.Short() {
				n = 300
			}
			needFDs(t, 3*n)
			cfg := testConfig(t)
			cfg.StepTimeout = 20 * time.Second
			old, from := first(t, cfg, "tcp", "127.0.0.1:0")
			clients, servers := make([]net.Conn, n), make([]net.Conn, n)
			for i := range n {
				clients[i], servers[i] = connect(t, from)
			}
			_, to := succeed(t, cfg, old)
			var all sync.WaitGroup
			all.Go(func() {
				seen := make([]bool, n)
				for range n {
					c, err := to.Accept()
					if err != nil {
						t.Errorf("accept: %v", err)
						return
					}
					defer c.Close()
					m := c.(*movedConn)
					i, _ := strconv.Atoi(strings.TrimSpace(string(m.state[:8])))
					u, s := size(i)
					if seen[i] || len(m.unread) != u || len(m.state) != s+8 ||
						bytes.Count(m.unread, []byte{byte(i)}) != u || bytes.Count(m.state[8:], []byte{byte(i + 1)}) != s {
						t.Errorf("connection %d: seen before: %v, %d bytes and %d of state, want %d and %d", i, seen[i], len(m.unread), len(m.state), u, s+8)
					}
					seen[i] = true
					if _, err := c.Write([]byte(strconv.Itoa(i) + "\n")); err != nil {
						t.Error(err)
					}
				}
			})
			began := time.Now()
			for i, s := range servers {
				all.Go(func() {
					u, st := size(i)
					state := append(fmt.Appendf(nil, "%8d", i), bytes.Repeat([]byte{byte(i + 1)}, st)...)
					if err := from.MoveConn(testContext(t), s, bytes.Repeat([]byte{byte(i)}, u), state); err != nil {
						t.Errorf("connection %d: %v", i, err)
					}
					s.Close()
				})
			}
			within(t, time.Minute, "moves", all.Wait)
			t.Logf("%d connections in %v", n, time.Since(began))
			for i, c := range clients {
				c.SetReadDeadline(time.Now().Add(20 * time.Second))
				got, err := io.ReadAll(c)
				if err != nil || string(got) != fmt.Sprintln(i) {
					t.Fatalf("client %d got %q, %v", i, got, err)
				}
			}
		})
	}
}

// Names that JSON writes in more bytes than they have fill a packet sooner.
func TestMoveWithANameThatJSONEscapes(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	name := strings.Repeat("<&>", maxName/3)
	old := begin(t, cfg)
	from := listen(t, old, name, "tcp", "127.0.0.1:0").(mover)
	ready(t, old)
	const n = 200
	servers := make([]net.Conn, n)
	for i := range servers {
		_, servers[i] = connect(t, from)
	}
	next := begin(t, cfg)
	to := listen(t, next, name, "", "")
	ready(t, next)
	await(t, "superseded", old.Superseded())
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(func() {
			if err := from.MoveConn(testContext(t), s, nil, nil); err != nil {
				t.Error(err)
			}
			s.Close()
		})
	}
	within(t, 30*time.Second, "moves", all.Wait)
	if !t.Failed() {
		for range n {
			acceptMoved(t, to)
		}
	}
}

func TestMoveOfTooMuch(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	_, to := succeed(t, cfg, old)
	for _, too := range [][2]int{{maxMoved + 1, 0}, {0, maxMoved + 1}, {maxMoved/2 + 1, maxMoved / 2}} {
		err := from.MoveConn(testContext(t), server, make([]byte, too[0]), make([]byte, too[1]))
		notMoved(t, err, fmt.Sprintf("%d bytes of unread data and state, the limit is %d", maxMoved+1, maxMoved))
	}
	through(t, client, server)
	moves(t, from, server, strings.Repeat("u", maxMoved/2), strings.Repeat("s", maxMoved/2))
	server.Close()
	m := acceptMoved(t, to)
	if len(m.unread)+len(m.state) != maxMoved {
		t.Errorf("%d and %d bytes", len(m.unread), len(m.state))
	}
	// What is left of it counts when it moves on.
	if n := len(m.rest()); n != maxMoved/2 {
		t.Errorf("%d bytes are left", n)
	}
}

// What cannot move stays, and works on.
func TestMoveThatCannotBe(t *testing.T) {
	deny := Config{NoMove: true}
	for name, tt := range map[string]struct {
		old, next Config
		claim     string
		movable   bool
		why       string
	}{
		"the old one does not want to":         {old: deny, claim: "app", why: "no successor that takes connections"},
		"the new one does not want to":         {next: deny, claim: "app", why: "no successor that takes connections"},
		"the new one has not asked for it":     {movable: true, why: "did not take it"},
		"the new one asked for something else": {claim: "other", movable: true, why: "did not take it"},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			tt.old.Socket, tt.next.Socket = cfg.Socket, cfg.Socket
			tt.old.Probation, tt.next.Probation = -1, -1
			old, from := first(t, tt.old, "tcp", "127.0.0.1:0")
			client, server := connect(t, from)
			stays(t, from, client, server, "no successor")
			next := begin(t, tt.next)
			if tt.claim != "" {
				address := ""
				if tt.claim != "app" {
					address = "127.0.0.1:0"
				}
				listen(t, next, tt.claim, "tcp", address)
			}
			ready(t, next)
			await(t, "superseded", old.Superseded())
			if from.Movable() != tt.movable {
				t.Errorf("movable: %v", from.Movable())
			}
			stays(t, from, client, server, tt.why)
			server.Close()
			hangsUp(t, client) // the other side has no copy
			old.Close()
			notMoved(t, from.MoveConn(testContext(t), server, nil, nil), "no successor")
		})
	}
}

// A listener that the successor has closed, or replaced by one of another
// kind, takes nothing.
func TestMoveToAListenerThatIsNotTheSame(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	next := begin(t, cfg)
	other := listen(t, next, "app", "unix", filepath.Join(filepath.Dir(cfg.Socket), "app"))
	ready(t, next)
	await(t, "superseded", old.Superseded())
	stays(t, from, client, server, "did not take it")
	other.Close()
	stays(t, from, client, server, "did not take it")
}

// What is no connection, or none any more, does not move.
func TestMoveOfWhatIsNoConnection(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	_, server := connect(t, from)
	succeed(t, cfg, old)
	pipe, far := net.Pipe()
	defer pipe.Close()
	defer far.Close()
	for _, c := range []net.Conn{pipe, tls.Server(server, nil)} {
		notMoved(t, from.MoveConn(testContext(t), c, nil, nil), "has no descriptor")
	}
	server.Close()
	notMoved(t, from.MoveConn(testContext(t), server, nil, nil), net.ErrClosed.Error())
}

// A client that has reset its connection leaves nothing that could be accepted:
// such a thing has no remote address, which no application expects.
func TestMoveOfAConnectionThatWasReset(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	_, to := succeed(t, cfg, old)
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	if _, err := server.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Fatalf("instead of a reset: %v", err)
	}
	err := from.MoveConn(testContext(t), server, nil, nil)
	if err == nil {
		m := acceptMoved(t, to)
		t.Fatalf("accepted a connection with the remote address %v", m.RemoteAddr())
	}
	notMoved(t, err, "did not take it")
}
