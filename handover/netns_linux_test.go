package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

// elsewhere runs f on a thread in a network namespace of its own, as a
// successor in another container would run.
func elsewhere(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread does not end, and /proc/self is its own: it
			// stays at home, occupied while another one is found.
			defer runtime.UnlockOSThread()
			found := make(chan struct{})
			go func() { run(); close(found) }()
			<-found
			return
		}
		// Locked for good: the thread ends with the goroutine.
		h, err := netns.New()
		if err != nil {
			done <- err
			return
		}
		defer h.Close()
		f()
		done <- nil
	}
	go run()
	if err := <-done; err != nil {
		lack(t, "needs a network namespace of its own: %v", err)
	}
}

func TestForeignNetnsIsRefused(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, g *Generation){
		"tcp": func(t *testing.T, g *Generation) { listen(t, g, "app", "tcp", "127.0.0.1:0") },
		"udp": func(t *testing.T, g *Generation) {
			if _, err := g.ListenPacket("app", "udp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
		},
		"abstract": func(t *testing.T, g *Generation) {
			listen(t, g, "app", "unix", fmt.Sprintf("@handover-netns-%d", os.Getpid()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			a := begin(t, cfg)
			open(t, a)
			ready(t, a)
			var err error
			elsewhere(t, func() {
				var b *Generation
				if b, err = Start(testContext(t), cfg); err == nil {
					b.Close()
				}
			})
			if !errors.Is(err, ErrForeignNetns) {
				t.Fatalf("%v, want %v", err, ErrForeignNetns)
			}
			for _, remedy := range []string{"--network host", "--network container:", "holder", "--foreign-netns=allow", `(app)`} {
				if !strings.Contains(err.Error(), remedy) {
					t.Errorf("%v: says nothing of %s", err, remedy)
				}
			}
			awaitPhase(t, a, PhaseOwner)
			b := begin(t, cfg) // from here it works
			ready(t, b)
		})
	}
}

// The same with a successor that is a process of its own.
func TestForeignNetnsOfAnotherProcess(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	_, _, addr := owner(t, cfg)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
	}
	c := startChildAs(t, cfg.Socket, attr)
	c.do("mode takeover")
	if got := c.ask("start"); !strings.Contains(got, ErrForeignNetns.Error()) || !strings.Contains(got, "--network host") {
		t.Errorf("a successor in another network namespace: %s", got)
	}
	answers(t, addr, "1")
}

// Sockets with a path in the file system are the same everywhere.
func TestUnixPathsCrossNetworkNamespaces(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	path := filepath.Join(filepath.Dir(cfg.Socket), "app")
	a := begin(t, cfg)
	listen(t, a, "app", "unix", path)
	ready(t, a)
	var ln net.Listener
	var b *Generation
	elsewhere(t, func() {
		var err error
		if b, err = Start(testContext(t), cfg); err != nil {
			t.Error(err)
			return
		}
		if ln, err = b.Listen("app", "unix", path); err != nil {
			t.Error(err)
			return
		}
		if err := b.Ready(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	a.Close()
	talk(t, ln)
	b.Close()
}

// What a successor adds is bound where the first generation was, and so is
// what the one after it adds, wherever each of them runs.
func TestAddedListenersAreBoundInTheFirstNamespace(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	cfg.ForeignNetns = true
	home, err := ownNetnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	if home == 0 {
		lack(t, "the kernel has no SO_NETNS_COOKIE")
	}
	last := begin(t, cfg)
	lns := map[string]net.Listener{"0": listen(t, last, "0", "tcp", "127.0.0.1:0")}
	ready(t, last)
	for i := 1; i <= 3; i++ {
		place := func(f func()) { elsewhere(t, f) }
		if i == 2 {
			place = func(f func()) { f() } // back at home
		}
		var next *Generation
		now := map[string]net.Listener{}
		place(func() {
			away, err := ownNetnsCookie()
			if err != nil || (away == home) != (i == 2) {
				t.Errorf("namespace %d, home is %d: %v", away, home, err)
			}
			if next, err = Start(testContext(t), cfg); err != nil {
				t.Error(err)
				return
			}
			for name := range lns {
				if now[name], err = next.Listen(name, "", ""); err != nil {
					t.Error(err)
				}
			}
			name := fmt.Sprint(i)
			if now[name], err = next.Listen(name, "tcp", "127.0.0.1:0"); err != nil {
				t.Error(err)
			}
			if _, err = next.ListenPacket("p"+name, "udp", "127.0.0.1:0"); err != nil {
				t.Error(err)
			}
			if after, err := ownNetnsCookie(); err != nil || after != away {
				t.Errorf("Listen moved its caller from namespace %d to %d: %v", away, after, err)
			}
			if err := next.Ready(testContext(t)); err != nil {
				t.Error(err)
			}
		})
		if t.Failed() {
			if next != nil {
				next.Close()
			}
			return
		}
		await(t, "superseded", last.Superseded())
		last.Close()
		next.do(func() {
			for _, s := range next.sockets {
				if s.Netns != home {
					t.Errorf("generation %d: %s is in namespace %d, home is %d", next.Number(), s.Name, s.Netns, home)
				}
				if info, err := inspect(s.fd); err != nil || info.netns != home {
					t.Errorf("generation %d: %s is in namespace %d, home is %d (%v)", next.Number(), s.Name, info.netns, home, err)
				}
			}
		})
		for _, ln := range now {
			talk(t, ln)
		}
		last, lns = next, now
	}
	last.Close()
}

// A Listen in the first namespace while the generation is closed: the handle
// of the namespace must not be closed under it.
func TestListenInTheFirstNamespaceRacesClose(t *testing.T) {
	leak.Check(t)
	n := 30
	if testing.Short() {
		n = 5
	}
	for range n {
		cfg := testConfig(t)
		cfg.ForeignNetns, cfg.StepTimeout = true, 5*time.Second
		a := begin(t, cfg)
		ready(t, a)
		var b *Generation
		var err error
		elsewhere(t, func() { b, err = Start(testContext(t), cfg) })
		if err != nil {
			t.Fatal(err)
		}
		started, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i++ {
				if _, err := b.Listen(fmt.Sprint(i), "tcp", "127.0.0.1:0"); err != nil {
					return
				}
				if i == 3 {
					close(started)
				}
			}
		}()
		select {
		case <-started:
		case <-done:
			t.Fatal("Listen failed")
		}
		b.Close()
		<-done
		a.Close()
	}
}
