package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// chain runs generations in this process, each claiming what claim does, and
// calls look when each owns the sockets and the last is closed.
func chain(t *testing.T, cfg Config, n int, claim func(*Generation), look func(*Generation)) {
	t.Helper()
	last := begin(t, cfg)
	claim(last)
	ready(t, last)
	look(last)
	for range n - 1 {
		next := begin(t, cfg)
		claim(next)
		ready(t, next)
		await(t, "superseded", last.Superseded())
		if err := last.Close(); err != nil {
			t.Fatal(err)
		}
		look(next)
		last = next
	}
	if err := last.Close(); err != nil {
		t.Fatal(err)
	}
}

// Numbers of sockets around the limits of one message (253), handed over by
// name along a chain, with the garbage collector running all the time.
func TestManySocketsInAChain(t *testing.T) {
	for _, n := range []int{1, 252, 253, 254, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			generations := 10
			stop := make(chan struct{})
			var gc sync.WaitGroup
			gc.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						runtime.GC()
						// On two cores the collector would leave nothing.
						time.Sleep(time.Millisecond)
					}
				}
			})
			defer gc.Wait()
			defer close(stop)

			cfg := testConfig(t)
			cfg.StepTimeout = time.Minute
			dir := filepath.Dir(cfg.Socket)
			network := func(i int) (string, string) {
				if i%2 == 0 {
					return "tcp", "127.0.0.1:0"
				}
				return "unix", filepath.Join(dir, fmt.Sprint(i))
			}
			lns := make([]net.Listener, n)
			var addrs []string
			var cookies []uint64
			var fds []int
			chain(t, cfg, generations, func(g *Generation) {
				for i := range n {
					nw, address := network(i)
					lns[i] = listen(t, g, fmt.Sprintf("name-%d", i), nw, address)
				}
			}, func(g *Generation) {
				var as []string
				var cs []uint64
				g.do(func() {
					for _, s := range g.sockets {
						as, cs = append(as, s.Name+" "+s.Address), append(cs, uint64(s.Cookie))
					}
				})
				if addrs == nil {
					addrs, cookies = as, cs
				}
				if d := cmp.Diff(addrs, as); d != "" {
					t.Fatalf("generation %d: names and addresses changed: %s", g.Number(), d)
				}
				if d := cmp.Diff(cookies, cs); d != "" {
					t.Fatalf("generation %d: these are other sockets: %s", g.Number(), d)
				}
				if g.pred != nil {
					await(t, "end of the conversation with the predecessor", g.pred.over)
				}
				fds = append(fds, openFDs(t, os.Getpid()))
				for _, i := range []int{0, n / 2, n - 1} {
					talk(t, lns[i])
				}
			})
			// The first generation has no predecessor; from the second on the
			// count must not move.
			if low, high := slices.Min(fds[1:]), slices.Max(fds[1:]); low != high {
				t.Fatalf("descriptors of each generation: %v", fds)
			}
		})
	}
}

// Ten thousand, in processes of their own as in life, whose collector runs all
// the time: names, addresses and sockets stay, and so do the counts in /proc.
func TestTenThousandSocketsInAChain(t *testing.T) {
	const n = 10_000
	generations := 10
	if testing.Short() {
		generations = 3
	}
	needFDs(t, n)
	cfg := testConfig(t)
	op := Operator{Socket: cfg.Socket, Timeout: time.Minute}
	start := func() *child {
		c := startChild(t, cfg.Socket, "HANDOVER_TEST_GC=1")
		c.do("probation -1s", "step 1m", "start", fmt.Sprint("many ", n))
		return c
	}
	last := start()
	last.do("ready")
	var first []SocketStatus
	var fds []int
	for i := range generations {
		if i > 0 {
			next := start()
			next.do("ready")
			last.do("superseded", "close")
			last.kill()
			last = next
		}
		st, err := op.Status(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if st.Generation != uint64(i+1) || len(st.Sockets) != n {
			t.Fatalf("generation %d with %d sockets, want %d with %d", st.Generation, len(st.Sockets), i+1, n)
		}
		if first == nil {
			first = st.Sockets
		}
		if d := cmp.Diff(first, st.Sockets); d != "" {
			t.Fatalf("generation %d: %s", st.Generation, d)
		}
		fds = append(fds, 0)
		// The conversation with the predecessor ends a moment after that one.
		eventually(t, "as many descriptors as the generation before", func() bool {
			fds[i] = openFDs(t, last.cmd.Process.Pid)
			return i < 2 || fds[i] == fds[1]
		})
	}
	t.Logf("descriptors of each generation: %v", fds)
}

// talk sends a byte through a listener and back.
func talk(t testing.TB, ln net.Listener) {
	t.Helper()
	c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func needFDs(t testing.TB, n int) {
	t.Helper()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if lim.Cur < uint64(n+500) {
		raised := unix.Rlimit{Cur: uint64(n + 500), Max: max(lim.Max, uint64(n+500))}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
			lack(t, "needs %d descriptors, the limit is %d and cannot be raised: %v", n, lim.Cur, err)
		}
	}
}

func TestPacketSockets(t *testing.T) {
	for _, network := range []string{"udp", "udp4", "udp6", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			cfg := testConfig(t)
			address := "127.0.0.1:0"
			switch network {
			case "udp6":
				address = "[::1]:0"
			case "unixgram":
				address = filepath.Join(filepath.Dir(cfg.Socket), "gram")
			}
			var pc net.PacketConn
			chain(t, cfg, 10, func(g *Generation) {
				var err error
				if pc, err = g.ListenPacket("app", network, address); err != nil {
					t.Fatal(err)
				}
			}, func(g *Generation) {
				c, err := net.Dial(pc.LocalAddr().Network(), pc.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprint(c, g.Number())
				b := make([]byte, 16)
				pc.SetReadDeadline(time.Now().Add(10 * time.Second))
				n, _, err := pc.ReadFrom(b)
				if err != nil || string(b[:n]) != fmt.Sprint(g.Number()) {
					t.Fatalf("%q %v", b[:n], err)
				}
			})
		})
	}
}

