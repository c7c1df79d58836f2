package site

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"net/http/httptest"

	"github.com/coder/websocket"
)

func TestEveryAnswerHasTheGeneration(t *testing.T) {
	var gen atomic.Uint64
	gen.Store(3)
	c, url := demo(t, func(cfg *Config) { cfg.Generation = gen.Load })
	requests := []struct{ method, path string }{
		{"GET", "/"}, {"POST", "/echo"}, {"GET", "/sleep?for=0s"}, {"GET", "/bytes?n=1"}, {"GET", "/bytes?n=x"},
		{"HEAD", "/events"}, {"GET", "/ws"}, {"GET", "/status.json"}, {"GET", "/healthz"},
		{"GET", "/nowhere"}, {"DELETE", "/"},
	}
	for range 2 {
		for _, r := range requests {
			res, _ := do(t, c, r.method, url+r.path, "")
			if got := res.Header.Values(GenerationHeader); len(got) != 1 || got[0] != fmt.Sprint(gen.Load()) {
				t.Errorf("%s %s: generation %q, want %d", r.method, r.path, got, gen.Load())
			}
		}
		gen.Store(18446744073709551615)
	}
}

func TestUnknownPathListsRoutes(t *testing.T) {
	c, url := demo(t, nil)
	res, body := do(t, c, "GET", url+"/%3Cscript%3E", "")
	if res.StatusCode != 404 || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("status %d, %s", res.StatusCode, res.Header.Get("Content-Type"))
	}
	for _, want := range []string{`"/<script>"`, "/echo", "/sleep?for=2s", "/bytes?n=", "/events", "/ws", "/status.json", "/healthz"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
}

func TestMethods(t *testing.T) {
	c, url := demo(t, nil)
	for _, path := range []string{"/", "/sleep", "/bytes", "/events", "/status.json", "/healthz"} {
		res, body := do(t, c, "POST", url+path, "x")
		if res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" || !strings.Contains(body, path) {
			t.Errorf("POST %s: %d, Allow %q, %q", path, res.StatusCode, res.Header.Get("Allow"), body)
		}
	}
	if res, _ := do(t, c, "POST", url+"/ws", ""); res.StatusCode != 405 || res.Header.Get("Allow") != "GET" {
		t.Errorf("POST /ws: %d, Allow %q", res.StatusCode, res.Header.Get("Allow"))
	}
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "ODD"} {
		if res, _ := do(t, c, method, url+"/echo", ""); res.StatusCode != 200 {
			t.Errorf("%s /echo: %d", method, res.StatusCode)
		}
	}
}

func TestPageAndStatus(t *testing.T) {
	draining := make(chan struct{})
	c, url := demo(t, func(cfg *Config) {
		cfg.Program = `<script>alert("x")</script>`
		cfg.Counts = func() map[string]int64 { return map[string]int64{"active": 41, "<i>": 2} }
		cfg.Started = time.Now().Add(-time.Hour)
		cfg.Draining = draining
	})
	res, page := do(t, c, "GET", url, "")
	for _, want := range []string{`<p id="generation">7</p>`, "<b>41</b>active", "&lt;i&gt;", "&lt;script&gt;alert", `href="/sleep?for=2s"`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	for _, never := range []string{"<script>alert", "<i>", "https://", "http://"} {
		if strings.Contains(page, never) {
			t.Errorf("%q in the page", never)
		}
	}
	// The policy must allow the page's own style and script.
	csp := res.Header.Get("Content-Security-Policy")
	_, nonce, _ := strings.Cut(csp, "script-src 'nonce-")
	nonce, _, _ = strings.Cut(nonce, "'")
	if nonce == "" || strings.Count(page, `nonce="`+nonce+`"`) != 2 || !strings.Contains(csp, "connect-src 'self'") {
		t.Errorf("policy %q does not fit the page", csp)
	}

	var st Status
	for _, drains := range []bool{false, true} {
		res, body := do(t, c, "GET", url+"/status.json", "")
		if err := json.Unmarshal([]byte(body), &st); err != nil {
			t.Fatal(err)
		}
		if st.Generation != 7 || st.PID == 0 || st.Host == "" || st.Connections["active"] != 41 || st.Draining != drains ||
			st.Uptime < 3600 || st.Uptime > 7200 || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("status %+v", st)
		}
		if res, body := do(t, c, "GET", url+"/healthz", ""); res.StatusCode != 200 || body != "ok\n" {
			t.Errorf("healthz: %d %q", res.StatusCode, body)
		}
		if !drains {
			close(draining)
		}
	}
}

