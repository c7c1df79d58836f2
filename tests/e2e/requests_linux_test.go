package e2e

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/site"
)

// An answer of 2 s is under way while two successors take over. It comes from
// the generation that accepted it; new connections go to the newest.
func TestRequestInFlightAcrossTwoTakeovers(t *testing.T) {
	// On a machine that takes longer for two takeovers, the answer does too.
	for _, d := range []string{"2s", "6s", "20s"} {
		if requestAcrossTwoTakeovers(t, d) {
			return
		}
		t.Logf("two takeovers took longer than %s", d)
	}
	t.Error("no request was in flight for two takeovers")
}

// requestAcrossTwoTakeovers reports whether the request was in flight for both.
func requestAcrossTwoTakeovers(t *testing.T, duration string) bool {
	b := newBench(t)
	first := b.serve()
	url := b.url("/sleep?for=" + duration)
	type answer struct {
		generation string
		err        error
	}
	answers := make(chan answer, 1)
	go func() {
		res, err := b.plain.Get(url)
		if err != nil {
			answers <- answer{err: err}
			return
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		answers <- answer{res.Header.Get(site.GenerationHeader), err}
	}()
	b.awaitStatus("the request is at work", func(st *handover.Status) bool { return st.Stats.Connections["active"] == 1 })
	second := b.succeed(2)
	b.wantGeneration(2)
	b.succeed(3)
	b.wantGeneration(3)
	second.wantCode(0)
	inFlight := len(answers) == 0
	if a := <-answers; a.err != nil || a.generation != "1" {
		t.Errorf("the answer is from generation %q, error %v; want 1", a.generation, a.err)
	}
	first.wantCode(0)
	return inFlight || t.Failed()
}

// A download that a takeover finds half done is whole in the end.
func TestDownloadAcrossTakeover(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	const size = 64 << 20 // more than socket buffers hold
	res, err := b.plain.Get(b.url("/bytes?n=" + strconv.Itoa(size)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var check site.Verifier
	if _, err := io.CopyN(&check, res.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	b.succeed(2)
	b.wantGeneration(2)
	owner.wantAlive()
	if _, err := io.Copy(&check, res.Body); err != nil || check.Offset != size {
		t.Errorf("%d bytes of %d are right: %v", check.Offset, size, err)
	}
	owner.wantCode(0)
}

// A stream of events ends with a goodbye, and goes on where it was at the
// successor.
func TestEventsAcrossTakeover(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	url := b.url("/events")
	res, err := b.plain.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	if !lines.Scan() || lines.Text() != "id: 1" {
		t.Fatalf("the stream begins with %q", lines.Text())
	}
	b.succeed(2)
	var id string
	goodbye := false
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "id: ") {
			id = strings.TrimPrefix(lines.Text(), "id: ")
		}
		goodbye = goodbye || lines.Text() == "event: goodbye"
	}
	if err := lines.Err(); err != nil || !goodbye {
		t.Fatalf("the stream ended with error %v, goodbye %v", err, goodbye)
	}
	owner.wantCode(0)

	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", id)
	again, err := b.plain.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Body.Close()
	next, err := bufio.NewReader(again.Body).ReadString('\n')
	last, _ := strconv.Atoi(id)
	if gen := again.Header.Get(site.GenerationHeader); err != nil || gen != "2" || next != "id: "+strconv.Itoa(last+1)+"\n" {
		t.Errorf("after event %s generation %q goes on with %q, error %v", id, gen, next, err)
	}
}

// A WebSocket works until the drain begins, and is told to go then.
func TestWebSocketAcrossTakeover(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, b.url("/ws"), &websocket.DialOptions{HTTPClient: b.plain})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	echo := func(text string) {
		t.Helper()
		if err := ws.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := ws.Read(ctx); err != nil || string(got) != text {
			t.Fatalf("sent %q, received %q, error %v", text, got, err)
		}
	}
	echo("before")
	b.takeover("--probation=1m")
	b.awaitPhase(2, handover.PhaseProbation)
	echo("in probation")
	b.wantRun(0, "committed", "commit")
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the WebSocket ended with %v, want 1001 Going Away", err)
	}
	owner.wantCode(0)
}

// A request is cut in two by a takeover. Whether it is the first one of its
// connection or not, and wherever it is cut, it is answered.
func TestRequestCutInTwoByTakeover(t *testing.T) {
	const whole = "POST /echo HTTP/1.1\r\nHost: cut\r\nX-Request-Id: 7\r\nContent-Length: 4\r\n\r\nbody"
	const inHeader, inBody = 40, len(whole) - 2
	for _, tt := range []struct {
		name  string
		at    int
		fresh bool
	}{
		{"first request, in the request line", 6, true},
		{"first request, in the header", inHeader, true},
		{"first request, in the body", inBody, true},
		{"second request, first byte", 1, false},
		{"second request, in the header", inHeader, false},
		{"second request, in the body", inBody, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			owner := b.serve("--drain-timeout=20s")
			c, err := b.client.dial("tcp", b.address("web"))
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
			br := bufio.NewReader(c)
			wantEcho := func() (announced bool) {
				t.Helper()
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if gen := res.Header.Get(site.GenerationHeader); err != nil || gen != "1" || string(body) != "body" {
					t.Fatalf("generation %q answers %q, error %v", gen, body, err)
				}
				return res.Close
			}
			if !tt.fresh {
				send(whole)
				wantEcho()
			}
			b.awaitStatus("the connection is accepted", func(st *handover.Status) bool { return st.Stats.Total() == 1 })
			send(whole[:tt.at])
			b.succeed(2)
			b.wantGeneration(2)
			owner.wantAlive()
			send(whole[tt.at:])
			// A handler that was at work before the drain announces nothing.
			if announced := wantEcho(); !announced && tt.at != inBody {
				t.Error("the answer does not say that the connection closes")
			}
			c.Close()
			owner.wantCode(0)
		})
	}
}
