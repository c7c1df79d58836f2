//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/handoverd/handoverd/handover"
)

func readReceipt(t *testing.T, path string) (r handover.Receipt, ok bool) {
	t.Helper()
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return r, false
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatalf("receipt %q: %v", text, err)
	}
	return r, true
}

func TestReceiptIsWritten(t *testing.T) {
	b := newBench(t)
	first := b.start("serve", "--listen", loopback, quick)
	b.awaitOwner(1)
	file := b.path("receipt.json")
	second := b.start("takeover", "--probation=1h", "--receipt", file, quick)
	b.awaitStatus("generation 2 serves", func(st *handover.Status) bool { return st.Generation == 2 })
	await(t, "the receipt is there", func() bool { _, ok := readReceipt(t, file); return ok })
	r, _ := readReceipt(t, file)
	if r.Generation != 2 || r.From == nil || r.From.Generation != 1 || len(r.Sockets) != 1 || r.Sockets[0].Cookie == 0 ||
		r.Steps.Owner.Before(r.Steps.Ready) || !r.Steps.Committed.IsZero() || r.Phase != handover.PhaseProbation {
		t.Errorf("in probation: %+v", r)
	}
	b.wantRun(exitDone, "", "commit")
	first.wantCode(exitDone)
	await(t, "the receipt tells of the drain", func() bool { r, _ := readReceipt(t, file); return !r.Steps.Drained.IsZero() })
	r, _ = readReceipt(t, file)
	if r.Steps.Committed.IsZero() || r.Phase != handover.PhaseOwner || !strings.Contains(string(r.From.Report), "finished") || len(r.Sockets) != 1 {
		t.Errorf("at the end: %+v, report %s", r, r.From.Report)
	}
	if !strings.Contains(second.text(), "taken over") {
		t.Errorf("nothing in the log:\n%s", second.text())
	}
	b.wantRun(exitDone, "", "stop")
	second.wantCode(exitDone)
	if left, _ := filepath.Glob(b.path(".receipt*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReceiptThatCannotBeWritten(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", loopback)
	b.awaitOwner(1)
	for _, path := range []string{"no/such/directory/receipt", "/dev/null", b.dir} {
		p := b.start("takeover", "--receipt", path)
		p.wantCode(exitUsage)
		if !strings.Contains(p.text(), "--receipt") {
			t.Errorf("%s: %s", path, p.text())
		}
	}
	b.awaitOwner(1)
}

func TestUnclaimedPolicies(t *testing.T) {
	b := newBench(t)
	first := b.start("serve", "--listen", "web=tcp://127.0.0.1:0", "--listen", "admin=tcp://127.0.0.1:0", quick)
	b.awaitOwner(1)
	b.wantRun(exitRefused, "is not named by --listen: name it", "check", "--listen", "web=tcp://127.0.0.1:0", "--unclaimed=refuse")
	p := b.start("takeover", "--listen", "web=tcp://127.0.0.1:0", "--unclaimed=refuse", quick)
	p.wantCode(exitRefused)
	if !strings.Contains(p.text(), "admin (tcp 127.0.0.1:") || !strings.Contains(p.text(), "--unclaimed close or keep") {
		t.Error(p.text())
	}
	second := b.start("takeover", "--listen", "web=tcp://127.0.0.1:0", "--unclaimed=keep", "--probation=0", quick)
	b.awaitOwner(2)
	first.wantCode(exitDone)
	b.wantRun(exitDone, "kept unused", "status")
	// The next one has it again.
	third := b.start("takeover", "--probation=0", quick)
	st := b.awaitOwner(3)
	second.wantCode(exitDone)
	if c := dialRaw(t, address(t, st, "admin")); c != nil {
		c.get("/healthz")
	}
	b.wantRun(exitDone, "", "stop")
	third.wantCode(exitDone)
}