func TestZeroConfig(t *testing.T) {
	c, url := serve(t, New(Config{}))
	res, body := do(t, c, "GET", url+"/status.json", "")
	if res.StatusCode != 200 || !strings.Contains(body, `"connections": {}`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

func TestEcho(t *testing.T) {
	c, url := demo(t, nil)
	rng := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{0, 1, smallEcho - 1, smallEcho, smallEcho + 1, smallEcho + 2, 5 << 20} {
		for _, known := range []bool{true, false} {
			sent := make([]byte, size)
			rng.Read(sent)
			var body io.Reader = bytes.NewReader(sent)
			if !known {
				body = io.MultiReader(body) // hides the length
			}
			req, err := http.NewRequest("POST", url+"/echo", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "x/y")
			req.Header.Set("X-Request-Id", "id 1")
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes, length known %v: %d came back, %v", size, known, len(got), err)
			}
			if res.Header.Get("Content-Type") != "x/y" || res.Header.Get("X-Request-Id") != "id 1" {
				t.Errorf("header %v", res.Header)
			}
			if (known || size <= smallEcho) && res.ContentLength != int64(size) {
				t.Errorf("%d bytes, length known %v: content length %d", size, known, res.ContentLength)
			}
		}
	}
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestEchoLimit(t *testing.T) {
	c, url := demo(t, nil)
	post := func(length int64) (*http.Response, error) {
		req, err := http.NewRequest("POST", url+"/echo", io.LimitReader(zeros{}, maxEcho+1))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length
		return c.Do(req)
	}
	res, err := post(maxEcho + 1)
	if err == nil { // else the refusal met the sender before the answer was read
		res.Body.Close()
		if res.StatusCode != 413 {
			t.Errorf("status %d", res.StatusCode)
		}
	}
	res, err = post(-1)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err == nil || n > maxEcho {
		t.Errorf("a body beyond the limit came back as if whole: %d bytes, %v", n, err)
	}
}

// raw sends text over a connection of its own.
func raw(t *testing.T, url, text string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func TestEchoOfHalfARequest(t *testing.T) {
	_, url := demo(t, nil)
	for _, text := range []string{
		"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf",
		"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		c := raw(t, url, text)
		c.CloseWrite()
		if res, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			res.Body.Close()
			if res.StatusCode != 400 {
				t.Errorf("%q was answered with %d", text, res.StatusCode)
			}
		}
	}
}

func TestEchoExpectContinue(t *testing.T) {
	_, url := demo(t, nil)
	c := raw(t, url, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	br := bufio.NewReader(c)
	if line, err := br.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("got %q, %v", line, err)
	}
	br.ReadString('\n')
	io.WriteString(c, "body")
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "body" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		w := httptest.NewRecorder()
		New(Config{}).ServeHTTP(w, httptest.NewRequest("GET", "/sleep?for=10m", nil))
		if w.Code != 200 || w.Body.String() != "slept 10m0s\n" || time.Since(begin) != 10*time.Minute {
			t.Errorf("%d %q after %v", w.Code, w.Body, time.Since(begin))
		}

		begin = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w = httptest.NewRecorder()
		New(Config{}).ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/sleep?for=5m", nil))
		if d := time.Since(begin); d != time.Second || w.Body.Len() > 0 {
			t.Errorf("the client left after a second, the handler after %v with %q", d, w.Body)
		}
	})
}