// Exactly one of two generations reads a datagram socket.
func TestOnlyTheOwnerReadsPackets(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = time.Hour
	a := begin(t, cfg)
	pa, err := a.ListenPacket("app", "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready(t, a)
	got := make(chan string, 100)
	read := func(who string, pc net.PacketConn) {
		b := make([]byte, 16)
		for {
			n, _, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			got <- who + string(b[:n])
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { read("a", pa) })
	b := begin(t, cfg)
	pb, err := b.ListenPacket("app", "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { read("b", pb) })
	c, err := net.Dial("udp", pa.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func(want string) {
		t.Helper()
		for i := range 20 {
			fmt.Fprint(c, i)
			if g := <-got; g != want+fmt.Sprint(i) {
				t.Fatalf("packet %d: %s, want %s", i, g, want)
			}
		}
	}
	ask("a")
	ready(t, b)
	ask("b")
	if err := b.pred.command(testContext(t), cmdRollback); err != nil {
		t.Fatal(err)
	}
	ask("a")
	b.Close()
	a.Close()
}

// A full accept queue survives a takeover.
func TestQueuedConnectionsAreServed(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	ln := listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	var clients []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if q := st.Sockets[0].Queue; q == nil || *q != 100 {
		t.Fatalf("status tells an accept queue of %v, want 100", q)
	}
	b := begin(t, cfg)
	var s greeter
	s.serve(t, b, listen(t, b, "app", "tcp", "127.0.0.1:0"))
	ready(t, b)
	a.Close()
	for i, c := range clients {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(c); err != nil || string(got) != "2" {
			t.Fatalf("client %d: %q %v", i, got, err)
		}
	}
	b.Close()
}

// Flags and options of the live sockets are the same before and after, and on
// both sides.
func TestSocketsStayAsTheyAre(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = time.Hour
	options := func(g *Generation) (all []string) {
		g.do(func() {
			for _, s := range append(slices.Clone(g.sockets), &g.control.ctl) {
				flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				fdflags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFD, 0)
				if err != nil || fdflags&unix.FD_CLOEXEC == 0 {
					t.Fatalf("%s is not close-on-exec (%v)", s.Name, err)
				}
				line := fmt.Sprintf("%s flags=%#x", s.Name, flags)
				for _, o := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT, unix.SO_KEEPALIVE, unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_BROADCAST} {
					v, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, o)
					line += fmt.Sprintf(" %d=%d(%v)", o, v, err)
				}
				if _, backlog, ok := acceptQueue(s.fd); ok {
					line += fmt.Sprintf(" backlog=%d", backlog)
				}
				all = append(all, line)
			}
		})
		return all
	}
	a := begin(t, cfg)
	listen(t, a, "tcp", "tcp", "127.0.0.1:0")
	listen(t, a, "unix", "unix", filepath.Join(filepath.Dir(cfg.Socket), "u"))
	if _, err := a.ListenPacket("udp", "udp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ready(t, a)
	before := options(a)
	b := begin(t, cfg)
	listen(t, b, "tcp", "", "")
	listen(t, b, "unix", "", "")
	if _, err := b.ListenPacket("udp", "", ""); err != nil {
		t.Fatal(err)
	}
	for _, look := range []func(){func() {}, func() { ready(t, b) }} {
		look()
		if d := cmp.Diff(before, options(a)); d != "" {
			t.Fatalf("old side: %s", d)
		}
		if d := cmp.Diff(before, options(b)); d != "" {
			t.Fatalf("new side: %s", d)
		}
	}
	b.Close()
	if d := cmp.Diff(before, options(a)); d != "" {
		t.Fatalf("after the rollback: %s", d)
	}
	a.Close()
}

// A blocking socket would hold an Accept, and so a takeover, for ever.
func TestBlockingSocketIsRefused(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	a.do(func() { unix.SetNonblock(a.sockets[0].fd, false) })
	b := begin(t, cfg)
	if _, err := b.Listen("app", "", ""); err == nil || !strings.Contains(err.Error(), "blocking mode") {
		t.Fatal(err)
	}
	b.Close()
	a.do(func() {
		if blocking, _ := isBlocking(a.sockets[0].fd); !blocking {
			t.Error("the successor changed the flag of the live socket")
		}
		unix.SetNonblock(a.sockets[0].fd, true)
	})
}

func TestNames(t *testing.T) {
	cfg := testConfig(t)
	g := begin(t, cfg)
	listen(t, g, "app", "tcp", "127.0.0.1:0")
	for _, tt := range []struct{ name, network, address, want string }{
		{"app", "tcp", "127.0.0.1:0", "in use already"},
		{"", "tcp", "127.0.0.1:0", "empty name"},
		{"@x", "tcp", "127.0.0.1:0", "reserved"},
		{"a:b", "tcp", "127.0.0.1:0", "not allowed"},
		{strings.Repeat("x", 129), "tcp", "127.0.0.1:0", "the limit is 128"},
		{"n", "tcp5", "127.0.0.1:0", "unknown network tcp5"},
		{"n", "udp", "127.0.0.1:0", "unknown network udp"},
		{"n", "", "", ErrNotFound.Error()},
		{"n", "tcp", "127.0.0.1:99999", "invalid port"},
	} {
		if _, err := g.Listen(tt.name, tt.network, tt.address); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Listen(%.10q, %q, %q): %v, want %s", tt.name, tt.network, tt.address, err, tt.want)
		}
	}
	if _, err := g.ListenPacket("app", "udp", "127.0.0.1:0"); err == nil {
		t.Error("one name for two sockets")
	}
	// What failed left the name free.
	listen(t, g, "n", "tcp", "127.0.0.1:0")
}

// The successor wants something else under an old name, something new, and
// not all of the old.
func TestOtherListenersThanInherited(t *testing.T) {
	cfg := testConfig(t)
	dir := filepath.Dir(cfg.Socket)
	a := begin(t, cfg)
	kept := listen(t, a, "kept", "tcp", "127.0.0.1:0")
	moved := listen(t, a, "moved", "tcp", "127.0.0.1:0")
	path := filepath.Join(dir, "dropped")
	dropped := listen(t, a, "dropped", "unix", path)
	ready(t, a)
	b := begin(t, cfg)
	if got, want := b.Inherited(), a.Sockets(); len(got) != 3 || len(want) != 3 {
		t.Fatal(got, want)
	}
	if ln := listen(t, b, "kept", "tcp", kept.Addr().String()); ln.Addr().String() != kept.Addr().String() {
		t.Fatal(ln.Addr())
	}
	if ln := listen(t, b, "moved", "tcp4", "127.0.0.2:0"); ln.Addr().String() == moved.Addr().String() {
		t.Fatal(ln.Addr())
	}
	listen(t, b, "added", "tcp", "127.0.0.1:0")
	// [::] and 0.0.0.0 are different addresses.
	if _, err := net.Dial("unix", path); err != nil {
		t.Fatal(err)
	}
	ready(t, b)
	a.Close()
	var names []string
	for _, s := range b.Unclaimed() {
		names = append(names, s.Name)
	}
	if d := cmp.Diff([]string{"dropped", "moved"}, names); d != "" {
		t.Fatal(d)
	}
	if c, err := net.Dial("tcp", moved.Addr().String()); err == nil {
		c.Close()
		t.Fatal("the listener that was not wanted still listens")
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("path of the dropped %v: %v", dropped.Addr(), err)
	}
	b.Close()
}

func TestWildcardsDiffer(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		network, asked, bound string
		want                  bool
	}{
		{"tcp", ":80", "[::]:80", true},
		{"tcp", "[::]:80", "[::]:80", true},
		{"tcp", "0.0.0.0:80", "[::]:80", false},
		{"tcp", "[::]:80", "0.0.0.0:80", false},
		{"tcp4", ":80", "0.0.0.0:80", true},
		{"tcp4", ":80", "[::]:80", false},
		{"tcp", "127.0.0.1:0", "127.0.0.1:1234", true},
		{"tcp", "127.0.0.1:http", "127.0.0.1:80", true},
		{"tcp", "127.0.0.1:81", "127.0.0.1:80", false},
		{"tcp", "127.0.0.2:80", "127.0.0.1:80", false},
		{"tcp", "localhost:80", "127.0.0.1:80", true},
		{"tcp", "nonsense", "127.0.0.1:80", false},
	} {
		if got := sameAddress(ctx, tt.network, tt.asked, tt.bound); got != tt.want {
			t.Errorf("sameAddress(%s, %s, %s) = %v", tt.network, tt.asked, tt.bound, got)
		}
	}
}

