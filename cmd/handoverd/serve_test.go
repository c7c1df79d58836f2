//go:build linux

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// load sends requests on kept and on new connections until stop is closed.
type load struct {
	url      string
	stop     chan struct{}
	wg       sync.WaitGroup
	answered atomic.Int64
	failed   atomic.Pointer[error]
}

func startLoad(url string) *load {
	l := &load{url: url, stop: make(chan struct{})}
	for i := range 8 {
		l.wg.Go(func() { l.send(i%2 == 0) })
	}
	return l
}

func (l *load) send(keep bool) {
	tr := &http.Transport{DisableKeepAlives: !keep}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: patience}
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		// A POST is not repeated by net/http.
		res, err := c.Post(l.url+"/echo", "text/plain", strings.NewReader("x"))
		if err != nil {
			l.failed.CompareAndSwap(nil, &err)
			return
		}
		res.Body.Close()
		l.answered.Add(1)
	}
}

func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	if err := l.failed.Load(); err != nil {
		t.Errorf("after %d answers: %v", l.answered.Load(), *err)
	}
	if l.answered.Load() == 0 {
		t.Error("no request was answered")
	}
}

func TestTakeoverUnderRequests(t *testing.T) {
	b := newBench(t)
	c := newClient(t)
	first := b.start("serve", "--listen", loopback, quick, "--linger=2s")
	url := "http://" + address(t, b.awaitOwner(1), "default")
	wantGeneration(t, c, url, "1")

	l := startLoad(url)
	second := b.start("takeover", quick, "--probation=200ms", "--linger=2s")
	b.awaitOwner(2)
	wantGeneration(t, c, url, "2")
	first.wantCode(exitDone)
	third := b.start("takeover", quick, "--probation=0")
	b.awaitOwner(3)
	second.wantCode(exitDone)
	l.end(t)

	var st handover.Status
	out := b.wantRun(exitDone, `"generation": 3`, "status", "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil || st.Phase != handover.PhaseOwner || st.Program != "handoverd" || st.PID != third.cmd.Process.Pid {
		t.Fatalf("%v, %+v", err, st)
	}
	b.wantRun(exitDone, "3, owner", "status")
	b.wantRun(exitDone, "stopped: drained", "stop")
	third.wantCode(exitDone)
	if _, err := os.Lstat(b.socket); !os.IsNotExist(err) {
		t.Fatalf("the control path is left: %v", err)
	}
}

func TestPredecessorServesOnAfterRollback(t *testing.T) {
	b := newBench(t)
	c := newClient(t)
	b.start("serve", "--listen", loopback, quick)
	url := "http://" + address(t, b.awaitOwner(1), "default")
	second := b.start("takeover", quick, "--probation=5m")
	b.awaitPhase(2, handover.PhaseProbation)
	wantGeneration(t, c, url, "2")
	b.wantRun(exitRefused, "busy", "takeover")
	b.wantRun(exitDone, "rolled back", "rollback")
	second.wantCode(exitRolledBack)
	b.awaitOwner(1)
	wantGeneration(t, c, url, "1")
	b.wantRun(exitRefused, "not in probation", "rollback")
}

func TestCommitEndsProbation(t *testing.T) {
	b := newBench(t)
	first := b.start("serve", "--listen", loopback, quick)
	b.awaitOwner(1)
	b.start("takeover", quick, "--probation=5m")
	b.awaitPhase(2, handover.PhaseProbation)
	b.wantRun(exitDone, "committed", "commit")
	b.awaitOwner(2)
	first.wantCode(exitDone)
}

func TestTerminatedOnProbationGivesBack(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", loopback, quick)
	url := "http://" + address(t, b.awaitOwner(1), "default")
	second := b.start("takeover", quick, "--probation=5m")
	b.awaitPhase(2, handover.PhaseProbation)
	second.signal(syscall.SIGTERM)
	second.wantCode(exitRolledBack)
	b.awaitOwner(1)
	wantGeneration(t, newClient(t), url, "1")
}