func TestBadInput(t *testing.T) {
	c, url := demo(t, nil)
	for _, path := range []string{
		"/sleep", "/sleep?for=", "/sleep?for=2", "/sleep?for=-1s", "/sleep?for=601s", "/sleep?for=9999999h", "/sleep?for=%3Cb%3E",
		"/bytes", "/bytes?n=", "/bytes?n=-1", "/bytes?n=1e3", "/bytes?n=10737418241", "/bytes?n=99999999999999999999",
	} {
		res, body := do(t, c, "GET", url+path, "")
		if res.StatusCode != 400 || !strings.Contains(body, "Ask for") || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %d %q", path, res.StatusCode, body)
		}
	}
}

func TestBytes(t *testing.T) {
	c, url := demo(t, nil)
	for _, n := range []int64{0, 1, 7, 8, 9, 100_003, 20 << 20} {
		res, err := c.Get(fmt.Sprint(url, "/bytes?n=", n))
		if err != nil {
			t.Fatal(err)
		}
		var v Verifier
		got, err := io.Copy(&v, res.Body)
		res.Body.Close()
		if err != nil || got != n || res.ContentLength != n || v.Offset != n {
			t.Errorf("%d: %d bytes, content length %d, %v", n, got, res.ContentLength, err)
		}
	}
	res, body := do(t, c, "GET", url+"/bytes?n=1000", "", "Range", "bytes=13-500")
	v := Verifier{Offset: 13}
	if _, err := io.WriteString(&v, body); err != nil || res.StatusCode != 206 || len(body) != 488 {
		t.Errorf("range: %d, %d bytes, %v", res.StatusCode, len(body), err)
	}
	if res, _ := do(t, c, "HEAD", url+"/bytes?n=10737418240", ""); res.ContentLength != 10<<30 {
		t.Errorf("head: content length %d", res.ContentLength)
	}
}

func TestVerifierFindsFaults(t *testing.T) {
	good := make([]byte, 100_000)
	Fill(good, 0)
	for _, at := range []int{0, 5, 40_000, 99_999} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		var v Verifier
		if n, err := v.Write(bad); err == nil || n != at || v.Offset != int64(at) {
			t.Errorf("fault at %d: %d, %v", at, n, err)
		}
	}
	var v Verifier
	if _, err := v.Write(good[1:]); err == nil {
		t.Error("a missing byte is not found")
	}
	for _, split := range []int{1, 8, 13, 50_000} {
		part := make([]byte, len(good)-split)
		Fill(part, int64(split))
		if !bytes.Equal(part, good[split:]) {
			t.Errorf("Fill from %d on differs", split)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	p := make([]byte, 32<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		Fill(p, 12345*8)
	}
}

// event is one server-sent event.
type event struct{ kind, id, data, retry string }

// readEvent reads the next event.
func readEvent(br *bufio.Reader) (e event, err error) {
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return e, err
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "":
			return e, nil
		case "event":
			e.kind = value
		case "id":
			e.id = value
		case "data":
			e.data = value
		case "retry":
			e.retry = value
		default:
			return e, fmt.Errorf("line %q", line)
		}
	}
}

func TestEvents(t *testing.T) {
	draining := make(chan struct{})
	c, url := demo(t, func(cfg *Config) { cfg.Draining = draining })
	req, err := http.NewRequest("GET", url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", "41")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := res.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type %q", got)
	}
	br := bufio.NewReader(res.Body)
	for id := 42; id < 45; id++ {
		e, err := readEvent(br)
		if want := fmt.Sprintf(`{"generation":7,"sequence":%d}`, id); err != nil || e.id != fmt.Sprint(id) || e.data != want || e.kind != "" {
			t.Fatalf("event %+v, %v, want %s", e, err, want)
		}
	}
	close(draining)
	for {
		e, err := readEvent(br)
		if err != nil {
			t.Fatalf("no goodbye: %v", err)
		}
		if e.kind == "goodbye" {
			if e.id == "" || e.retry == "" || e.data == "" {
				t.Errorf("goodbye %+v", e)
			}
			break
		}
	}
	if e, err := readEvent(br); err != io.EOF {
		t.Errorf("after goodbye: %+v, %v, want a clean end", e, err)
	}
}

