package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// testConfig is a configuration with short times and a fresh control path.
func testConfig(t testing.TB) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "hd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := Config{Socket: filepath.Join(dir, "app.sock"), Probation: -1}
	if testing.Verbose() && os.Getenv("HANDOVER_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return cfg
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// begin is Start for tests, with Close at the end.
func begin(t testing.TB, cfg Config) *Generation {
	t.Helper()
	g, err := Start(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func ready(t testing.TB, g *Generation) {
	t.Helper()
	if err := g.Ready(testContext(t)); err != nil {
		t.Fatalf("generation %d: ready: %v", g.Number(), err)
	}
}

func listen(t testing.TB, g *Generation, name, network, address string) net.Listener {
	t.Helper()
	ln, err := g.Listen(name, network, address)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// greeter answers each connection with its generation and closes it. It ends
// when the generation is closed.
type greeter struct{ wg sync.WaitGroup }

func (s *greeter) serve(t testing.TB, g *Generation, ln net.Listener) {
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("generation %d: accept: %v", g.Number(), err)
				}
				return
			}
			fmt.Fprint(c, g.Number())
			c.Close()
		}
	})
}

func (s *greeter) wait() { s.wg.Wait() }

// greeting connects and tells who answered.
func greeting(t testing.TB, addr net.Addr) string {
	t.Helper()
	c, err := net.DialTimeout(addr.Network(), addr.String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func await(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: nothing within 20 s", what)
	}
}

func TestChainOfTen(t *testing.T) {
	for _, network := range []string{"tcp", "tcp4", "tcp6", "unix", "unixpacket", "abstract"} {
		t.Run(network, func(t *testing.T) {
			cfg := testConfig(t)
			network, address := network, "127.0.0.1:0"
			switch network {
			case "tcp6":
				address = "[::1]:0"
			case "unix", "unixpacket":
				address = filepath.Join(filepath.Dir(cfg.Socket), "app.listen")
			case "abstract":
				network, address = "unix", fmt.Sprintf("@handover-test-%d", os.Getpid())
			}
			var s greeter
			last := begin(t, cfg)
			ln := listen(t, last, "app", network, address)
			s.serve(t, last, ln)
			ready(t, last)
			addr := ln.Addr()
			for i := 2; i <= 10; i++ {
				next := begin(t, cfg)
				if next.Number() != uint64(i) {
					t.Fatalf("generation %d, want %d", next.Number(), i)
				}
				ln := listen(t, next, "app", network, address)
				if ln.Addr().String() != addr.String() {
					t.Fatalf("inherited %v, want %v", ln.Addr(), addr)
				}
				s.serve(t, next, ln)
				if got := greeting(t, addr); got != fmt.Sprint(i-1) {
					t.Fatalf("before ready generation %s answered, want %d", got, i-1)
				}
				ready(t, next)
				await(t, "superseded", last.Superseded())
				if err := last.Cause(); err != ErrSuperseded {
					t.Fatalf("cause %v", err)
				}
				if got := greeting(t, addr); got != fmt.Sprint(i) {
					t.Fatalf("generation %s answered, want %d", got, i)
				}
				if err := last.Close(); err != nil {
					t.Fatal(err)
				}
				last = next
			}
			if err := last.Close(); err != nil {
				t.Fatal(err)
			}
			left, err := os.ReadDir(filepath.Dir(cfg.Socket))
			if err != nil || len(left) != 0 {
				t.Fatalf("left behind: %v %v", left, err)
			}
		})
	}
}
