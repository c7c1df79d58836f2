package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/scm"
)

// heir is a successor that is played by hand. It owns everything for good, and
// takes connections.
type heir struct {
	*peer
	control *net.UnixListener
}

// inherit supersedes g.
func inherit(t testing.TB, cfg Config, g *Generation) *heir {
	t.Helper()
	h := &heir{peer: dialPeer(t, cfg)}
	hi := hello(intentTakeover)
	hi.Moves, hi.Probation = true, 0
	h.say(hi)
	w := awaitFrame[*frameWelcome](h.peer)
	for got := 0; got < w.Count; {
		f, fds, err := h.recv(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		s := f.(*frameSockets)
		r := received(s.First)
		for i, fd := range fds {
			info, err := inspect(fd)
			if err != nil {
				t.Fatal(err)
			}
			r.Cookies = append(r.Cookies, info.cookie)
			if s.Items[i].Kind == kindControl {
				if h.control, err = controlListener(fd); err != nil {
					t.Fatal(err)
				}
			} else {
				closeFD(fd)
			}
		}
		h.say(r)
		got += len(fds)
	}
	t.Cleanup(func() { h.control.Close() })
	h.say(simple(typeReady))
	awaitFrame[*frameGranted](h.peer)
	await(t, "superseded", g.Superseded())
	return h
}

// redialed awaits a predecessor that looks for the owner, and hears its hello.
func (h *heir) redialed() (*peer, *frameHello) {
	h.t.Helper()
	p := h.acceptPeer()
	return p, awaitFrame[*frameHello](p)
}

func (h *heir) acceptPeer() *peer {
	h.t.Helper()
	h.control.SetDeadline(time.Now().Add(20 * time.Second))
	c, err := h.control.AcceptUnix()
	if err != nil {
		h.t.Fatal(err)
	}
	conn, err := scm.NewConn(c)
	if err != nil {
		h.t.Fatal(err)
	}
	p := &peer{h.t, newLink(conn, scm.MaxFDs)}
	h.t.Cleanup(p.close)
	return p
}

// connections awaits a batch. Its descriptors are the caller's.
func (p *peer) connections() *frameConnections {
	p.t.Helper()
	for {
		f, err := p.recvMoved(testContext(p.t))
		if err != nil {
			p.t.Fatalf("instead of connections: %v", err)
		}
		if m, ok := f.(*frameConnections); ok {
			return m
		}
	}
}

func (f *frameConnections) cookies() (all []cookie) {
	for _, it := range f.Items {
		all = append(all, it.Cookie)
	}
	return all
}

func adopted(cookies ...cookie) frameAdopted {
	return frameAdopted{Type: typeAdopted, Cookies: cookies}
}

// outcome is a MoveConn under way.
type outcome struct {
	t   testing.TB
	err chan error
}

func moving(t testing.TB, ctx context.Context, ln mover, c net.Conn) outcome {
	o := outcome{t, make(chan error, 1)}
	go func() { o.err <- ln.MoveConn(ctx, c, nil, nil) }()
	return o
}

func (o outcome) wait() (err error) {
	o.t.Helper()
	within(o.t, 20*time.Second, "MoveConn", func() { err = <-o.err })
	return err
}

// pending asserts that nobody has answered yet.
func (o outcome) pending() {
	o.t.Helper()
	select {
	case err := <-o.err:
		o.t.Fatalf("answered: %v", err)
	default:
	}
}

// parted is a generation that drains, with connections, and its heir.
type parted struct {
	cfg     Config
	old     *Generation
	from    mover
	heir    *heir
	clients []net.Conn
	servers []net.Conn
}

func part(t testing.TB, cfg Config, n int) *parted {
	t.Helper()
	p := &parted{cfg: cfg}
	p.old, p.from = first(t, cfg, "tcp", "127.0.0.1:0")
	for range n {
		c, s := connect(t, p.from)
		p.clients, p.servers = append(p.clients, c), append(p.servers, s)
	}
	p.heir = inherit(t, cfg, p.old)
	return p
}

// awaitMovers waits until n callers of MoveConn wait for the batch in flight.
func awaitMovers(t testing.TB, n int) {
	t.Helper()
	awaitStacks(t, n, "MoveConn calls", "(*listener).MoveConn(", "[select")
}

// A batch that is answered in part: those that were named are the heir's, the
// others stay.
func TestMoveAnsweredInPart(t *testing.T) {
	leak.Check(t)
	p := part(t, testConfig(t), 3)
	var outs []outcome
	// One batch in flight: the others wait for it.
	outs = append(outs, moving(t, testContext(t), p.from, p.servers[0]))
	f := p.heir.connections()
	for _, s := range p.servers[1:] {
		outs = append(outs, moving(t, testContext(t), p.from, s))
	}
	awaitMovers(t, 2)
	if len(f.Items) != 1 || f.Items[0].Listener != "app" {
		t.Fatalf("%+v", f.Items)
	}
	p.heir.say(adopted(f.cookies()...))
	if err := outs[0].wait(); err != nil {
		t.Fatal(err)
	}
	closeAll(f.fds)
	for left := 2; left > 0; {
		f = p.heir.connections()
		p.heir.say(adopted())
		closeAll(f.fds)
		left -= len(f.Items)
	}
	for i, o := range outs[1:] {
		notMoved(t, o.wait(), "did not take it")
		through(t, p.clients[1+i], p.servers[1+i])
	}
}

// ctx covers the time until the connection is on its way, and not after.
func TestMoveWithdrawnByContext(t *testing.T) {
	leak.Check(t)
	p := part(t, testConfig(t), 2)
	ctx, cancel := context.WithCancel(testContext(t))
	sent := moving(t, ctx, p.from, p.servers[0])
	f := p.heir.connections()
	waits := moving(t, ctx, p.from, p.servers[1])
	awaitMovers(t, 1)
	cancel()
	err := waits.wait()
	notMoved(t, err, "")
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	sent.pending()
	p.heir.say(adopted(f.cookies()...))
	closeAll(f.fds)
	if err := sent.wait(); err != nil {
		t.Error(err)
	}
	through(t, p.clients[1], p.servers[1])
}

// The generation ends while one move is in flight and others wait: all are
// answered, and the heir cannot take any more.
func TestMovesWhenTheGenerationEnds(t *testing.T) {
	for name, end := range map[string]func(g *Generation){
		"Close":   func(g *Generation) { g.Close() },
		"Drained": func(g *Generation) { g.Drained(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			p := part(t, testConfig(t), 4)
			outs := []outcome{moving(t, testContext(t), p.from, p.servers[0])}
			f := p.heir.connections()
			for _, s := range p.servers[1:] {
				outs = append(outs, moving(t, testContext(t), p.from, s))
			}
			awaitMovers(t, 3)
			within(t, 20*time.Second, name, func() { end(p.old) })
			for i, o := range outs {
				notMoved(t, o.wait(), "this generation has ended")
				defer through(t, p.clients[i], p.servers[i])
			}
			if err := p.heir.send(testContext(t), adopted(f.cookies()...)); !gone(err) {
				t.Errorf("what was not answered could be adopted: %v", err)
			}
			closeAll(f.fds)
			if p.from.Movable() {
				t.Error("still movable")
			}
		})
	}
}

// The heir has answered before it hears that the generation ends.
func TestMoveAnsweredAtTheEnd(t *testing.T) {
	leak.Check(t)
	for range 50 {
		p := part(t, testConfig(t), 1)
		o := moving(t, testContext(t), p.from, p.servers[0])
		f := p.heir.connections()
		closeAll(f.fds)
		var ended sync.WaitGroup
		ended.Go(func() { p.old.Drained(nil) })
		err := p.heir.send(testContext(t), adopted(f.cookies()...))
		if err != nil && !gone(err) {
			t.Fatal(err)
		}
		if got := o.wait(); (got == nil) != (err == nil) {
			t.Fatalf("adopted: %v, moved: %v", err, got)
		}
		ended.Wait()
		p.old.Close()
		p.heir.close()
	}
}

// hostileHeirs answer a batch of one connection, or do something else. The
// connection then stays, or is sent again on a conversation of its own, where
// redial, if it is set, goes on.
var hostileHeirs = []struct {
	name   string
	play   func(h *heir, f *frameConnections)
	again  bool   // the batch comes again, to whoever owns
	moved  bool   // it is the heir's
	why    string // it is not
	served bool   // the conversation goes on
}{
	{name: "takes it", moved: true, served: true, play: func(h *heir, f *frameConnections) { h.say(adopted(f.cookies()...)) }},
	{name: "does not take it", why: "did not take it", served: true, play: func(h *heir, f *frameConnections) { h.say(adopted()) }},
	{name: "takes no more", why: "did not take it", play: func(h *heir, f *frameConnections) {
		h.say(frameAdopted{Type: typeAdopted, Stop: "enough"})
	}},
	{name: "takes it and no more", moved: true, play: func(h *heir, f *frameConnections) {
		h.say(frameAdopted{Type: typeAdopted, Cookies: f.cookies(), Stop: "enough"})
	}},
	{name: "is silent", why: "no answer", play: func(h *heir, f *frameConnections) {}},
	{name: "talks of something else", why: "no answer", play: func(h *heir, f *frameConnections) {
		for _, typ := range []string{typeAlive, typeCommit, typeOK, typeReady, typeRevoked, typeRollback} {
			h.say(simple(typ))
		}
	}},
	{name: "never stops talking of something else", why: "no answer", play: func(h *heir, f *frameConnections) {
		for h.try(simple(typeAlive)) == nil {
		}
	}},
	{name: "ends the conversation", again: true, play: func(h *heir, f *frameConnections) { h.close() }},
	{name: "answers, and ends the conversation", moved: true, play: func(h *heir, f *frameConnections) {
		h.say(adopted(f.cookies()...))
		h.close()
	}},
	{name: "talks, answers, and ends the conversation", moved: true, play: func(h *heir, f *frameConnections) {
		h.say(simple(typeAlive))
		h.say(adopted(f.cookies()...))
		h.say(simple(typeAlive))
		h.close()
	}},
	{name: "takes another one", again: true, play: func(h *heir, f *frameConnections) { h.say(adopted(f.Items[0].Cookie + 1)) }},
	{name: "takes it and another one", again: true, play: func(h *heir, f *frameConnections) {
		h.say(adopted(f.Items[0].Cookie, f.Items[0].Cookie+1))
	}},
	{name: "takes too many", again: true, play: func(h *heir, f *frameConnections) {
		h.say(adopted(make([]cookie, scm.MaxFDs+1)...))
	}},
	{name: "sends rubbish", again: true, play: func(h *heir, f *frameConnections) { h.raw("rubbish") }},
	{name: "refuses", again: true, play: func(h *heir, f *frameConnections) {
		h.say(frameRefuse{Type: typeRefuse, Code: CodeProtocol, Message: "no"})
		h.close()
	}},
	{name: "sends it back", again: true, play: func(h *heir, f *frameConnections) {
		if h.try(*f, f.fds...) != nil {
			h.close() // SO_PASSRIGHTS: it could not even
		}
	}},
	{name: "sends it back without the descriptor", again: true, play: func(h *heir, f *frameConnections) { h.say(*f) }},
	{name: "adds a descriptor", again: true, play: func(h *heir, f *frameConnections) {
		if h.try(adopted(f.cookies()...), f.fds...) != nil {
			h.close()
		}
	}},
}

func TestHostileHeirs(t *testing.T) {
	for _, tt := range hostileHeirs {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			cfg.StepTimeout = 10 * time.Second
			if tt.why == "no answer" {
				cfg.moveTimeout = 300 * time.Millisecond
			}
			p := part(t, cfg, 2)
			o := moving(t, testContext(t), p.from, p.servers[0])
			f := p.heir.connections()
			tt.play(p.heir, f)
			next := p.heir.peer
			closeAll(f.fds)
			if tt.again {
				var hi *frameHello
				if next, hi = p.heir.redialed(); !hi.Moves || hi.Intent != intentReport || hi.Generation != 1 {
					t.Errorf("redialed with %+v", hi)
				}
				o.pending()
				next.say(simple(typeOK))
				f = next.connections()
				closeAll(f.fds)
				next.say(adopted(f.cookies()...))
			}
			if err := o.wait(); tt.again || tt.moved {
				if err != nil {
					t.Error(err)
				}
				// What was answered is let go of.
				p.servers[0].Close()
				hangsUp(t, p.clients[0])
			} else {
				notMoved(t, err, tt.why)
				through(t, p.clients[0], p.servers[0])
			}
			// The other connection still works, and moves if it may.
			if tt.again || tt.served {
				o = moving(t, testContext(t), p.from, p.servers[1])
				f = next.connections()
				closeAll(f.fds)
				next.say(adopted(f.cookies()...))
				if err := o.wait(); err != nil {
					t.Error(err)
				}
			} else {
				through(t, p.clients[1], p.servers[1])
			}
			within(t, 20*time.Second, "Close", func() { p.old.Close() })
		})
	}
}