// The write deadline of a stream must not hit the next answer on the same
// connection.
func TestEventsLeaveNoDeadline(t *testing.T) {
	draining := make(chan struct{})
	close(draining)
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	New(Config{Draining: draining}).ServeHTTP(w, httptest.NewRequest("GET", "/events", nil))
	if n := len(w.set); n < 2 || !w.set[n-1].IsZero() {
		t.Errorf("deadlines %v, want the last one to be none", w.set)
	}
}

type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.set = append(d.set, t); return nil }

func TestEventsEndWithTheClient(t *testing.T) {
	ended := make(chan bool)
	h := New(Config{})
	c, url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		close(ended)
	}))
	res, err := c.Get(url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readEvent(bufio.NewReader(res.Body)); err != nil {
		t.Error(err)
	}
	res.Body.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the handler goes on after its client has left")
	}
}

func TestWebSocket(t *testing.T) {
	draining := make(chan struct{})
	_, url := demo(t, func(cfg *Config) { cfg.Draining = draining })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dial := func() *websocket.Conn {
		t.Helper()
		c, res, err := websocket.Dial(ctx, url+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.CloseNow() })
		if got := res.Header.Get(GenerationHeader); got != "7" {
			t.Errorf("generation %q", got)
		}
		c.SetReadLimit(maxMessage)
		return c
	}
	c := dial()
	for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
		for _, size := range []int{0, 5, maxMessage} {
			sent := bytes.Repeat([]byte("x"), size)
			if err := c.Write(ctx, kind, sent); err != nil {
				t.Fatal(err)
			}
			k, got, err := c.Read(ctx)
			if err != nil || k != kind || !bytes.Equal(got, sent) {
				t.Fatalf("%v of %d bytes came back as %v of %d, %v", kind, size, k, len(got), err)
			}
		}
	}

	long := dial()
	long.Write(ctx, websocket.MessageText, make([]byte, maxMessage+1))
	if _, _, err := long.Read(ctx); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
		t.Errorf("a message beyond the limit: %v", err)
	}

	if err := dial().Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("close by the client: %v", err)
	}

	close(draining)
	_, _, err := c.Read(ctx)
	if websocket.CloseStatus(err) != websocket.StatusGoingAway || !strings.Contains(err.Error(), "generation 7 is draining") {
		t.Errorf("in the drain: %v, want 1001 Going Away", err)
	}
}

func TestWebSocketRefusesOtherOrigins(t *testing.T) {
	c, url := demo(t, nil)
	res, _ := do(t, c, "GET", url+"/ws", "", "Connection", "Upgrade", "Upgrade", "websocket",
		"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Origin", "http://elsewhere.example")
	if res.StatusCode != 403 {
		t.Errorf("status %d", res.StatusCode)
	}
}

// A stream with an end of its own does not care for the drain.
func TestBoundedEventsGoOnInTheDrain(t *testing.T) {
	draining := make(chan struct{})
	close(draining)
	w := httptest.NewRecorder()
	New(Config{Generation: func() uint64 { return 1 }, Draining: draining}).ServeHTTP(w, httptest.NewRequest("GET", "/events?n=3", nil))
	br := bufio.NewReader(w.Body)
	for id := 1; id <= 3; id++ {
		if e, err := readEvent(br); err != nil || e.id != fmt.Sprint(id) || e.kind != "" {
			t.Errorf("event %+v, %v, want %d", e, err, id)
		}
	}
	if e, err := readEvent(br); err == nil {
		t.Errorf("a fourth event: %+v", e)
	}
}
