package site

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// proxyTo serves a proxy to rawurl as generation 7.
func proxyTo(t *testing.T, rawurl string, logger *slog.Logger) (*http.Client, string) {
	t.Helper()
	p, err := Proxy(rawurl, logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return serve(t, Header(func() uint64 { return 7 }, p))
}

func TestProxy(t *testing.T) {
	_, backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(GenerationHeader, "99")
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %s %s", r.Method, r.RequestURI, b, r.Host,
			r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Host"))
	}))
	p, err := Proxy(backend, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c, url := serve(t, p)
	if res, _ := do(t, c, "GET", url, ""); res.Header.Get(GenerationHeader) != "" {
		t.Errorf("without Header the generation is %q, the backend's", res.Header.Get(GenerationHeader))
	}

	c, url = proxyTo(t, backend+"/base", nil)
	host := strings.TrimPrefix(url, "http://")
	res, body := do(t, c, "PUT", url+"/a%2Fb?q=1", "sent", "X-Forwarded-For", "192.0.2.66")
	if want := "PUT /base/a%2Fb?q=1 sent " + host + " 127.0.0.1 " + host; body != want {
		t.Errorf("got  %q\nwant %q", body, want)
	}
	if got := res.Header.Values(GenerationHeader); len(got) != 1 || got[0] != "7" {
		t.Errorf("generation %q, want 7 and not the backend's", got)
	}
}

func TestProxyHTTPS(t *testing.T) {
	backend := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host)
	}))
	defer backend.Close()
	p, err := Proxy(backend.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.transport.TLSClientConfig = backend.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	c, url := serve(t, p)
	if res, body := do(t, c, "GET", url, ""); res.StatusCode != 200 || "https://"+body != backend.URL {
		t.Errorf("%d %q", res.StatusCode, body)
	}
}

// The header survives an interim answer, after which ReverseProxy forgets
// those that were set before.
func TestProxyInterimAnswer(t *testing.T) {
	_, backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "done")
	}))
	c, url := proxyTo(t, backend, nil)
	var hints int
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints++; return nil },
	})
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := res.Header.Values(GenerationHeader); hints != 1 || len(got) != 1 || got[0] != "7" {
		t.Errorf("%d hints, generation %q", hints, got)
	}
}

// refusing returns an address at which nobody can listen while the test runs:
// that of the client's end of a connection.
func refusing(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c.LocalAddr().String()
}

func TestProxyUnreachable(t *testing.T) {
	addr := refusing(t)
	var log bytes.Buffer
	c, url := proxyTo(t, "http://user:hush@"+addr, slog.New(slog.NewTextHandler(&log, nil)))
	res, body := do(t, c, "GET", url+"/x", "")
	if res.StatusCode != 502 || !strings.Contains(body, "gave no answer") || res.Header.Get(GenerationHeader) != "7" {
		t.Errorf("%d %q %v", res.StatusCode, body, res.Header)
	}
	if strings.Contains(body, addr) {
		t.Errorf("the client is told where the backend is: %q", body)
	}
	if !strings.Contains(log.String(), addr) || strings.Contains(log.String(), "hush") {
		t.Errorf("log %q", log.String())
	}
}

// A backend that breaks off must not look like one that has finished.
func TestProxyBrokenAnswer(t *testing.T) {
	_, backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	c, url := proxyTo(t, backend, nil)
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("%q came as a whole answer", b)
	}
}

func TestProxyStreams(t *testing.T) {
	next := make(chan bool)
	_, backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "9") // by which ReverseProxy would wait for all
		io.WriteString(w, "first")
		http.NewResponseController(w).Flush()
		<-next
		io.WriteString(w, "last")
	}))
	c, url := proxyTo(t, backend, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		close(next)
		t.Fatal(err)
	}
	defer res.Body.Close()
	b := make([]byte, 5)
	_, err = io.ReadFull(res.Body, b)
	close(next)
	if err != nil || string(b) != "first" {
		t.Errorf("%q, %v before the answer is finished", b, err)
	}
}

func TestProxyWebSocketAndUnix(t *testing.T) {
	dir, err := os.MkdirTemp("", "site")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	draining := make(chan struct{})
	backend := &httptest.Server{Listener: ln, Config: &http.Server{Handler: New(Config{
		Generation: func() uint64 { return 99 }, Draining: draining})}}
	backend.Start()
	defer backend.Close()

	c, url := proxyTo(t, "unix://"+socket, nil)
	if res, body := do(t, c, "POST", url+"/echo", "through"); body != "through" || res.Header.Get(GenerationHeader) != "7" {
		t.Errorf("%q %v", body, res.Header)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ws, res, err := websocket.Dial(ctx, url+"/ws", &websocket.DialOptions{
		HTTPHeader: http.Header{"Origin": {url}}, // as a browser that has the page would say
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if got := res.Header.Values(GenerationHeader); len(got) != 1 || got[0] != "7" {
		t.Errorf("generation %q", got)
	}
	if err := ws.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := ws.Read(ctx); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	close(draining)
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("in the backend's drain: %v", err)
	}
}

func TestProxyErrors(t *testing.T) {
	for _, bad := range []string{
		"", "localhost:9000", "127.0.0.1:9000", "ftp://a", "http://", "http:///path", "http://a?q=1", "http://a/#f",
		"unix://", "unix:///", "unix://host/path", "http://a:b:c", "http://user:hush@a\x00",
	} {
		p, err := Proxy(bad, nil)
		if err == nil {
			p.Close()
			t.Errorf("%q is accepted", bad)
			continue
		}
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("the password is in the error: %v", err)
		}
	}
}

// The answer may begin before the request has ended: what net/http would do with
// the rest of the body then is not the proxy's wish.
func TestProxyPassesAnAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	_, backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		buf := make([]byte, 64)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	}))
	c, url := proxyTo(t, backend, nil)
	body, sender := io.Pipe()
	defer sender.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", url, body)
	if err != nil {
		t.Fatal(err)
	}
	go io.WriteString(sender, "first ")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := make([]byte, len("first "))
	if _, err := io.ReadFull(res.Body, got); err != nil {
		t.Fatal(err)
	}
	io.WriteString(sender, "second")
	sender.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || string(got)+string(rest) != "first second" {
		t.Errorf("got %q%q, error %v", got, rest, err)
	}
}
