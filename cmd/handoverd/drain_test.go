//go:build linux

package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/site"
	"github.com/handoverd/handoverd/server"
)

// awaitConnections polls until so many connections of the owner are in a state.
func (b *bench) awaitConnections(state string, n int64) {
	b.t.Helper()
	b.awaitStatus("connections are "+state, func(st *handover.Status) bool { return st.Stats.Connections[state] == n })
}

// The drain may take far longer than the test is willing to wait.
func TestLingerEndsIdleConnections(t *testing.T) {
	for _, linger := range []string{"0", "100ms"} {
		b := newBench(t)
		p := b.start("serve", "--listen", loopback, "--drain-timeout=1h", "--linger", linger)
		c := dialRaw(t, address(t, b.awaitOwner(1), "default"))
		c.get("/healthz")
		b.awaitConnections("idle", 1)
		p.signal(syscall.SIGTERM)
		c.wantEOF()
		p.wantCode(exitDone)
		if !strings.Contains(p.text(), "0 finished, 1 closed idle") {
			t.Errorf("--linger=%s: the log has no such report:\n%s", linger, p.text())
		}
	}
}

// A handler that has not read its request's body does not notice that its
// connection is closed.
func TestKillTimeoutBoundsTheWaitForHandlers(t *testing.T) {
	for _, c := range []struct{ sleep, timeout, says string }{
		{"10m", "0", "handlers still running"},
		{"10m", "200ms", "handlers still running"},
		{"2s", "1h", `1 killed"`},
	} {
		b := newBench(t)
		p := b.start("serve", "--listen", loopback, "--drain-timeout=0", "--kill-timeout", c.timeout)
		conn := dialRaw(t, address(t, b.awaitOwner(1), "default"))
		conn.send("GET /sleep?for=" + c.sleep + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
		b.awaitConnections("active", 1)
		p.signal(syscall.SIGTERM)
		conn.wantEOF()
		p.wantCode(exitDone)
		if !strings.Contains(p.text(), c.says) {
			t.Errorf("--kill-timeout=%s: nothing in the log says %q:\n%s", c.timeout, c.says, p.text())
		}
	}
}

func TestLogIsJSON(t *testing.T) {
	b := newBench(t)
	b.writeCertificate()
	files := []string{"--tls-cert", b.path("cert.pem"), "--tls-key", b.path("key.pem")}
	first := b.start(append([]string{"serve", "--listen", loopback, "--log-format=json", "--log-level=debug", quick}, files...)...)
	c := dialRaw(t, address(t, b.awaitOwner(1), "default"))
	c.sendGet("/") // not TLS: net/http has something to complain about
	c.receive()
	await(t, "the complaint is logged", func() bool { return strings.Contains(first.text(), "TLS handshake error") })
	second := b.start(append([]string{"takeover", "--probation=0", "--log-format=json", quick}, files...)...)
	b.awaitOwner(2)
	first.wantCode(exitDone)
	await(t, "the end of the first is logged", func() bool { return strings.Contains(second.text(), "a predecessor has drained") })
	b.wantRun(exitDone, "", "stop")
	second.wantCode(exitDone)

	for _, p := range []*process{first, second} {
		messages := map[string]map[string]any{}
		for line := range strings.Lines(p.text()) {
			var record map[string]any
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			for _, key := range []string{"time", "level", "msg"} {
				if text, _ := record[key].(string); text == "" {
					t.Errorf("no %s in %s", key, line)
				}
			}
			messages[record["msg"].(string)] = record
		}
		if messages["serving"] == nil {
			t.Errorf("nothing of serving in\n%s", p.text())
		}
		report, _ := messages["drained"]["report"].(map[string]any)
		for _, key := range []string{"moved", "finished", "closed", "killed", "duration_ns"} {
			if _, ok := report[key].(float64); !ok {
				t.Errorf("no %s in the report of %v", key, messages["drained"])
			}
		}
	}
}

// With --no-migrate all connections stay, and it is seen what becomes of them.
func TestDrainIsShown(t *testing.T) {
	b := newBench(t)
	b.env = []string{"HANDOVERD_NO_MIGRATE=true"}
	first := b.start("serve", "--listen", loopback, "--drain-timeout=2h", "--linger=1h")
	addr := address(t, b.awaitOwner(1), "default")
	idle, used, busy := dialRaw(t, addr), dialRaw(t, addr), dialRaw(t, addr)
	idle.get("/healthz")
	used.get("/healthz")
	busy.sendGet("/sleep?for=10m")
	b.awaitStatus("all are there", func(st *handover.Status) bool {
		return st.Stats.Connections["idle"] == 2 && st.Stats.Connections["active"] == 1
	})
	if st := b.awaitOwner(1); st.Stats.Ended != nil {
		t.Errorf("ended before the drain: %v", st.Stats.Ended)
	}
	second := b.start("takeover", "--probation=0", quick)
	b.awaitOwner(2)
	awaitDrain := func(what string, connections, ended map[string]int64) {
		t.Helper()
		var got handover.Stats
		defer func() {
			if t.Failed() {
				t.Logf("at last %+v", got)
			}
		}()
		b.awaitStatus(what, func(st *handover.Status) bool {
			if len(st.Draining) != 1 {
				return false
			}
			got = st.Draining[0].Stats
			return cmp.Equal(got.Connections, connections) && cmp.Equal(got.Ended, ended)
		})
	}
	awaitDrain("two linger",
		map[string]int64{"active": 1, "lingering": 2, "hijacked": 0},
		map[string]int64{"moved": 0, "finished": 0, "closed": 0, "killed": 0})
	if res := used.get("/healthz"); !res.Close || res.Header.Get(site.GenerationHeader) != "1" {
		t.Errorf("close = %v, %v", res.Close, res.Header)
	}
	awaitDrain("one has finished",
		map[string]int64{"active": 1, "lingering": 1, "hijacked": 0},
		map[string]int64{"moved": 0, "finished": 1, "closed": 0, "killed": 0})
	b.wantRun(exitDone, "1 active, 1 lingering  1 finished", "status")
	b.wantRun(exitDone, `"finished": 1`, "status", "--json")
	idle.Close()
	busy.Close()
	first.wantCode(exitDone)
	if want := "0 moved, 3 finished, 0 closed idle, 0 killed"; !strings.Contains(first.text(), want) {
		t.Errorf("no %q in\n%s", want, first.text())
	}
	await(t, "the successor logs it", func() bool { return strings.Contains(second.text(), "0 moved, 3 finished") })
}

// An idle connection goes on with the successor, unless one of the two does not
// want that.
func TestNoMigrate(t *testing.T) {
	for _, c := range []struct {
		what       string
		old, young []string
		generation string // that answers next
		says       string
	}{
		{"by default", nil, nil, "2", "1 moved, 0 finished"},
		{"not from there", []string{"--no-migrate"}, nil, "1", "0 moved, 1 finished"},
		{"not to here", nil, []string{"--no-migrate"}, "1", "0 moved, 1 finished"},
	} {
		t.Run(c.what, func(t *testing.T) {
			b := newBench(t)
			first := b.start(append([]string{"serve", "--listen", loopback, quick}, c.old...)...)
			conn := dialRaw(t, address(t, b.awaitOwner(1), "default"))
			conn.get("/healthz")
			b.awaitConnections("idle", 1)
			b.start(append([]string{"takeover", "--probation=0", quick}, c.young...)...)
			b.awaitStatus("the first drains or has ended", func(st *handover.Status) bool {
				return st.Generation == 2 && (len(st.Draining) > 0 || first.hasEnded())
			})
			res := conn.get("/healthz")
			if gen := res.Header.Get(site.GenerationHeader); gen != c.generation || res.Close != (c.generation == "1") {
				t.Errorf("answered by generation %s, close = %v; want %s", gen, res.Close, c.generation)
			}
			first.wantCode(exitDone)
			if !strings.Contains(first.text(), c.says) {
				t.Errorf("no %q in\n%s", c.says, first.text())
			}
		})
	}
}

// A connection that has sent nothing, or not enough to tell which protocol it
// will speak, goes on with the successor as well.
func TestUnusedConnectionsMove(t *testing.T) {
	b := newBench(t)
	old := b.start("serve", "--listen", loopback, quick)
	addr := address(t, b.awaitOwner(1), "default")
	const (
		request  = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
		preface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
		settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // an empty frame
	)
	texts := []string{request, request, request, preface + settings, preface + settings, preface + settings}
	sent := []int{0, 5, len(request) - 1, 0, 5, 14}
	var conns []*rawConn
	for i, text := range texts {
		conns = append(conns, dialRaw(t, addr))
		conns[i].send(text[:sent[i]])
	}
	b.awaitConnections("new", int64(len(conns)))
	for _, generation := range []uint64{2, 3} {
		next := b.start("takeover", "--probation=0", quick)
		b.awaitOwner(generation)
		old.wantCode(exitDone)
		if !strings.Contains(old.text(), "6 moved") {
			t.Errorf("not all moved:\n%s", old.text())
		}
		old = next
	}
	for i, c := range conns {
		c.send(texts[i][sent[i]:])
		if texts[i] == request {
			if res := c.receive(); res.StatusCode != 200 || res.Header.Get(site.GenerationHeader) != "3" {
				t.Errorf("%s, %v", res.Status, res.Header)
			}
			continue
		}
		head := make([]byte, len(settings))
		if _, err := io.ReadFull(c.br, head); err != nil || head[3] != settings[3] {
			t.Errorf("%q, %v; want HTTP/2 to begin with its settings", head, err)
		}
	}
}

func TestCountsForPeople(t *testing.T) {
	c := server.Counts{New: 1, Active: 2, Idle: 3, Hijacked: 4}
	if diff := cmp.Diff(map[string]int64{"new": 1, "active": 2, "idle": 3, "hijacked": 4}, connections(c)); diff != "" {
		t.Errorf("serving (-want +got):\n%s", diff)
	}
	if got := ended(c); got != nil {
		t.Errorf("serving: ended %v", got)
	}
	c.Draining, c.Lingering, c.Moved, c.Finished, c.Closed, c.Killed = true, 4, 120, 3, 5, 6
	if diff := cmp.Diff(map[string]int64{"active": 2, "lingering": 4, "hijacked": 4}, connections(c)); diff != "" {
		t.Errorf("draining (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int64{"moved": 120, "finished": 3, "closed": 5, "killed": 6}, ended(c)); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}

	st := handover.Stats{Connections: connections(c), Ended: ended(c), Oldest: 1300 * time.Millisecond, Remaining: 41 * time.Second}
	st.Ended["lost"], st.Ended["killed"] = 7, 0
	want := "generation 1 drains: 2 active, 4 hijacked, 4 lingering, oldest 1.3s, 41s left; 120 moved, 3 finished, 5 closed, 7 lost"
	if got := drainProgress("generation 1", st, 200); got.text != want || got.now != 190 || got.max != 200 {
		t.Errorf("%+v, want %q", got, want)
	}
	if got := drainText(handover.Stats{Ended: map[string]int64{"moved": 0}}); got != "no connections" {
		t.Errorf("%q", got)
	}

	var log strings.Builder
	w := newWatcher(&app{console: newConsole(&log), log: slog.New(slog.NewTextHandler(&log, nil))})
	w.showDrain(1, 1, st)
	w.showDrain(1, 1, handover.Stats{})
	for _, want := range []string{
		`of=1 connections="10 connections (2 active, 4 hijacked, 4 lingering)" ended="120 moved, 3 finished, 5 closed, 7 lost" oldest=1.3s left=41s`,
		`connections="0 connections" ended=- `,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in\n%s", want, log.String())
		}
	}
}