func TestTermFinishesRequests(t *testing.T) {
	b := newBench(t)
	p := b.start("serve", "--listen", loopback, quick)
	url := "http://" + address(t, b.awaitOwner(1), "default")
	body := make(chan string, 1)
	go func() {
		text, _ := get(t, newClient(t), url+"/sleep?for=500ms")
		body <- text
	}()
	b.awaitStatus("the request is there", func(st *handover.Status) bool { return st.Stats.Connections["active"] == 1 })
	p.signal(syscall.SIGTERM)
	if text := <-body; text == "" {
		t.Fatal("no answer")
	}
	p.wantCode(exitDone)
}

func TestSecondTermEndsAtOnce(t *testing.T) {
	b := newBench(t)
	p := b.start("serve", "--listen", loopback, "--drain-timeout=5m")
	addr := address(t, b.awaitOwner(1), "default")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET /sleep?for=5m HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	b.awaitStatus("the request is there", func(st *handover.Status) bool { return st.Stats.Connections["active"] == 1 })
	p.signal(syscall.SIGTERM)
	await(t, "the drain begins", func() bool { return strings.Contains(p.text(), "stopping") })
	p.signal(syscall.SIGINT)
	p.wantCode(exitFailure)
	// What it left behind is in nobody's way.
	b.start("serve", "--listen", loopback, quick)
	b.awaitOwner(1)
}

func TestOutlivesItsLogReader(t *testing.T) {
	b := newBench(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := b.startTo(w, b.command("serve", "--listen", loopback, "--log-level=debug", quick))
	w.Close()
	b.awaitOwner(1)
	r.Close()
	for range 3 { // each look makes log lines, or a takeover does
		b.wantRun(exitUsage, "", "takeover", "--listen=none")
		b.wantRun(exitFailure, "", "takeover", "--listen", "x=unix:///nowhere/at/all")
	}
	b.awaitOwner(1)
	b.wantRun(exitDone, "", "stop")
	p.wantCode(exitDone)
}

func TestOrServe(t *testing.T) {
	b := newBench(t)
	first := b.start("takeover", "--or-serve", "--listen", loopback, quick)
	b.awaitOwner(1)
	b.start("takeover", "--or-serve", "--probation=0", quick)
	b.awaitOwner(2)
	first.wantCode(exitDone)
}

func TestWaitUntilTheOwnerIsFree(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", loopback, quick)
	b.awaitOwner(1)
	b.start("takeover", quick, "--probation=1s")
	b.awaitPhase(2, handover.PhaseProbation)
	b.wantRun(exitRefused, "probation", "takeover")
	b.start("takeover", quick, "--probation=0", "--wait=25s")
	b.awaitOwner(3)
}

func TestTakeoverTakesWhatIsNamed(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", "a="+loopback, "--listen", "b="+loopback, quick)
	before := b.awaitOwner(1)
	b.start("takeover", "--listen", "a="+loopback, "--listen", "c=unix://"+b.path("c"), "--probation=0", quick)
	st := b.awaitOwner(2)
	if address(t, st, "a") != address(t, before, "a") || address(t, st, "c") != b.path("c") || len(st.Sockets) != 2 {
		t.Fatalf("%+v", st.Sockets)
	}
	if len(st.Unclaimed) != 1 || st.Unclaimed[0].Name != "b" {
		t.Fatalf("%+v", st.Unclaimed)
	}
	await(t, "the socket that was not named is closed", func() bool {
		c, err := net.DialTimeout("tcp", address(t, before, "b"), time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	b.wantRun(exitDone, "Closed at the takeover", "status")
}

func TestStuckOwner(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	p := b.start("serve", "--listen", loopback, quick)
	b.awaitOwner(1)
	p.signal(syscall.SIGSTOP)
	var wg sync.WaitGroup
	for _, args := range [][]string{{"takeover"}, {"status"}, {"check"}} {
		wg.Go(func() {
			if _, stderr, code := b.run(args...); code != exitStuck {
				t.Errorf("%v: exit code %d: %s", args, code, stderr)
			}
		})
	}
	wg.Wait()
	p.signal(syscall.SIGCONT)
	b.awaitOwner(1)
}
