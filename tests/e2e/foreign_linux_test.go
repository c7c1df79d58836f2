package e2e

import (
	"strings"
	"testing"

	"github.com/handoverd/handoverd/handover"
)

// A successor in another network namespace is refused, with what to do about
// it, and the owner serves on.
func TestForeignNetworkNamespaceIsRefused(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), Workers: 8})
	for _, args := range [][]string{{"takeover"}, {"takeover", "--or-serve"}, {"check"}} {
		output, code := b.runOn(b.client, b.command(args...))
		if code != 4 {
			t.Errorf("%v: exit code %d, want 4", args, code)
		}
		for _, want := range []string{"another network namespace", "network host", "network container:", "--foreign-netns"} {
			if !strings.Contains(output, want) {
				t.Errorf("%v: no %q in\n%s", args, want, output)
			}
		}
		b.awaitOwner(1)
	}
	owner.wantAlive()
	load.awaitMore(1)
	load.wantPerfect(1)
	wantNextSucceeds(b, owner)
}

// If it is allowed it works, as long as the namespace lives, and a listener
// that it adds is in the namespace of the others.
func TestForeignNetworkNamespaceIsAllowed(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web"), Workers: 8})
	output, code := b.runOn(b.client, b.command("check", "--foreign-netns=allow"))
	if code != 0 || !strings.Contains(output, "go silent") {
		t.Errorf("check: exit code %d, output\n%s", code, output)
	}
	successor := launch(t, b.client, b.dir, b.command("takeover", "--foreign-netns=allow", "--probation=100ms",
		"--listen", b.listener(), "--listen", "more=tcp://"+b.server.addr+":0"))
	st := b.awaitOwner(2)
	owner.wantCode(0)
	load.awaitMore(2)
	wantAnswer(t, b.plain, "http://"+b.address("more")+"/healthz", 2, "ok\n")
	for _, s := range st.Sockets {
		if s.Netns != st.Sockets[0].Netns {
			t.Errorf("%s is in network namespace %d, %s in %d", s.Name, s.Netns, st.Sockets[0].Name, st.Sockets[0].Netns)
		}
	}
	// Back home.
	home := b.succeed(3)
	successor.wantCode(0)
	load.awaitMore(3)
	load.wantPerfect(3)
	home.wantAlive()
}

// A control socket and Unix listeners by path do not care.
func TestForeignNetworkNamespaceOfUnixSocket(t *testing.T) {
	b := newBench(t)
	path := b.path("web")
	owner := b.serve("--listen", "web=unix://"+path)
	load := makeLoad(t, nil, loadSpec{Network: "unix", Address: path, Workers: 8})
	successor := launch(t, b.client, b.dir, b.command("takeover", "--probation=100ms"))
	b.awaitStatus("the successor owns the sockets", func(st *handover.Status) bool {
		return st.Generation == 2 && st.Phase == handover.PhaseOwner
	})
	owner.wantCode(0)
	load.awaitMore(2)
	load.wantPerfect(2)
	successor.wantAlive()
}