// An answer that comes twice must not be taken for that to the next batch,
// which the heir may adopt the moment after.
func TestMoveAnsweredTwice(t *testing.T) {
	leak.Check(t)
	p := part(t, testConfig(t), 2)
	o := moving(t, testContext(t), p.from, p.servers[0])
	f := p.heir.connections()
	closeAll(f.fds)
	first := f.cookies()
	p.heir.say(adopted(first...))
	if err := o.wait(); err != nil {
		t.Fatal(err)
	}
	o = moving(t, testContext(t), p.from, p.servers[1])
	f = p.heir.connections()
	p.heir.say(adopted(first...))
	err := p.heir.try(adopted(f.cookies()...))
	closeAll(f.fds)
	next, _ := p.heir.redialed() // the conversation is broken
	if err == nil {
		// It was adopted in time.
		if err := o.wait(); err != nil {
			t.Errorf("both sides have it: %v", err)
		}
		return
	}
	next.say(simple(typeOK))
	f = next.connections()
	closeAll(f.fds)
	next.say(adopted(f.cookies()...))
	if err := o.wait(); err != nil {
		t.Error(err)
	}
}

// An answer that nobody waits for ends the conversation.
func TestMoveAnsweredUnasked(t *testing.T) {
	leak.Check(t)
	p := part(t, testConfig(t), 1)
	p.heir.say(adopted())
	next, _ := p.heir.redialed()
	o := moving(t, testContext(t), p.from, p.servers[0])
	next.say(adopted()) // in place of ok
	next, _ = p.heir.redialed()
	next.say(simple(typeOK))
	f := next.connections()
	closeAll(f.fds)
	next.say(adopted(f.cookies()...))
	if err := o.wait(); err != nil {
		t.Error(err)
	}
}

