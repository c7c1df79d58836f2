package e2e

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// SIGUSR2 has the owner start its own successor, with the same flags.
func TestUpgradeBySignal(t *testing.T) {
	b := newBench(t)
	owner := b.serve("--probation=100ms")
	load := makeLoad(t, b.client, loadSpec{Address: b.address("web")})
	owner.signal(syscall.SIGUSR2)
	st := b.awaitOwner(2)
	owner.wantCode(0)
	load.awaitMore(2)
	// The second generation starts the third, and is no child of ours.
	if err := syscall.Kill(st.PID, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	b.awaitOwner(3)
	load.awaitMore(3)
	load.wantPerfect(3)
	b.wantRun(0, "stopped", "stop")
}

// A successor that SIGUSR2 has started and that cannot serve does no harm.
func TestUpgradeBySignalToBrokenProgram(t *testing.T) {
	b := newBench(t)
	copied := b.path("program")
	data, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(copied, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := b.command("serve", "--listen", b.listener())
	cmd.Path, cmd.Args[0] = copied, copied
	owner := launch(t, b.server, b.dir, cmd)
	b.awaitOwner(1)
	// Renamed over the old one, as an update does it: the old file is in use.
	broken := b.path("broken")
	if err := errors.Join(os.WriteFile(broken, []byte("#!/bin/sh\nexit 9\n"), 0o755), os.Rename(broken, copied)); err != nil {
		t.Fatal(err)
	}
	owner.signal(syscall.SIGUSR2)
	owner.awaitText("ended without taking over")
	b.awaitOwner(1)
	b.wantGeneration(1)
	wantNextSucceeds(b, owner)
}

// A stop closes the listeners, finishes what is under way and leaves no file
// behind.
func TestStop(t *testing.T) {
	signal := func(sig os.Signal) func(*bench, *process) *process {
		return func(_ *bench, owner *process) *process {
			owner.signal(sig)
			return owner
		}
	}
	for _, tt := range []struct {
		name string
		stop func(b *bench, owner *process) *process // what ends then with code 0
	}{
		{"command", func(b *bench, _ *process) *process { return launch(b.t, b.server, b.dir, b.command("stop")) }},
		{"SIGTERM", signal(syscall.SIGTERM)},
		{"SIGINT", signal(syscall.SIGINT)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			owner := b.serve()
			address := b.address("web")
			c, err := b.client.dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * patience))
			send := func(text string) {
				t.Helper()
				if _, err := io.WriteString(c, text); err != nil {
					t.Fatal(err)
				}
			}
			send("POST /echo HTTP/1.1\r\nHost: stop\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbo")
			b.awaitStatus("the request is at work", func(st *handover.Status) bool { return st.Stats.Connections["active"] == 1 })
			stopper := tt.stop(b, owner)
			await(t, "connections are refused", func() bool {
				c, err := b.client.dial("tcp", address)
				if err == nil {
					c.Close()
				}
				return errors.Is(err, syscall.ECONNREFUSED)
			})
			owner.wantAlive()
			send("dy")
			answer, err := io.ReadAll(c)
			if err != nil || !strings.HasSuffix(string(answer), "\r\n\r\nbody") {
				t.Errorf("the request that was under way: answer %q, error %v", answer, err)
			}
			owner.wantCode(0)
			stopper.wantCode(0)
			if files := b.files(); len(files) != 0 {
				t.Errorf("left behind: %v", files)
			}
			b.wantRun(3, "nobody to take over from", "status")
		})
	}
}
