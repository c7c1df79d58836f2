package deploy

import (
	"fmt"
	"testing"

	"github.com/handoverd/handoverd/internal/leak"
)

// Another program serves in each container, below handoverd as process 1. Here
// it is one that inherits its socket by LISTEN_FDS and drains well: handoverd.
func TestProgramsInContainersAreReplaced(t *testing.T) {
	leak.Check(t)
	imageTag(t)
	name := uniqueName()
	options := []string{
		"--network", "host", "--volume", volume(t) + ":/run/handoverd", "--read-only", "--cap-drop", "ALL",
		"--tmpfs", "/run/program:mode=0700,uid=65532",
	}
	args := []string{
		"takeover", "--or-serve", "--wait=1m", "--listen=web=tcp://127.0.0.1:0", "--probation=200ms", "--ready=notify",
		"--", "/handoverd", "serve", "--socket=/run/program/control.sock",
	}
	last := start(t, name+"-1", options, args...)
	address := last.listening()
	fresh, kept := makeLoad(t, address, false), makeLoad(t, address, true)
	for n := 2; n <= scale(4, 2); n++ {
		next := start(t, fmt.Sprintf("%s-%d", name, n), options, args...)
		if code := mustDocker(t, "wait", last.name); code != "0" {
			t.Fatalf("%s ended with %s", last.name, code)
		}
		mustDocker(t, "rm", last.name)
		fresh.awaitMore(1) // the program's own number, which is always the first
		last = next
	}
	fresh.wantPerfect(1)
	kept.wantPerfect(1)
}