// The heir is silent, or goes away, and nobody listens at the control path any
// more.
func TestMoveWhenNobodyIsLeft(t *testing.T) {
	for name, play := range map[string]func(h *heir){
		"silent": func(h *heir) {},
		"gone":   func(h *heir) { h.close() },
	} {
		for _, n := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				leak.Check(t)
				cfg := testConfig(t)
				cfg.moveTimeout = 300 * time.Millisecond
				p := part(t, cfg, n)
				p.heir.control.Close()
				outs := []outcome{moving(t, testContext(t), p.from, p.servers[0])}
				f := p.heir.connections()
				if n > 1 {
					outs = append(outs, moving(t, testContext(t), p.from, p.servers[1]))
					awaitMovers(t, 1)
				}
				play(p.heir)
				for _, o := range outs {
					notMoved(t, o.wait(), "")
				}
				p.heir.close()
				closeAll(f.fds)
				for i := range p.servers {
					through(t, p.clients[i], p.servers[i])
				}
			})
		}
	}
}

// The connection's owner does not look for another one for as long as each of
// them is silent: a client waits meanwhile.
func TestMoveIsNotSentAgainAfterSilence(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	cfg.moveTimeout = 300 * time.Millisecond
	p := part(t, cfg, 1)
	var dials atomic.Int32
	var listening sync.WaitGroup
	listening.Go(func() {
		for {
			c, err := p.heir.control.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			defer c.Close()
		}
	})
	o := moving(t, testContext(t), p.from, p.servers[0])
	f := p.heir.connections()
	notMoved(t, o.wait(), "no answer")
	if n := dials.Load(); n > 1 {
		t.Errorf("%d others were asked before it", n)
	}
	closeAll(f.fds)
	through(t, p.clients[0], p.servers[0])
	// Nor is it asked for ever after that.
	notMoved(t, moving(t, testContext(t), p.from, p.servers[0]).wait(), "")
	if p.from.Movable() {
		t.Error("still movable")
	}
	through(t, p.clients[0], p.servers[0])
	p.old.Close()
	p.heir.control.Close()
	listening.Wait()
}