// Two listeners with one address are two: names are identities.
func TestTwoListenersOnOneAddress(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenConfig.Control = func(_, _ string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}
	var cookies [][2]uint64
	address := "127.0.0.1:0"
	chain(t, cfg, 4, func(g *Generation) {
		first := listen(t, g, "first", "tcp", address)
		address = first.Addr().String()
		second := listen(t, g, "second", "tcp", address)
		if first.Addr().String() != second.Addr().String() {
			t.Fatal(first.Addr(), second.Addr())
		}
	}, func(g *Generation) {
		g.do(func() {
			cookies = append(cookies, [2]uint64{uint64(g.byName["first"].Cookie), uint64(g.byName["second"].Cookie)})
		})
	})
	for _, c := range cookies {
		if c != cookies[0] || c[0] == c[1] {
			t.Fatalf("cookies of first and second in each generation: %v", cookies)
		}
	}
}

func TestFilesAndState(t *testing.T) {
	cfg := testConfig(t)
	large := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	name := filepath.Join(filepath.Dir(cfg.Socket), "file")
	chain(t, cfg, 10, func(g *Generation) {
		if g.Number() == 1 {
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Adopt("log", f); err != nil {
				t.Fatal(err)
			}
			if _, err := g.State("note"); !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
		} else {
			note, err := g.State("note")
			if want := fmt.Sprint("from ", g.Number()-1, large); err != nil || string(note) != want {
				t.Fatalf("generation %d: state of %d bytes %.20q: %v", g.Number(), len(note), note, err)
			}
			if empty, err := g.State("empty"); err != nil || len(empty) != 0 {
				t.Fatal(empty, err)
			}
		}
		f, err := g.File("log")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprintln(f, g.Number())
		g.OfferState("note", func(context.Context) ([]byte, error) {
			return []byte(fmt.Sprint("from ", g.Number(), large)), nil
		})
		g.OfferState("empty", func(context.Context) ([]byte, error) { return nil, nil })
	}, func(*Generation) {})
	got, err := os.ReadFile(name)
	if err != nil || string(got) != "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n" {
		t.Fatalf("%q %v", got, err)
	}
}

