package handover

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keptNames are the sockets that a generation keeps for others.
func keptNames(g *Generation) (names []string) {
	var st Status
	g.do(func() { st = g.status() })
	for _, s := range st.Sockets {
		if s.Kept {
			names = append(names, s.Name)
		}
	}
	return names
}

func TestUnclaimedIsKept(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation = -1
	a := begin(t, cfg)
	address := listen(t, a, "web", "tcp", "127.0.0.1:0").Addr().String()
	listen(t, a, "admin", "unix", filepath.Join(filepath.Dir(cfg.Socket), "admin"))
	listenPacket(t, a, "dns", "udp", "127.0.0.1:0")
	ready(t, a)

	cfg.Unclaimed = KeepUnclaimed
	b := begin(t, cfg)
	listen(t, b, "admin", "", "")
	ready(t, b)
	a.Close()
	if got := strings.Join(keptNames(b), " "); got != "dns web" {
		t.Fatalf("kept %q", got)
	}
	if got := b.Unclaimed(); len(got) > 0 {
		t.Fatalf("closed %v", got)
	}
	// Nobody accepts, and nobody is refused.
	waiting, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	// A later version has a use for one of them, and keeps the other.
	c := begin(t, cfg)
	ln := listen(t, c, "web", "tcp", address)
	ready(t, c)
	b.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got := strings.Join(keptNames(c), " "); got != "admin dns" {
		t.Fatalf("kept %q", got)
	}
	// The same generation may ask later.
	listenPacket(t, c, "dns", "", "")
	if got := strings.Join(keptNames(c), " "); got != "admin" {
		t.Fatalf("kept %q", got)
	}
	// The end of the set is the end of what was kept.
	c.Close()
	if _, err := os.Lstat(filepath.Join(filepath.Dir(cfg.Socket), "admin")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// A socket that cannot be used cannot be claimed, but kept, and handed on.
func TestUnusableSocketIsKept(t *testing.T) {
	cfg := testConfig(t)
	cfg.Probation, cfg.Unclaimed = -1, KeepUnclaimed
	a := begin(t, cfg)
	for _, name := range strings.Fields("a b c d e f g h") { // enough to be converted ahead
		listen(t, a, name, "tcp", "127.0.0.1:0")
	}
	ready(t, a)
	var fd int
	a.do(func() { fd = a.byName["a"].fd })
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	last := a
	for range 2 {
		g := begin(t, cfg)
		if _, err := g.Listen("a", "", ""); err == nil || !strings.Contains(err.Error(), "blocking mode") {
			t.Fatal(err)
		}
		ready(t, g)
		last.Close()
		last = g
	}
	if got := keptNames(last); len(got) != 8 {
		t.Fatalf("kept %q", got)
	}
}

func TestUnclaimedIsRefused(t *testing.T) {
	cfg := testConfig(t)
	a := begin(t, cfg)
	listen(t, a, "web", "tcp", "127.0.0.1:0")
	listen(t, a, "admin", "tcp", "127.0.0.1:0")
	ready(t, a)
	cfg.Unclaimed = RefuseUnclaimed
	b := begin(t, cfg)
	listen(t, b, "web", "", "")
	err := b.Ready(testContext(t))
	if !errors.Is(err, ErrUnclaimed) || !strings.Contains(err.Error(), "admin (tcp 127.0.0.1:") {
		t.Fatal(err)
	}
	if p := a.Phase(); p != PhaseHanding {
		t.Fatalf("the owner is %v", p)
	}
	listen(t, b, "admin", "", "")
	ready(t, b)
}

// Text that JSON cannot carry would come out as another path at the successor,
// which refuses that: the takeover would be impossible for ever.
func TestAddressThatCannotTravel(t *testing.T) {
	cfg := testConfig(t)
	g := begin(t, cfg)
	path := filepath.Join(filepath.Dir(cfg.Socket), "caf\xe9")
	if _, err := g.Listen("app", "unix", path); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Adopt("app", f); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Fatal(err)
	}
	ready(t, g)
}

func TestCloseWhileAnOfferHangs(t *testing.T) {
	cfg := testConfig(t)
	cfg.StepTimeout = 50 * time.Millisecond
	a := begin(t, cfg)
	listen(t, a, "app", "tcp", "127.0.0.1:0")
	ready(t, a)
	begun := make(chan struct{})
	a.OfferState("note", func(ctx context.Context) ([]byte, error) {
		close(begun)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	cfg.StepTimeout = 20 * time.Second
	failed := make(chan error, 1)
	go func() {
		cfg.Mode = TakeOverOnly
		g, err := Start(testContext(t), cfg)
		if err == nil {
			g.Close()
		}
		failed <- err
	}()
	<-begun
	a.Close()
	if err := <-failed; err == nil {
		t.Fatal("taken over from one that was closed")
	}
	if _, err := os.Lstat(cfg.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the control path stayed behind:", err)
	}
}

func listenPacket(t testing.TB, g *Generation, name, network, address string) {
	t.Helper()
	if _, err := g.ListenPacket(name, network, address); err != nil {
		t.Fatal(err)
	}
}