// An owner that does not want to listen is not asked for ever.
func TestMoveWhenTheOwnerDoesNotListen(t *testing.T) {
	for name, play := range map[string]func(p *peer){
		"closes": func(p *peer) {},
		"refuses": func(p *peer) {
			p.try(frameRefuse{Type: typeRefuse, Code: CodeLimit, Message: "too many"})
			p.conn.CloseWrite()
			for errOf(p.next()) == nil {
			}
		},
		"takes none": func(p *peer) {
			p.try(frameAdopted{Type: typeAdopted, Stop: takesNone})
			for errOf(p.next()) == nil {
			}
		},
		"says ok, and closes": func(p *peer) {
			p.try(simple(typeOK))
			if f, err := p.recvMoved(testContext(p.t)); err == nil {
				dropFrame(f)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			p := part(t, testConfig(t), 1)
			var dials atomic.Int32
			var listening sync.WaitGroup
			listening.Go(func() {
				for {
					c, err := p.heir.control.AcceptUnix()
					if err != nil {
						return
					}
					dials.Add(1)
					conn, err := scm.NewConn(c)
					if err != nil {
						t.Error(err)
						return
					}
					q := &peer{t, newLink(conn, scm.MaxFDs)}
					if err := errOf(q.next()); err != nil && !gone(err) {
						t.Errorf("instead of hello: %v", err)
					}
					play(q)
					q.close()
				}
			})
			p.heir.close()
			o := moving(t, testContext(t), p.from, p.servers[0])
			err := o.wait()
			notMoved(t, err, "")
			if n := dials.Load(); n > 2*moveTries || name == "refuses" && n > 2 {
				t.Errorf("%d times: %v", n, err)
			}
			through(t, p.clients[0], p.servers[0])
			within(t, 20*time.Second, "Close", func() { p.old.Close() })
			p.heir.control.Close()
			listening.Wait()
		})
	}
}

