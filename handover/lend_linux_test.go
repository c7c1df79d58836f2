package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// holder starts one with a TCP listener, a Unix listener and n more, and tells
// the addresses of the first two.
func holder(t testing.TB, n int) (g *Generation, tcp, unix string) {
	t.Helper()
	cfg := testConfig(t)
	cfg.Lend = true
	g = begin(t, cfg)
	tcp = listen(t, g, "web", "tcp", "127.0.0.1:0").Addr().String()
	unix = filepath.Join(filepath.Dir(cfg.Socket), "unix")
	listen(t, g, "unix", "unix", unix)
	for i := range n {
		listen(t, g, fmt.Sprint("more", i), "tcp", "127.0.0.1:0")
	}
	ready(t, g)
	return g, tcp, unix
}

// acceptFrom accepts one connection from each listener, which clients made
// before.
func acceptFrom(t testing.TB, all ...net.Listener) {
	t.Helper()
	for _, ln := range all {
		ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(20 * time.Second))
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func dialAndForget(t testing.TB, network, address string) {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// Service generations come and go, crash and hand over: what the holder owns
// listens through all of it.
func TestHolderOutlivesServices(t *testing.T) {
	h, tcp, unix := holder(t, 300) // more than one batch
	cfg := testConfig(t)
	cfg.Holder = h.cfg.Socket
	for round := range 3 {
		dialAndForget(t, "tcp", tcp) // while nobody serves
		dialAndForget(t, "unix", unix)
		g := begin(t, cfg)
		if g.Number() != 1 {
			t.Fatalf("round %d: generation %d", round, g.Number())
		}
		web, other := listen(t, g, "web", "tcp", tcp), listen(t, g, "unix", "unix", unix)
		ready(t, g)
		if got := len(g.Unclaimed()); got != 300 {
			t.Fatalf("%d sockets closed", got)
		}
		acceptFrom(t, web, other)
		next := begin(t, cfg) // hands over as others do
		web, other = listen(t, next, "web", "", ""), listen(t, next, "unix", "", "")
		ready(t, next)
		g.Close()
		dialAndForget(t, "tcp", tcp)
		dialAndForget(t, "unix", unix)
		acceptFrom(t, web, other)
		next.Close() // nobody serves, the path of the Unix socket stays
		if _, err := os.Lstat(unix); err != nil {
			t.Fatal(err)
		}
	}
	h.Close()
	if _, err := os.Lstat(unix); err == nil {
		t.Fatal("the holder's path stays behind")
	}
}

// The holder is replaced as any owner is.
func TestHolderIsReplaced(t *testing.T) {
	h, tcp, _ := holder(t, 0)
	cfg := h.cfg
	next := begin(t, cfg)
	listen(t, next, "web", "", "")
	listen(t, next, "unix", "", "")
	ready(t, next)
	h.Close()
	service := testConfig(t)
	service.Holder = cfg.Socket
	g := begin(t, service)
	ln := listen(t, g, "web", "tcp", tcp)
	ready(t, g)
	dialAndForget(t, "tcp", tcp)
	acceptFrom(t, ln)
}

func TestNobodyLends(t *testing.T) {
	owner := begin(t, testConfig(t))
	listen(t, owner, "web", "tcp", "127.0.0.1:0")
	cfg := testConfig(t)
	cfg.Holder = owner.cfg.Socket
	start := func() error {
		t.Helper()
		g, err := Start(testContext(t), cfg)
		if err == nil {
			g.Close()
			t.Fatal("sockets came from somewhere")
		}
		return err
	}
	ready(t, owner)
	var refused *RefusedError
	if err := start(); !errors.As(err, &refused) || refused.Code != CodeState || !strings.Contains(err.Error(), "no holder") {
		t.Fatal(err)
	}
	owner.Close()
	if err := start(); !errors.Is(err, ErrNoHolder) {
		t.Fatal(err)
	}
	cfg.Holder = cfg.Socket
	if err := start(); !strings.Contains(err.Error(), "same path") {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(cfg.Socket)); len(entries) > 0 {
		t.Fatalf("left behind: %v", entries)
	}
}

// A program that accepts for itself gets the very socket, of either kind,
// whether new, inherited, or converted ahead. A successor gets it, too.
func TestHeldSockets(t *testing.T) {
	cfg := testConfig(t)
	var last *Generation
	for range 3 {
		g := begin(t, cfg)
		for i := range 10 {
			h, err := g.Hold(fmt.Sprint("web", i), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if h.s.ln != nil || h.Kind != KindListener {
				t.Fatalf("%+v is watched", h.Socket)
			}
		}
		dns, err := g.Hold("dns", "", "")
		if last == nil {
			if !errors.Is(err, ErrNotFound) && err == nil {
				t.Fatal("something was held that nobody has named")
			}
			dns, err = g.Hold("dns", "udp", "127.0.0.1:0")
		}
		if err != nil || dns.Kind != KindPacket {
			t.Fatal(dns, err)
		}
		ready(t, g)
		if last != nil {
			last.Close()
		}
		last = g
	}
	var web *Held
	last.do(func() { web = &Held{g: last, s: last.byName["web0"]} })
	fd, err := web.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "web")
	defer f.Close()
	direct, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	dialAndForget(t, "tcp", direct.Addr().String())
	acceptFrom(t, direct)
	last.Close()
	if _, err := web.Duplicate(); err == nil {
		t.Fatal("a descriptor of what is closed")
	}
}