func TestFailingOfferFailsOnlyTheTakeover(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	a.OfferState("note", func(context.Context) ([]byte, error) { return nil, errors.New("out of ink") })
	_, err := Start(testContext(t), cfg)
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Message, "out of ink") {
		t.Fatal(err)
	}
	a.OfferState("note", nil)
	b := begin(t, cfg)
	listen(t, b, "app", "", "")
	ready(t, b)
}

// What a socket activator passed is found by name, its path is left alone.
func TestAdoptedListener(t *testing.T) {
	cfg := testConfig(t)
	path := filepath.Join(filepath.Dir(cfg.Socket), "adopted")
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ul.SetUnlinkOnClose(false)
	f, err := ul.File()
	if err != nil {
		t.Fatal(err)
	}
	ul.Close()
	var ln net.Listener
	chain(t, cfg, 3, func(g *Generation) {
		if g.Number() == 1 {
			if err := g.Adopt("app", f); err != nil {
				t.Fatal(err)
			}
		}
		ln = listen(t, g, "app", "unix", path)
	}, func(*Generation) { talk(t, ln) })
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the activator's path: %v", err)
	}
}

// No listener is open in a program that the application executes.
func TestNothingIsPassedToPrograms(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	b := begin(t, cfg)
	listen(t, b, "app", "", "")
	pid := execProgram(t, "/bin/sleep", "60")
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		// What else the test's own parent left open is not ours.
		to, _ := os.Readlink(l)
		for _, ours := range []string{"socket:", "memfd:", "net:[", "pidfd", ".lock"} {
			if strings.Contains(to, ours) {
				t.Errorf("%s is open: %s", l, to)
			}
		}
	}
}