// A predecessor that moves nothing reports on one conversation, for as long as
// it drains.
func TestReportOfAGenerationThatMovesNothing(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	cfg.StepTimeout, cfg.NoMove = 300*time.Millisecond, true
	p := part(t, cfg, 0)
	p.heir.close()
	q, hi := p.heir.redialed()
	if hi.Moves {
		t.Error("it would like to move connections")
	}
	for range 3 { // one comes in more than StepTimeout
		awaitFrame[*frameProgress](q)
	}
}

// reporter is a predecessor that is played by hand, and reports to an owner.
func reporter(t testing.TB, cfg Config, g *Generation) *peer {
	t.Helper()
	p := dialPeer(t, cfg)
	h := hello(intentReport)
	h.Moves, h.Generation = true, g.Number()-1
	p.say(h)
	return p
}

// gives sends descriptors as connections.
func (p *peer) gives(listener string, fds ...int) error {
	f := frameConnections{Type: typeMoved}
	for _, fd := range fds {
		info, err := inspect(fd)
		if err != nil {
			p.t.Fatal(err)
		}
		f.Items = append(f.Items, movedItem{Listener: listener, Cookie: info.cookie})
	}
	return p.try(f, fds...)
}

func fdOf(t testing.TB, c any) int {
	t.Helper()
	fd, err := sockFD(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// In probation a generation takes no connections: with it they would die.
func TestMoveIntoProbation(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	cfg.Probation = time.Hour
	next := begin(t, cfg)
	to := listen(t, next, "app", "", "")
	ready(t, next)
	p := reporter(t, cfg, next)
	awaitSimple(p, typeOK)
	p.gives("app", fdOf(t, server))
	if a := awaitFrame[*frameAdopted](p); len(a.Cookies) != 0 || a.Stop != "" {
		t.Errorf("in probation: %+v", a)
	}
	if err := (Operator{Socket: cfg.Socket}).Commit(testContext(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "superseded", old.Superseded())
	p.gives("app", fdOf(t, server))
	if a := awaitFrame[*frameAdopted](p); len(a.Cookies) != 1 {
		t.Errorf("after probation: %+v", a)
	}
	server.Close()
	through(t, client, acceptMoved(t, to))
}

// What is sent in place of a connection is closed, and not taken; what comes
// with it is.
func TestWhatIsNoConnectionIsNotTaken(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	g, ln := first(t, cfg, "tcp", "127.0.0.1:0")
	_, good := connect(t, ln)
	file := func(f any, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.(io.Closer).Close() })
		return fdOf(t, f)
	}
	_, blocking := connect(t, ln)
	if err := unix.SetNonblock(fdOf(t, blocking), false); err != nil {
		t.Fatal(err)
	}
	_, other := connect(t, ln)
	unixConn := func() int {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeAll(fds[:]) })
		return fds[0]
	}
	unconnected, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(unconnected)
	r, w, err := os.Pipe()
	file(w, err)
	p := reporter(t, cfg, g)
	awaitSimple(p, typeOK)
	for what, tt := range map[string]struct {
		fd       int
		listener string
		lie      cookie
	}{
		"a file":                   {fd: file(os.Open(os.DevNull))},
		"a pipe":                   {fd: file(r, err)},
		"a listener":               {fd: file(net.Listen("tcp", "127.0.0.1:0"))},
		"a packet socket":          {fd: file(net.ListenPacket("udp", "127.0.0.1:0"))},
		"a connected packet one":   {fd: file(net.Dial("udp", "127.0.0.1:1"))},
		"a Unix connection":        {fd: unixConn()},
		"a blocking connection":    {fd: fdOf(t, blocking)},
		"an unconnected socket":    {fd: unconnected},
		"one of another listener":  {fd: fdOf(t, other), listener: "other"},
		"one with another cookie":  {fd: fdOf(t, other), lie: 1},
		"the control conversation": {fd: p.fd()},
	} {
		t.Run(what, func(t *testing.T) {
			info, err := inspect(tt.fd)
			if err != nil {
				t.Fatal(err)
			}
			if tt.listener == "" {
				tt.listener = "app"
			}
			fine, err := inspect(fdOf(t, good))
			if err != nil {
				t.Fatal(err)
			}
			p.say(frameConnections{Type: typeMoved, Items: []movedItem{
				{Listener: tt.listener, Cookie: info.cookie + tt.lie}, {Listener: "app", Cookie: fine.cookie},
			}}, tt.fd, fdOf(t, good))
			a := awaitFrame[*frameAdopted](p)
			if len(a.Cookies) != 1 || a.Cookies[0] != fine.cookie || a.Stop != "" {
				t.Errorf("answered %+v, want only %d", a, fine.cookie)
			}
			for range a.Cookies {
				acceptMoved(t, ln).Close()
			}
		})
	}
	if b, err := isBlocking(fdOf(t, blocking)); err != nil || !b {
		t.Errorf("the blocking connection was made non-blocking: %v", err)
	}
	// The frames themselves are wrong.
	item := movedItem{Listener: "app", Cookie: 1}
	for what, say := range map[string]func(p *peer){
		"more descriptors":  func(p *peer) { p.say(frameConnections{Type: typeMoved, Items: []movedItem{item}}, 0, 0) },
		"fewer descriptors": func(p *peer) { p.say(frameConnections{Type: typeMoved, Items: []movedItem{item, item}}, 0) },
		"none":              func(p *peer) { p.say(frameConnections{Type: typeMoved}) },
		"a bad name": func(p *peer) {
			p.say(frameConnections{Type: typeMoved, Items: []movedItem{{Listener: "@control", Cookie: 1}}}, 0)
		},
		"descriptors with another": func(p *peer) { p.say(frameProgress{Type: typeProgress}, 0, 0) },
		"an answer":                func(p *peer) { p.say(adopted()) },
	} {
		t.Run(what, func(t *testing.T) {
			p := reporter(t, cfg, g)
			awaitSimple(p, typeOK)
			say(p)
			p.ended()
		})
	}
	if _, err := (Operator{Socket: cfg.Socket}).Status(testContext(t)); err != nil {
		t.Error(err)
	}
}

