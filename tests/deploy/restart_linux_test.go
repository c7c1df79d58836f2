package deploy

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// An engine that starts again whatever exits would have the old version take
// over back, and so on. A revision, or parking, is what keeps it from that.
func TestRestartPolicyAlways(t *testing.T) {
	for _, tt := range []struct {
		name        string
		blue, green []string // flags
		look        func(t *testing.T, blue, green *container, load *generator)
	}{
		{"revision", []string{"--revision=1"}, []string{"--revision=2"}, refusedForever},
		{"park", []string{"--after-drain=park"}, []string{"--after-drain=park"}, parkedForever},
		{"both", []string{"--after-drain=park", "--revision=1"}, []string{"--after-drain=park", "--revision=2"}, parkedForever},
		{"neither", nil, nil, pingPong},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			imageTag(t)
			name := uniqueName()
			options := []string{"--network", "host", "--volume", volume(t) + ":/run/handoverd", "--restart", "always"}
			flags := []string{"takeover", "--or-serve", "--wait=1m", "--listen=web=tcp://127.0.0.1:0", "--probation=200ms"}
			blue := start(t, name+"-blue", options, append(flags[:len(flags):len(flags)], tt.blue...)...)
			load := makeLoad(t, blue.listening(), false)
			green := start(t, name+"-green", options, append(flags[:len(flags):len(flags)], tt.green...)...)
			load.awaitMore(2)
			tt.look(t, blue, green, load)
		})
	}
}

// refusedForever: the engine starts blue again and again, each time it is
// refused.
func refusedForever(t *testing.T, blue, green *container, load *generator) {
	until := time.Now().Add(*watching)
	n := scale(6, 3)
	blue.await("the engine has started blue again some times", func() bool { return blue.restarts() >= n })
	for time.Now().Before(until) {
		time.Sleep(time.Second)
	}
	load.awaitMore(2)
	t.Logf("blue was started again %d times", blue.restarts())
	if got := strings.Count(blue.logs(), "revision 1 is lower than the owner's 2"); got < n-1 {
		t.Errorf("blue was told %d times that its revision is lower, want at least %d", got, n-1)
	}
	if green.restarts() != 0 {
		t.Errorf("green was restarted %d times", green.restarts())
	}
	load.wantPerfect(2)
}

// parkedForever: blue does not exit, so there is nothing to start again. If
// green dies, it is green that comes back.
func parkedForever(t *testing.T, blue, green *container, load *generator) {
	until := time.Now().Add(*watching)
	blue.awaitLog("msg=\"parked: ")
	for time.Now().Before(until) {
		time.Sleep(time.Second)
	}
	load.awaitMore(2)
	if state := blue.inspect("{{.State.Status}}"); state != "running" || blue.restarts()+green.restarts() != 0 {
		t.Errorf("blue is %s, the engine has restarted containers %d times; want none", state, blue.restarts()+green.restarts())
	}
	load.wantPerfect(2)
	green.crash()
	green.await("green is first again", func() bool { return strings.Count(green.logs(), `msg="first generation"`) == 1 })
	if blue.restarts() != 0 {
		t.Errorf("blue was restarted %d times", blue.restarts())
	}
	// Parked or not, it ends when it is told to, and then it stays down.
	began := time.Now()
	mustDocker(t, "stop", "--time", "600", blue.name)
	if state := blue.inspect("{{.State.Status}} {{.State.ExitCode}}"); state != "exited 0" {
		t.Errorf("blue is %s after a stop of %v, want exited 0", state, time.Since(began))
	}
}

// pingPong is what the other cases are about. Not even that fails a request.
func pingPong(t *testing.T, _, _ *container, load *generator) {
	const n = 5
	await(t, "blue and green take over from each other", func() bool {
		return load.run.Snapshot().Generations[strconv.Itoa(n)] > 0
	})
	if err := load.stop().Err(); err != nil {
		t.Error(err)
	}
}
