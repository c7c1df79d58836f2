//go:build linux

package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

func TestUsageErrors(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		says string
		args []string
	}{
		{"unknown flag", []string{"serve", "--nope"}},
		{"no arguments", []string{"serve", "x"}},
		{"unknown network", []string{"serve", "--listen", "http://:1"}},
		{"give the others one", []string{"serve", "--listen", "tcp://:1", "--listen", "tcp://:2"}},
		{"is no duration", []string{"serve", "--drain-timeout", "soon"}},
		{"is negative", []string{"serve", "--probation=-1s"}},
		{"not one of", []string{"serve", "--log-format", "xml"}},
		{"too short", []string{"serve", "--alive-timeout=0"}},
		{"is no uid", []string{"status", "--allow-uid", "me"}},
		{"exclude each other", []string{"serve", "--root", "/", "--proxy", "http://x"}},
		{"belong together", []string{"serve", "--tls-cert", "x"}},
		{"serves no packets", []string{"serve", "--root", "/", "--listen", "udp://:1"}},
		{"--proxy", []string{"serve", "--proxy", "ftp://x"}},
		{"no path given", []string{"status", "--socket="}},
		{"unknown flag", []string{"status", "--listen", "tcp://:1"}},
	} {
		b.wantRun(exitUsage, c.says, c.args...)
	}
	for _, c := range []struct {
		says string
		args []string
	}{
		{"did you mean status?", []string{"statsu"}},
		{"no command given", nil},
		{"unknown command", []string{"xyzzy"}},
	} {
		stdout, stderr, code := b.runCommand(b.program(b.command("x").Path, c.args...))
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, c.says) {
			t.Errorf("%v: exit code %d, %q, %q", c.args, code, stdout, stderr)
		}
	}
	if stdout, _, code := b.runCommand(b.program(b.command("x").Path, "help")); code != exitDone || !strings.Contains(stdout, "handoverd takeover") {
		t.Errorf("help: exit code %d, %q", code, stdout)
	}
	b.wantRun(exitDone, "HANDOVERD_DRAIN_TIMEOUT", "serve", "--help")
}

// A command that is named is made alone, and must be the same as among all.
func TestEachCommandGoesByItsName(t *testing.T) {
	all := commands([]string{"handoverd"})
	if len(all) < 10 {
		t.Errorf("%d commands", len(all))
	}
	for _, c := range all {
		one := commands([]string{"handoverd", c.Name()})
		if len(one) != 1 || one[0].Name() != c.Name() || one[0].Short != c.Short {
			t.Errorf("%s: %d commands instead", c.Name(), len(one))
		}
	}
}

func TestNobodyThere(t *testing.T) {
	b := newBench(t)
	for _, command := range []string{"takeover", "status", "stop", "commit", "rollback"} {
		b.wantRun(exitNobody, "nobody to take over from", command)
	}
	if out := b.wantRun(exitNobody, "FAIL", "check"); !strings.Contains(out, "nobody") {
		t.Error(out)
	}
}

func TestOwnedAndRevision(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", loopback, "--revision", "7", quick)
	b.awaitOwner(1)
	b.wantRun(exitRefused, "take over from it", "serve", "--listen", loopback)
	b.wantRun(exitRefused, "revision", "takeover", "--revision", "6")
	b.wantRun(exitRefused, "FAIL  revision", "check")
	b.wantRun(exitDone, "ok    revision", "check", "--revision", "7")
	b.wantRun(exitDone, "warn  revision", "check", "--force")
	b.start("takeover", "--force", "--probation=0", quick)
	b.awaitOwner(2)
}