// A predecessor that asks for no moves cannot send any.
func TestMoveThatWasNotAnnounced(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	g, ln := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, ln)
	p := dialPeer(t, cfg)
	h := hello(intentReport)
	h.Generation = g.Number() - 1
	p.say(h)
	eventually(t, "reporter in the status", func() bool {
		st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
		return err == nil && len(st.Draining) == 1
	})
	p.gives("app", fdOf(t, server)) // EPERM, or the end
	p.say(frameDrained{Type: typeDrained})
	eventually(t, "end of it", func() bool {
		st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
		return err == nil && len(st.Draining) == 0
	})
	through(t, client, server)
}

// peers tells of which predecessors a generation says that they drain, and how
// the last one that ended did.
type peers struct {
	mu   sync.Mutex
	last PeerStatus
}

func (p *peers) watch(cfg *Config) {
	cfg.OnEvent = func(e Event) {
		if e.Peer != nil && e.Peer.Phase == PhaseDone {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.last = *e.Peer
		}
	}
}

func (p *peers) awaitEnd(t testing.TB, cfg Config) PeerStatus {
	t.Helper()
	eventually(t, "no draining generation in the status", func() bool {
		st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
		p.mu.Lock()
		defer p.mu.Unlock()
		return err == nil && len(st.Draining) == 0 && p.last.Phase == PhaseDone
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// The last word of a predecessor is heard, though it did not wait for the answer
// to its first; and whatever it does, it does not stay in the status.
func TestLastWordOfAReporter(t *testing.T) {
	bye := frameDrained{Type: typeDrained, Report: []byte(`"bye"`)}
	for name, tt := range map[string]struct {
		play   func(t *testing.T, cfg Config, g *Generation, server net.Conn)
		report string // "": lost
	}{
		"gone before it is heard": {report: `"bye"`, play: func(t *testing.T, cfg Config, g *Generation, _ net.Conn) {
			release := holdRun(t, g)
			p := reporter(t, cfg, g)
			p.say(bye)
			p.close()
			release()
		}},
		"gone with an answer unread": {report: `"bye"`, play: func(t *testing.T, cfg Config, g *Generation, _ net.Conn) {
			p := reporter(t, cfg, g)
			eventually(t, "answer", p.conn.Readable)
			release := holdRun(t, g)
			p.say(frameProgress{Type: typeProgress})
			p.say(bye)
			p.close()
			release()
		}},
		"gone after it moved something": {report: `"bye"`, play: func(t *testing.T, cfg Config, g *Generation, server net.Conn) {
			p := reporter(t, cfg, g)
			awaitSimple(p, typeOK)
			release := holdRun(t, g)
			p.gives("app", fdOf(t, server))
			p.say(bye)
			p.close()
			release()
		}},
		"gone while it moves something": {play: func(t *testing.T, cfg Config, g *Generation, server net.Conn) {
			p := reporter(t, cfg, g)
			awaitSimple(p, typeOK)
			release := holdRun(t, g)
			p.gives("app", fdOf(t, server))
			p.close()
			release()
		}},
		"rubbish": {play: func(t *testing.T, cfg Config, g *Generation, _ net.Conn) {
			p := reporter(t, cfg, g)
			p.raw("rubbish")
			p.ended()
		}},
		"out of place": {play: func(t *testing.T, cfg Config, g *Generation, _ net.Conn) {
			p := reporter(t, cfg, g)
			p.say(simple(typeReady))
			p.ended()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			var seen peers
			cfg := testConfig(t)
			seen.watch(&cfg)
			g, ln := first(t, cfg, "tcp", "127.0.0.1:0")
			client, server := connect(t, ln)
			tt.play(t, cfg, g, server)
			st := seen.awaitEnd(t, cfg)
			if string(st.Report) != tt.report || st.Lost != (tt.report == "") {
				t.Errorf("%+v, want the report %s", st, tt.report)
			}
			through(t, client, server)
			if n := arrivals(ln); n > 0 {
				t.Errorf("%d connections came nevertheless", n)
			}
		})
	}
}

func to(ln mover) *listener { return ln.(*listener) }

// mortal is a fake owner whose pidfd is that of a child, so that it can die.
type mortal struct {
	*fake
	*peer
	child   *child
	release func()
}

// bequeath has g, a real successor, own everything for good.
func bequeath(t testing.TB, cfg Config) (*mortal, *Generation, mover) {
	t.Helper()
	m := &mortal{fake: newFake(t, cfg), child: startChild(t, cfg.Socket)}
	pidfd, err := pidfdOf(m.child.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(pidfd)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.peer = m.accept()
		awaitFrame[*frameHello](m.peer)
		m.say(welcome(len(m.set)), pidfd)
		m.give(0, m.set...)
		awaitFrame[*frameReceived](m.peer)
	}()
	g := begin(t, cfg)
	await(t, "transfer", done)
	ln := listen(t, g, "app", "", "")
	go func() {
		awaitSimple(m.peer, typeReady)
		m.word.swap(settled(1, 0), settled(2, 0))
		m.say(frameGranted{Type: typeGranted, Generation: 2, Settled: true})
	}()
	ready(t, g)
	return m, g, ln.(mover)
}

// What becomes of connections whose adoption could not be acknowledged: they
// are the successor's only if the predecessor has died over them.
func TestUnacknowledgedConnections(t *testing.T) {
	gives := func(m *mortal, fd int) { m.gives("app", fd) }
	goesOn := func(m *mortal, _ int) { m.word.withdrawals(1).Add(1) }
	closes := func(m *mortal, _ int) { m.peer.close() }
	dies := func(m *mortal, _ int) { m.child.kill() }
	again := func(m *mortal, fd int) {
		info, err := inspect(fd)
		if err != nil {
			m.fake.t.Fatal(err)
		}
		m.try(frameConnections{
			Type: typeMoved, Withdrawn: m.word.withdrawals(1).Load(), Items: []movedItem{{Listener: "app", Cookie: info.cookie}},
		}, fd)
	}
	// Once the successor waits for its death.
	later := func(m *mortal, _ int) {
		m.release()
		awaitStack(m.fake.t, "wait for the death", "(*process).diesWithin(")
	}
	for name, tt := range map[string]struct {
		play   []func(*mortal, int)
		served bool
	}{
		"dies later":                        {[]func(*mortal, int){gives, closes, later, dies}, true},
		"goes on with them later, and dies": {[]func(*mortal, int){gives, closes, later, goesOn, dies}, false},
		"dies":                              {[]func(*mortal, int){gives, closes, dies}, true},
		"closes":                            {[]func(*mortal, int){gives, closes}, false},
		"goes on with them, and dies":       {[]func(*mortal, int){gives, goesOn, closes, dies}, false},
		"dies after it went on with others": {[]func(*mortal, int){goesOn, again, closes, dies}, true},
		"dies before":                       {[]func(*mortal, int){dies, gives, closes}, true},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			m, g, ln := bequeath(t, cfg)
			client, server := connect(t, ln)
			m.release = holdRun(t, g)
			for _, step := range tt.play {
				step(m, fdOf(t, server))
			}
			server.Close()
			m.release()
			if !tt.served {
				hangsUp(t, client)
				if n := arrivals(ln); n > 0 {
					t.Errorf("%d are served", n)
				}
				return
			}
			through(t, client, acceptMoved(t, ln))
		})
	}
}

// The owner leaves while its successor prepares, and has it granted early. What
// it wants to move meanwhile stays, and the successor hears of its end.
func TestMoveToASuccessorThatIsNotReady(t *testing.T) {
	leak.Check(t)
	var seen peers
	cfg := testConfig(t)
	seen.watch(&cfg)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	next := begin(t, cfg)
	to := listen(t, next, "app", "", "")
	if err := old.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	stays(t, from, client, server, "did not take it")
	old.Drained("bye")
	old.Close()
	ready(t, next)
	if st := seen.awaitEnd(t, cfg); string(st.Report) != `"bye"` || st.Lost {
		t.Errorf("the successor was told %+v", st)
	}
	client, server = connect(t, to)
	through(t, client, server)
}

// A connection that comes at the moment at which its listener ends is accepted
// before net.ErrClosed, by who waits in Accept.
func TestAcceptGivesWhatWasExpectedBeforeItEnds(t *testing.T) {
	for name, end := range map[string]func(*Generation, net.Listener) error{
		"Stop":           func(g *Generation, _ net.Listener) error { return g.Stop(context.Background()) },
		"listener close": func(_ *Generation, ln net.Listener) error { return ln.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			for range 30 {
				cfg := testConfig(t)
				g, ln := first(t, cfg, "tcp", "127.0.0.1:0")
				a, b := net.Pipe()
				defer a.Close()
				defer b.Close()
				way := to(ln).way
				if !way.expect(1) {
					t.Fatal("not expected")
				}
				type result struct {
					c   net.Conn
					err error
				}
				got := make(chan result)
				go func() {
					for {
						c, err := ln.Accept()
						got <- result{c, err}
						if err != nil {
							return
						}
					}
				}()
				awaitAccepts(t, to(ln), 1)
				if err := end(g, ln); err != nil {
					t.Fatal(err)
				}
				go way.arrive(a)
				within(t, 20*time.Second, "Accept", func() {
					if r := <-got; r.c != a {
						t.Errorf("instead of the connection: %v, %v", r.c, r.err)
						return
					}
					if r := <-got; !errors.Is(r.err, net.ErrClosed) {
						t.Errorf("then: %v, %v", r.c, r.err)
					}
				})
				g.Close()
				if t.Failed() {
					return
				}
			}
		})
	}
}

