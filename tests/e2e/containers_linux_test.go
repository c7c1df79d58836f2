package e2e

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Blue and green are containers of one image, with a volume for the control
// socket that both mount.
func TestContainers(t *testing.T) {
	e := newEngine(t)
	for _, tt := range []struct {
		name  string
		short bool // part of a short run too
		test  func(*testing.T, *engine)
	}{
		{"host network", true, func(t *testing.T, e *engine) { takeoversOfContainers(t, e, "65532:65532") }},
		{"host network as root", false, func(t *testing.T, e *engine) { takeoversOfContainers(t, e, "0:0") }},
		{"network of a third container", false, takeoversInSharedNetwork},
		{"bridge network is refused", true, refusedOnBridge},
		{"green is killed in probation", true, greenKilledInProbation},
		{"blue is started again", false, blueStartedAgain},
		{"other users are refused", false, refusedOtherUser},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if testing.Short() && !tt.short {
				t.Skip("not in a short run")
			}
			tt.test(t, e)
		})
	}
}

// hostNetwork are the options of a container that shares the machine's
// network.
func hostNetwork(volume string, more ...string) []string {
	return append([]string{"--network", "host", "--volume", volume + ":/run/handoverd"}, more...)
}

// machine is where the engine's containers with host networking are.
var machine *host

const (
	loopback = "web=tcp://127.0.0.1:0"
	// think leaves the engine time to work.
	think = 20 * time.Millisecond
)

var successorWasFirst = regexp.MustCompile(`(?m) msg="successor connected" .* pid=1$`)

// takeOverInTurns has n containers take over one after the other, each time
// removing the one before.
func takeOverInTurns(t *testing.T, e *engine, load *generator, blue *container, n int, options []string) *container {
	t.Helper()
	for generation := uint64(2); generation <= uint64(n)+1; generation++ {
		colour := []string{"blue", "green"}[(generation+1)%2] + strconv.FormatUint(generation, 10)
		green := e.start(t, colour, options, "takeover", "--probation=200ms", "--drain-timeout=10m")
		load.awaitMore(generation)
		blue.wantCode("0")
		// Each is number 1 in its own container; nothing may depend on that.
		if !successorWasFirst.MatchString(blue.logs()) {
			t.Errorf("the successor was not process 1 in its container:\n%s", blue.logs())
		}
		blue.remove()
		load.awaitMore(generation)
		green.wantRunning()
		blue = green
	}
	return blue
}

func takeoversOfContainers(t *testing.T, e *engine, user string) {
	options := hostNetwork(e.volume(t), "--user", user)
	n := scale(4, 2)
	blue := e.start(t, "blue", options, "serve", "--listen", loopback, "--drain-timeout=10m")
	load := makeLoad(t, machine, loadSpec{Address: blue.address(), PostRatio: .5, Think: think, Workers: 16})
	keepAlive := makeLoad(t, machine, loadSpec{Address: blue.address(), KeepAlive: true, Think: think, Workers: 32})
	last := takeOverInTurns(t, e, load, blue, n, options)
	keepAlive.awaitMore(uint64(n) + 1)
	load.wantPerfect(n + 1)
	keepAlive.wantPerfect(1)
	mustDocker(t, "stop", "--time", "30", last.name)
	last.wantCode("0")
	status := e.start(t, "status", options, "status")
	status.wantCode("3") // nobody is left, and nothing in the way of a fresh start
	again := e.start(t, "again", options, "serve", "--listen", loopback)
	wantAnswer(t, machine.client(t, false), "http://"+again.address()+"/healthz", 1, "ok\n")
}

