package compat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// mover is what a listener of the present implementation can besides accepting.
type mover interface {
	net.Listener
	Movable() bool
	MoveConn(ctx context.Context, c net.Conn, unread, state []byte) error
}

// moved is what such a listener accepts that was accepted elsewhere first.
type moved interface {
	net.Conn
	Moved() (bare net.Conn, unread, state []byte)
}

// through asserts that both ends are connected.
func through(t testing.TB, client, server net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		_, err := way[0].Write([]byte("through\n"))
		must(t, err)
		if got, err := bufio.NewReader(way[1]).ReadString('\n'); err != nil || got != "through\n" {
			t.Fatalf("not connected: %q, %v", got, err)
		}
	}
}

// hangsUp asserts that nobody holds the other end.
func hangsUp(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("somebody still holds the connection: %d, %v", n, err)
	}
}

// connected are n clients with what a frozen generation has accepted.
func connected(t testing.TB, s *v1.Set, n int) (clients, servers []net.Conn) {
	t.Helper()
	for range n {
		clients = append(clients, dial(t, s.Get("app").Network, s.Get("app").Address))
		c, err := s.Accept("app")
		must(t, err)
		t.Cleanup(func() { c.Close() })
		servers = append(servers, c)
	}
	return clients, servers
}

// moving makes the n-th connection one that is to move.
func moving(n int, c net.Conn) v1.Moving {
	return v1.Moving{Conn: c.(syscall.Conn), Listener: "app", Unread: fmt.Appendf(nil, "unread %d", n), State: fmt.Appendf(nil, "state %d", n)}
}

// arrives asserts what comes out of Accept of a present generation: the n-th
// connection of moving.
func arrives(t testing.TB, ln net.Listener, n int) net.Conn {
	t.Helper()
	c := async(ln.Accept).wait(t)
	t.Cleanup(func() { c.Close() })
	m, ok := c.(moved)
	if !ok {
		t.Fatalf("accepted %T", c)
	}
	bare, unread, state := m.Moved()
	if string(unread) != fmt.Sprintf("unread %d", n) || string(state) != fmt.Sprintf("state %d", n) {
		t.Fatalf("arrived with %q and %q, not as number %d", unread, state, n)
	}
	return bare
}

// settledOn has a present successor own everything for good, whose listener is
// not served yet.
func settledOn(t testing.TB, o *v1.Owner, cfg handover.Config) (*v1.Handover, *server, net.Listener) {
	t.Helper()
	cfg.Probation = -1
	h, s := start(t, o, cfg)
	ln, err := s.g.Listen("app", "", "")
	must(t, err)
	grant(t, h, s)
	return h, s, ln
}

// Connections move from version 1, with what was read of them and what belongs
// to them; their clients notice nothing.
func TestConnectionsMoveFromVersion1(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			path := controlPath(t)
			o, err := v1.Start(frozenConfig(path))
			must(t, err)
			t.Cleanup(o.Close)
			address := "127.0.0.1:0"
			if network == "unix" {
				address = path + ".app"
			}
			must(t, o.Listen("app", network, address))
			clients, servers := connected(t, o.Set, 5)
			h, _, ln := settledOn(t, o, currentConfig(path))
			if !h.Takes {
				t.Fatal("the successor did not say that it takes connections")
			}
			var all []v1.Moving
			for i, c := range servers {
				all = append(all, moving(i, c))
			}
			all[3].Listener = "another" // which the successor has not
			must(t, o.SendConnections(h.Conn, all[:2]...))
			a, err := h.AwaitAdopted()
			if err != nil || len(a.Cookies) != 2 || a.Stop != "" {
				t.Fatalf("adopted %+v, %v", a, err)
			}
			must(t, o.SendConnections(h.Conn, all[2:]...))
			a, err = h.AwaitAdopted()
			if err != nil || len(a.Cookies) != 2 || a.Stop != "" {
				t.Fatalf("adopted %+v, %v", a, err)
			}
			for i, c := range servers {
				if i != 3 {
					c.Close() // the other side holds it
					through(t, clients[i], arrives(t, ln, i))
				}
			}
			through(t, clients[3], servers[3]) // stayed
			must(t, o.Drained(h.Conn, ""))
		})
	}
}

// A present generation that takes no connections says so to version 1.
func TestNoConnectionsMoveFromVersion1(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	clients, servers := connected(t, o.Set, 1)
	cfg := currentConfig(path)
	cfg.NoMove = true
	h, _, _ := settledOn(t, o, cfg)
	if h.Takes {
		t.Error("the successor said that it takes connections")
	}
	must(t, o.SendConnections(h.Conn, moving(0, servers[0])))
	a, err := h.AwaitAdopted()
	if err != nil || len(a.Cookies) != 0 || a.Stop == "" {
		t.Errorf("adopted %+v, %v", a, err)
	}
	through(t, clients[0], servers[0])
	if c, err := v1.Report(frozenConfig(path), 1, true); err == nil {
		c.Close()
		t.Error("a report was told to send connections")
	}
}