func TestCheckTellsWhatWouldHappen(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", "a="+loopback, "--listen", "u=udp://127.0.0.1:0", quick)
	b.awaitOwner(1)
	out := b.wantRun(exitDone, "", "check", "--json", "--listen", "a=tcp://:0", "--listen", "n=tcp://:0")
	var got struct {
		Accepted bool
		Checks   []finding
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || !got.Accepted {
		t.Fatalf("%v: %s", err, out)
	}
	verdicts := map[string][]verdict{}
	for _, f := range got.Checks {
		verdicts[f.Check] = append(verdicts[f.Check], f.Verdict)
	}
	for _, check := range []string{"directory", "owner", "permission", "protocol", "phase", "revision", "namespace", "descriptors"} {
		if v := verdicts[check]; len(v) != 1 || v[0] != verdictOK {
			t.Errorf("%s: %v", check, v)
		}
	}
	if v := verdicts["names"]; len(v) != 3 || v[0] != verdictOK || v[1] != verdictWarn || v[2] != verdictWarn {
		t.Errorf("names: %v", v)
	}
	b.awaitOwner(1) // nothing has happened

	second := b.start("takeover", "--probation=5m", quick)
	b.awaitPhase(2, handover.PhaseProbation)
	b.wantRun(exitRefused, "on probation", "check")
	b.wantRun(exitDone, "", "rollback")
	second.wantCode(exitRolledBack)
}

func TestEnvironment(t *testing.T) {
	b := newBench(t)
	b.env = []string{
		"HANDOVERD_LISTEN=a=" + loopback + ", b=" + loopback + " " + loopback,
		"HANDOVERD_REVISION=5", "HANDOVERD_SOCKET=" + b.socket, "HANDOVERD_DRAIN_TIMEOUT=10s", "HANDOVERD_PROXY=",
	}
	b.startCommand(b.program(b.command("x").Path, "serve"))
	st := b.awaitOwner(1)
	for _, name := range []string{"a", "b", "default"} {
		address(t, st, name)
	}
	if st.Revision != 5 {
		t.Fatalf("revision %d", st.Revision)
	}
	// The flag wins.
	b.wantRun(exitRefused, "revision", "takeover", "--revision=4")
	b.env = append(b.env, "HANDOVERD_JSON=true")
	b.wantRun(exitDone, `"generation"`, "status")

	for _, c := range [][2]string{
		{"HANDOVERD_DRAIN_TIMEOUT", "soon"}, {"HANDOVERD_LISTEN", "a=tcp://:1,http://:2"},
		{"HANDOVERD_REVISION", "-1"}, {"HANDOVERD_FORCE", "perhaps"}, {"HANDOVERD_ALLOW_UID", "0 me"},
	} {
		b.env = []string{c[0] + "=" + c[1]}
		b.wantRun(exitUsage, "environment variable "+c[0], "serve")
	}
	// A flag on the command line silences the variable that it excludes.
	b.env = []string{"HANDOVERD_PROXY=http://127.0.0.1:1"}
	b.wantRun(exitRefused, "owned", "serve", "--root", b.dir)
}

func TestWatchShowsAGeneration(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", loopback, quick)
	b.awaitOwner(1)
	p := b.start("status", "--watch", "--json")
	await(t, "two lines", func() bool { return strings.Count(p.text(), "\n") >= 2 })
	p.signal(os.Interrupt)
	p.wantCode(exitDone)
	dec := json.NewDecoder(strings.NewReader(p.text()))
	for range 2 {
		var st handover.Status
		if err := dec.Decode(&st); err != nil || st.Generation != 1 {
			t.Fatalf("%v, %+v", err, st)
		}
	}
}

func TestStatusTable(t *testing.T) {
	now := time.Now()
	queue, backlog := 2, 4096
	st := &handover.Status{
		Generation: 3, Phase: handover.PhaseProbation, Probation: 1500 * time.Millisecond,
		Program: "app", Build: "v1", Revision: 9, PID: 77, Started: now.Add(-90 * time.Minute), Owner: now.Add(-time.Minute),
		Stats: handover.Stats{Connections: map[string]int64{"active": 1, "idle": 2, "new": 0}, Oldest: 1234 * time.Millisecond},
		Sockets: []handover.SocketStatus{
			{Socket: handover.Socket{Name: "web", Kind: handover.KindListener, Network: "tcp", Address: "[::]:80"}, Queue: &queue, Backlog: &backlog},
			{Socket: handover.Socket{Name: "f", Kind: handover.KindFile}},
		},
		Draining: []handover.PeerStatus{{Generation: 2, Program: "app", Stats: handover.Stats{
			Connections: map[string]int64{"hijacked": 4}, Ended: map[string]int64{"moved": 120, "finished": 3, "closed": 0}, Remaining: 40 * time.Second,
		}}},
		LastFailure: "it died",
	}
	var b strings.Builder
	if err := writeStatus(&b, st, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"3, owner on probation for 1.5s more", "app v1", "pid 77, up 1h30m, owner for 1m0s",
		"3 connections (1 active, 2 idle), oldest request 1.2s", "it died",
		"web     tcp      [::]:80  2 of 4096", "f       file     -        -",
		"DRAINING  PROGRAM  CONNECTIONS  ENDED                  OLDEST  LEFT",
		"2         app      4 hijacked   120 moved, 3 finished  -       40s",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