// What nobody has accepted is closed with the generation.
func TestCloseClosesWhatNobodyAccepted(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	next, _ := succeed(t, cfg, old)
	moves(t, from, server, "", "")
	server.Close()
	next.Close()
	hangsUp(t, client)
}

// An owner that has all the reporters it wants refuses more: what waits for it
// stays.
func TestMoveToAnOwnerWithManyReporters(t *testing.T) {
	leak.Check(t)
	needFDs(t, 1000)
	cfg := testConfig(t)
	cfg.StepTimeout = 20 * time.Second
	old, from := first(t, cfg, "tcp", "127.0.0.1:0")
	client, server := connect(t, from)
	next, _ := succeed(t, cfg, old)
	// Between the supersession of next and the redial of old there is time for
	// others to be first: here they are.
	last := begin(t, cfg)
	to := listen(t, last, "app", "", "")
	last.do(func() { last.lasting = maxLasting })
	ready(t, last)
	await(t, "superseded", next.Superseded())
	next.Close()
	err := moving(t, testContext(t), from, server).wait()
	for i := 0; err != nil && strings.Contains(err.Error(), "went away") && i < moveTries; i++ {
		err = moving(t, testContext(t), from, server).wait() // next was still there
	}
	notMoved(t, err, "")
	through(t, client, server)
	last.do(func() { last.lasting = 0 })
	eventually(t, "move", func() bool {
		return moving(t, testContext(t), from, server).wait() == nil
	})
	server.Close()
	through(t, client, acceptMoved(t, to))
}

// A peer that has always something else to say is patient with nobody.
func TestPatienceEnds(t *testing.T) {
	l := &link{}
	l.inHand.Store(true)
	p := newPatience(time.Hour)
	defer p.Stop()
	for range 2 {
		n := 0
		for p.again(l) {
			n++
		}
		if n != maxChances {
			t.Errorf("%d more chances, want %d", n, maxChances)
		}
		p.reset(time.Hour)
	}
}