// Version 1 finds the owner again after its successor has gone away, reports,
// and moves connections.
func TestVersion1ReportsToThePresent(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	o := frozenOwner(t, frozenConfig(path))
	clients, servers := connected(t, o.Set, 2)
	cfg := currentConfig(path)
	h, s, _ := settledOn(t, o, cfg)
	// The successor is superseded by a third one.
	ev := watch(&cfg)
	cfg.Probation = -1
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	serve(t, g)
	ln3, err := g.Listen("app", "", "")
	must(t, err)
	must(t, g.Ready(t.Context()))
	s.close()
	must(t, h.AwaitEnd())
	must(t, h.Close())

	c, err := v1.Report(frozenConfig(path), 1, true)
	must(t, err)
	defer c.Close()
	must(t, o.SendConnections(c, moving(0, servers[0]), moving(1, servers[1])))
	a, err := c.AwaitAdopted()
	if err != nil || len(a.Cookies) != 2 {
		t.Fatalf("adopted %+v, %v", a, err)
	}
	for i, server := range servers {
		server.Close()
		through(t, clients[i], arrives(t, ln3, i))
	}
	hearsDrain(t, ev, o, &v1.Handover{Conn: c, Pidfd: -1})

	// A report that moves nothing is heard, too.
	c, err = v1.Report(frozenConfig(path), 1, false)
	must(t, err)
	defer c.Close()
	must(t, o.Drained(c, `"again"`))
	ev.await(t, "the second report", func(e handover.Event) bool { return e.Peer != nil && string(e.Peer.Report) == `"again"` })
	must(t, c.AwaitEnd())
}

// parted is a present generation that was superseded by a frozen one.
type parted struct {
	s       *server
	ln      mover
	p       *v1.Successor
	clients []net.Conn
	servers []net.Conn
}

func part(t testing.TB, n int) *parted {
	t.Helper()
	path := controlPath(t)
	cfg := currentConfig(path)
	cfg.Mode = handover.StartOnly
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	s := serve(t, g)
	ln, err := g.Listen("app", "tcp", "127.0.0.1:0")
	must(t, err)
	must(t, g.Ready(t.Context()))
	x := &parted{s: s, ln: ln.(mover)}
	for range n {
		x.clients = append(x.clients, dial(t, "tcp", ln.Addr().String()))
		c := async(ln.Accept).wait(t)
		t.Cleanup(func() { c.Close() })
		x.servers = append(x.servers, c)
	}
	x.p = inProbation(t, frozenConfig(path))
	if x.ln.Movable() {
		t.Error("connections may move in probation")
	}
	must(t, x.p.Commit())
	await(t, "superseded", g.Superseded())
	return x
}

// move has the present generation move the n-th connection.
func (x *parted) move(n int) *promise[struct{}] {
	return call(func() error {
		return x.ln.MoveConn(context.Background(), x.servers[n], fmt.Appendf(nil, "unread %d", n), fmt.Appendf(nil, "state %d", n))
	})
}

// connections awaits a batch on c.
func connections(t testing.TB, c *v1.Conn) (*v1.Connections, []int) {
	t.Helper()
	for {
		f, fds, err := c.Recv()
		must(t, err)
		switch f := f.(type) {
		case *v1.Connections:
			if len(fds) != len(f.Items) {
				t.Fatalf("%d connections with %d descriptors", len(f.Items), len(fds))
			}
			return f, fds
		case *v1.Progress:
		default:
			t.Fatalf("%T instead of connections", f)
		}
	}
}

// isMoved asserts that an arrival is the n-th connection.
func (x *parted) isMoved(t testing.TB, a v1.Arrival, n int) {
	t.Helper()
	t.Cleanup(func() { a.Close() })
	if string(a.Unread) != fmt.Sprintf("unread %d", n) || string(a.State) != fmt.Sprintf("state %d", n) || a.Listener != "app" {
		t.Fatalf("arrived: %+v, not as number %d", a.MovedItem, n)
	}
	x.servers[n].Close()
	through(t, x.clients[n], a)
}

