package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/handoverd/handoverd/handover"
)

// Another user gets no answer from the owner, neither through the permissions
// of the socket nor past them, and nothing happens to the owner.
func TestOtherUserIsRefused(t *testing.T) {
	if !realRoot() {
		lacking(t, "only root can run processes as other users")
	}
	for _, tt := range []struct {
		name string
		uid  uint32
		mode os.FileMode // of the socket
		says string
	}{
		{"by the permissions of the socket", 12345, 0o600, "permission denied"},
		{"by the owner", 12345, 0o666, "uid 12345 may not talk to this process"},
		{"nobody, by the owner", 65534, 0o666, "uid 65534 may not talk to this process"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			owner := b.serve()
			before := b.awaitOwner(1)
			for path, mode := range map[string]os.FileMode{b.dir: 0o755, b.socket: tt.mode} {
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			for _, args := range [][]string{
				{"takeover"}, {"takeover", "--or-serve"}, {"status"}, {"stop"}, {"commit"}, {"rollback"}, {"check"},
			} {
				cmd := b.command(args...)
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tt.uid, Gid: tt.uid}}
				output, code := b.runOn(b.server, cmd)
				if code == 0 || !strings.Contains(output, tt.says) {
					t.Errorf("%v: exit code %d and output %q, want %q", args, code, output, tt.says)
				}
				if refusedByOwner := tt.mode == 0o666; code != 4 && (refusedByOwner || args[0] == "takeover" && len(args) == 1 || args[0] == "check") {
					t.Errorf("%v: exit code %d, want 4", args, code)
				}
			}
			owner.wantAlive()
			b.wantGeneration(1)
			after := b.awaitOwner(1)
			if after.LastFailure != "" || after.Phase != handover.PhaseOwner || !after.Owner.Equal(before.Owner) {
				t.Errorf("the owner before %+v, after %+v", before, after)
			}
			wantNextSucceeds(b, owner)
		})
	}
}

// The other direction: root does not let itself be served by a stranger's
// socket unless told to, and a user that the owner allows takes over.
func TestUserThatTheOwnerAllows(t *testing.T) {
	if !realRoot() {
		lacking(t, "only root can run processes as other users")
	}
	b := newBench(t)
	owner := b.serve("--allow-uid=12345")
	for path, mode := range map[string]os.FileMode{b.dir: 0o755, b.socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	as := func(args ...string) *process {
		cmd := b.command(args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
		return launch(t, b.server, b.dir, cmd)
	}
	as("status").wantCode(0)
	successor := as("takeover", "--probation=100ms")
	owner.wantCode(0)
	successor.awaitText("serving")
	b.wantRun(4, "belongs to another user", "status")
	b.wantRun(4, "belongs to another user", "takeover")
	b.wantRun(0, "owner", "status", "--allow-uid=12345")
	successor.wantAlive()
	b.wantRun(0, "stopped", "stop", "--allow-uid=12345")
	successor.wantCode(0)
}
