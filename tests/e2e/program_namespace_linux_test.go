package e2e

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/handoverd/handoverd/handover"
)

// unplug deletes the pair of virtual interfaces between the two hosts, as an
// engine does when a container on a bridge ends.
func (b *bench) unplug() {
	b.t.Helper()
	var err error
	e := b.server.do(func() {
		var link netlink.Link
		if link, err = netlink.LinkByName("hd0"); err == nil {
			err = netlink.LinkDel(link)
		}
	})
	if err := errors.Join(e, err); err != nil {
		b.t.Fatal(err)
	}
}

// saysOn runs a command on a host and checks its exit code, and each text
// that it has to say, or with a "!" before it must not.
func (b *bench) saysOn(h *host, code int, args []string, texts ...string) {
	b.t.Helper()
	out, got := b.runOn(h, b.command(args...))
	if got != code {
		b.t.Errorf("%v: exit code %d, want %d:\n%s", args, got, code, out)
	}
	for _, text := range texts {
		unwanted, not := strings.CutPrefix(text, "!")
		if not == strings.Contains(out, unwanted) {
			b.t.Errorf("%v: says %q: %v:\n%s", args, unwanted, not, out)
		}
	}
}

// A listener on an interface that is gone is valid, and silent. All that one
// can ask says so, and names it, but not those that clients still reach.
func TestDeviceGone(t *testing.T) {
	b := newBench(t)
	owner := b.serve("--listen", b.listener(), "--listen", "local=tcp://127.0.0.1:0", "--listen", "path=unix://"+b.path("unix"))
	local := "http://" + b.address("local") + "/healthz"
	b.saysOn(b.server, 0, []string{"status"}, "!Namespace")
	b.saysOn(b.server, 0, []string{"check"}, "!device gone")
	b.wantGeneration(1)
	b.unplug()
	b.saysOn(b.server, 0, []string{"status"}, "device gone: no client reaches web, since")
	b.saysOn(b.server, 0, []string{"check"}, "device gone: no client reaches web, since", "a takeover does not change that")
	st, err := b.status()
	if err != nil || st.Namespace.Verdict != handover.NetnsDeviceGone || strings.Join(st.Namespace.Silent, " ") != "web" {
		t.Errorf("status: %+v, %v", st, err)
	}
	successor := b.succeed(2)
	owner.wantCode(0)
	successor.awaitText("device gone: no client reaches web, since")
	wantAnswer(t, b.server.client(t, false), local, 2, "ok\n")
	b.wantRun(0, "stopped", "stop")
	successor.wantCode(0)
}

// A successor of another namespace is told what will happen, and when it has
// happened, that it has.
func TestForeignNamespaceDies(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	refused := []string{"another network namespace", "silent when", "--network host", "!lost its network device", "!foreign and dead"}
	b.saysOn(b.client, 4, []string{"takeover"}, refused...)
	b.saysOn(b.client, 4, []string{"check"}, append([]string{"foreign: web"}, refused...)...)
	b.saysOn(b.server, 0, []string{"status"}, "!Namespace")

	foreign := launch(t, b.client, b.dir, b.command("takeover", "--foreign-netns=allow", "--probation=100ms"))
	b.awaitOwner(2)
	owner.wantCode(0)
	b.wantGeneration(2)
	b.saysOn(b.client, 0, []string{"status"}, "foreign: the sockets go silent when", "!foreign and dead")
	foreign.awaitText("foreign: the sockets go silent when")
	b.saysOn(b.client, 4, []string{"takeover"}, refused...)
	b.saysOn(b.server, 0, []string{"check"}, "are in the network namespace of this process")

	b.unplug()
	b.saysOn(b.client, 0, []string{"status"}, "foreign and dead: no client reaches web", "start afresh")
	b.saysOn(b.client, 4, []string{"check"}, "foreign and dead: web", "start afresh")
	b.saysOn(b.client, 4, []string{"takeover"}, "another network namespace", "lost its network device", "silent already", "start afresh")
	b.saysOn(b.server, 0, []string{"check"}, "device gone: no client reaches web")
	b.wantRun(0, "stopped", "stop")
	foreign.wantCode(0)
	// Afresh, in the namespace of the client.
	fresh := launch(t, b.client, b.dir, b.serving("serve", "--listen", "web=tcp://:0"))
	b.awaitOwner(1)
	b.saysOn(b.client, 0, []string{"status"}, "device gone: no client reaches web") // its device was the other end
	b.wantRun(0, "stopped", "stop")
	fresh.wantCode(0)
}

// The same with containers on a bridge, whose interface the engine deletes when
// they end. Only who may enter the old namespace can see that: CAP_SYS_ADMIN.
// Without it is only known that it is another one.
func TestForeignNamespaceOfContainerDies(t *testing.T) {
	e := newEngine(t)
	volume := []string{"--volume", e.volume(t) + ":/run/handoverd"}
	root := append([]string{"--user", "0:0", "--cap-add", "SYS_ADMIN"}, volume...)
	blue := e.startPublished(t, "blue", append([]string{"--user", "0:0"}, volume...), "serve", "--listen", "web=tcp://:8080")
	blue.awaitLog("msg=serving ")
	published := "http://" + blue.published() + "/healthz"
	wantAnswer(t, machine.client(t, false), published, 1, "ok\n")
	green := e.start(t, "green", root, "takeover", "--foreign-netns=allow", "--probation=30m")
	green.awaitLog("msg=serving ")
	wantAnswer(t, machine.client(t, false), published, 2, "ok\n")
	green.wantStatus("foreign: the sockets go silent when")
	mustDocker(t, "exec", green.name, "/handoverd", "commit")
	blue.wantCode("0")
	green.wantStatus("foreign and dead: no client reaches web")
	if res, err := machine.client(t, false).Get(published); err == nil {
		res.Body.Close()
		t.Errorf("the port that blue published answers without it: %s", res.Status)
	}
	for _, tt := range []struct {
		options []string
		command string
		want    []string
	}{
		{root, "check", []string{"foreign and dead: web", "start afresh"}},
		{root, "takeover", []string{"another network namespace", "lost its network device", "start afresh"}},
		{append([]string{"--user", "0:0"}, volume...), "takeover", []string{"another network namespace", "--network host"}},
	} {
		third := e.start(t, "third", tt.options, tt.command)
		third.wantCode("4")
		for _, want := range tt.want {
			if text := third.logs(); !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", tt.command, want, text)
			}
		}
		third.remove()
	}
	green.wantRunning()
}

// wantStatus waits until the status of the owner says text.
func (c *container) wantStatus(text string) {
	c.t.Helper()
	awaitEvery(c.t, patience/600, "the status says "+text, func() bool {
		return strings.Contains(mustDocker(c.t, "exec", c.name, "/handoverd", "status"), text)
	})
}
