package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
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
	b.takeover("--probation=30m")
	b.awaitPhase(2, handover.PhaseProbation)
	echo("in probation")
	b.wantRun(0, "committed", "commit")
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the WebSocket ended with %v, want 1001 Going Away", err)
	}
	owner.wantCode(0)
}

// A request is cut in two by a takeover. Whether it is the first one of its
// connection or not, and wherever it is cut, it is answered: by the successor
// if its head was not complete, else by the predecessor, and then the connection
// goes on at the successor. Without migration the predecessor answers, and says
// that the connection closes.
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
		{"second request, before the first byte", 0, false},
		{"second request, first byte", 1, false},
		{"second request, in the header", inHeader, false},
		{"second request, in the body", inBody, false},
	} {
		for _, flags := range [][]string{nil, {"--no-migrate"}} {
			moves := len(flags) == 0
			t.Run(fmt.Sprintf("%s, migration %v", tt.name, moves), func(t *testing.T) {
				b := newBench(t)
				owner := b.serve(flags...)
				c := b.connect("web")
				if !tt.fresh {
					c.send(whole)
					c.wantEcho("1", false)
				}
				b.awaitStatus("the connection is accepted", func(st *handover.Status) bool { return st.Stats.Total() == 1 })
				c.send(whole[:tt.at])
				if tt.at == inBody {
					b.awaitStatus("the request is at work", func(st *handover.Status) bool { return st.Stats.Connections["active"] == 1 })
				}
				b.succeed(2, flags...)
				b.wantGeneration(2)
				switch {
				case moves && tt.at < inBody:
					owner.wantCode(0)
					c.send(whole[tt.at:])
					c.wantEcho("2", false)
				case moves:
					owner.wantAlive()
					c.send(whole[tt.at:])
					c.wantEcho("1", false)
					owner.wantCode(0)
				default:
					b.awaitDrainBegun(1)
					owner.wantAlive()
					c.send(whole[tt.at:])
					// A handler that was at work before the drain announces nothing.
					c.wantEcho("1", tt.at != inBody)
					c.Close()
					owner.wantCode(0)
					return
				}
				c.send(whole)
				c.wantEcho("2", false)
			})
		}
	}
}

// awaitDrainBegun waits until a generation tells that it drains. When its
// successor owns the sockets for good it may not have heard of that yet.
func (b *bench) awaitDrainBegun(generation uint64) {
	b.t.Helper()
	b.awaitStatus(fmt.Sprintf("generation %d has begun to drain", generation), func(st *handover.Status) bool {
		for _, p := range st.Draining {
			if _, lingers := p.Stats.Connections["lingering"]; lingers && p.Generation == generation {
				return true
			}
		}
		return false
	})
}

// A rawConn is a connection on which requests are written by hand.
type rawConn struct {
	net.Conn
	t  testing.TB
	br *bufio.Reader
}

// connect connects a client to a listener.
func (b *bench) connect(name string) *rawConn {
	b.t.Helper()
	return b.connectTo(b.address(name))
}

func (b *bench) connectTo(address string) *rawConn {
	b.t.Helper()
	c, err := b.client.dial("tcp", address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return newRawConn(b.t, c)
}

// newRawConn takes c over.
func newRawConn(t testing.TB, c net.Conn) *rawConn {
	raw := &rawConn{Conn: c, t: t}
	raw.br = bufio.NewReader(raw)
	return raw
}

// Read bounds each read, not the time that the connection is open: a thousand
// others may be dealt with in between.
func (c *rawConn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	return c.Conn.Read(p)
}

func (c *rawConn) Write(p []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(patience))
	return c.Conn.Write(p)
}

func (c *rawConn) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// wantEcho reads an answer of /echo to a request with the body "body".
func (c *rawConn) wantEcho(generation string, announced bool) {
	c.t.Helper()
	res, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	gen := res.Header.Get(site.GenerationHeader)
	if err != nil || generation != "" && gen != generation || string(body) != "body" || res.Close != announced {
		c.t.Fatalf("generation %q answers %q, announces a close %v, error %v; want generation %s, %v",
			gen, body, res.Close, err, generation, announced)
	}
}