// Connections move to version 1.
func TestConnectionsMoveToVersion1(t *testing.T) {
	leak.Check(t)
	x := part(t, 3)
	for n := range 2 {
		move := x.move(n)
		f, fds := connections(t, x.p.Pred)
		if f.Withdrawn != 0 {
			t.Errorf("withdrawn: %d", f.Withdrawn)
		}
		all, err := x.p.Adopt(x.p.Pred, x.p.Sender(), f, fds, "")
		if err != nil || len(all) != 1 {
			t.Fatalf("arrived %d: %v", len(all), err)
		}
		move.wait(t)
		x.isMoved(t, all[0], n)
	}
	// What is not taken stays, and after stop nothing is sent.
	move := x.move(2)
	f, fds := connections(t, x.p.Pred)
	f.Items[0].Listener = "another" // so that it is not taken
	all, err := x.p.Adopt(x.p.Pred, x.p.Sender(), f, fds, "enough")
	if err != nil || len(all) != 0 {
		t.Fatalf("arrived %d: %v", len(all), err)
	}
	if err := move.fails(t); !isNotMoved(err) {
		t.Errorf("moved: %v", err)
	}
	if x.ln.Movable() {
		t.Error("connections may move after stop")
	}
	through(t, x.clients[2], x.servers[2])
}

func isNotMoved(err error) bool { return errors.Is(err, handover.ErrNotMoved) }

// Version 1 says in its hello that it takes none.
func TestNoConnectionsMoveToVersion1(t *testing.T) {
	leak.Check(t)
	path := controlPath(t)
	cfg := currentConfig(path)
	cfg.Mode = handover.StartOnly
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	serve(t, g)
	ln, err := g.Listen("app", "tcp", "127.0.0.1:0")
	must(t, err)
	must(t, g.Ready(t.Context()))
	fc := frozenConfig(path)
	fc.Moves, fc.Probation = false, 0
	p := takeOver(t, fc)
	_, err = p.Ready()
	must(t, err)
	await(t, "superseded", g.Superseded())
	if ln.(mover).Movable() {
		t.Error("connections may move to a successor that takes none")
	}
}

// Version 1 hangs up over connections that it has not answered. The present
// generation withdraws them in the shared page, looks for the owner, says which
// generation it is, waits for ok, and sends them again.
func TestPresentReportsToVersion1(t *testing.T) {
	leak.Check(t)
	x := part(t, 2)
	move := x.move(0)
	f, fds := connections(t, x.p.Pred)
	held := slices.Clone(fds) // it wakes up later
	before := x.p.Word.Withdrawals(1).Load()
	x.p.Pred.Close()
	c, h, err := x.p.AcceptControl()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	if h.Intent != v1.IntentReport || h.Generation != 1 || !h.Moves || !slices.Contains(h.Protocols, 1) {
		t.Fatalf("hello: %+v", h)
	}
	if got := x.p.Word.Withdrawals(1).Load(); f.Withdrawn != before || got != before+1 {
		t.Errorf("sent with the counter at %d, which is at %d now", f.Withdrawn, got)
	}
	// The answer to the first batch cannot be sent, and its sender went on.
	late, err := x.p.Adopt(x.p.Pred, x.p.Sender(), f, held, "")
	if err == nil || len(late) != 0 {
		t.Fatalf("kept %d connections that were withdrawn", len(late))
	}
	must(t, x.p.HearReport(c, h, true))
	f, fds = connections(t, c)
	if f.Withdrawn != before+1 {
		t.Errorf("withdrawn: %d", f.Withdrawn)
	}
	all, err := x.p.Adopt(c, v1.Sender{Generation: h.Generation, Pidfd: -1}, f, fds, "")
	if err != nil || len(all) != 1 {
		t.Fatalf("arrived %d: %v", len(all), err)
	}
	move.wait(t)
	x.isMoved(t, all[0], 0)
	must(t, x.s.g.Drained("done"))
	report, err := awaitDrained(c)
	if err != nil || string(report) != `"done"` {
		t.Errorf("report %s, %v", report, err)
	}
	through(t, x.clients[1], x.servers[1])
}

// Version 1 answers a report that it takes none, or refuses it.
func TestVersion1TakesNoReportedConnections(t *testing.T) {
	for name, answer := range map[string]func(*v1.Set, *v1.Conn, *v1.Hello) error{
		"adopted with stop": func(s *v1.Set, c *v1.Conn, h *v1.Hello) error { return s.HearReport(c, h, false) },
		"refuse": func(_ *v1.Set, c *v1.Conn, _ *v1.Hello) error {
			c.Refuse("limit", "too many")
			return c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			x := part(t, 1)
			move := x.move(0)
			_, fds := connections(t, x.p.Pred)
			closeFDs(fds)
			x.p.Pred.Close()
			c, h, err := x.p.AcceptControl()
			must(t, err)
			t.Cleanup(func() { c.Close() })
			must(t, answer(x.p.Set, c, h))
			if err := move.fails(t); !isNotMoved(err) || name == "refuse" && !strings.Contains(err.Error(), "too many") {
				t.Errorf("moved: %v", err)
			}
			through(t, x.clients[0], x.servers[0])
		})
	}
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}