// A third container lends its network, with a published port: it stays when
// blue is removed.
func takeoversInSharedNetwork(t *testing.T, e *engine) {
	network := e.startPublished(t, "network", nil, "serve", "--listen", "idle=tcp://127.0.0.1:0")
	options := []string{"--network", "container:" + network.name, "--volume", e.volume(t) + ":/run/handoverd"}
	blue := e.start(t, "blue", options, "serve", "--listen", "web=tcp://:8080", "--drain-timeout=10m")
	blue.awaitLog("msg=serving ")
	n := scale(3, 2)
	load := makeLoad(t, machine, loadSpec{Address: network.published(), Think: think, Workers: 16})
	takeOverInTurns(t, e, load, blue, n, options)
	load.wantPerfect(n + 1)
}

// With bridge networking each container has a network of its own, in which a
// listener of another one goes silent when that is removed.
func refusedOnBridge(t *testing.T, e *engine) {
	options := []string{"--volume", e.volume(t) + ":/run/handoverd"}
	blue := e.startPublished(t, "blue", options, "serve", "--listen", "web=tcp://:8080")
	blue.awaitLog("msg=serving ")
	load := makeLoad(t, machine, loadSpec{Address: blue.published(), Think: think, Workers: 16})
	for _, command := range []string{"takeover", "check"} {
		green := e.start(t, command, options, command)
		green.wantCode("4")
		for _, want := range []string{"another network namespace", "--network host", "--network container:NAME"} {
			if text := green.logs(); !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", command, want, text)
			}
		}
		load.awaitMore(1)
	}
	blue.wantRunning()
	load.wantPerfect(1)
}

func greenKilledInProbation(t *testing.T, e *engine) {
	options := hostNetwork(e.volume(t))
	blue := e.start(t, "blue", options, "serve", "--listen", loopback, "--drain-timeout=10m")
	load := makeLoad(t, machine, loadSpec{Address: blue.address(), Workers: 16})
	green := e.start(t, "green", options, "takeover", "--probation=30m")
	load.awaitAnswers("2", 100)
	mustDocker(t, "kill", green.name)
	green.wantCode("137")
	blue.awaitLog("this generation serves on")
	load.awaitMore(1)
	blue.wantRunning()
	next := e.start(t, "next", options, "takeover", "--probation=200ms")
	load.awaitMore(3)
	blue.wantCode("0")
	next.wantRunning()
	res := load.stop()
	cut := res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	if res.Refused != 0 || res.Failed() != cut || cut > int64(res.Workers) || res.ClientFault != 0 {
		t.Errorf("%d refused, %d cut off, %d failed in all; want none refused, and at most %d cut off by the death", res.Refused, cut, res.Failed(), res.Workers)
	}
}

// An engine that starts the old container again does not undo the update.
func blueStartedAgain(t *testing.T, e *engine) {
	options := hostNetwork(e.volume(t))
	flags := []string{"takeover", "--or-serve", "--listen", loopback, "--probation=200ms"}
	blue := e.start(t, "blue", options, append(flags, "--revision=1")...)
	url := "http://" + blue.address() + "/healthz"
	green := e.start(t, "green", options, append(flags, "--revision=2")...)
	blue.wantCode("0")
	mustDocker(t, "start", blue.name)
	blue.wantCode("4")
	if text := blue.logs(); !strings.Contains(text, "revision 1 is lower than the owner's 2") {
		t.Errorf("no reason in\n%s", text)
	}
	wantAnswer(t, machine.client(t, false), url, 2, "ok\n")
	green.wantRunning()
}

func refusedOtherUser(t *testing.T, e *engine) {
	options := hostNetwork(e.volume(t))
	blue := e.start(t, "blue", options, "serve", "--listen", loopback)
	url := "http://" + blue.address() + "/healthz"
	stranger := e.start(t, "stranger", append(options, "--user", "12345:12345"), "takeover")
	stranger.wantCode("4")
	if text := stranger.logs(); !strings.Contains(text, "permission denied") {
		t.Errorf("no reason in\n%s", text)
	}
	wantAnswer(t, machine.client(t, false), url, 1, "ok\n")
	blue.wantRunning()
}
