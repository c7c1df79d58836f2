//go:build linux

package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/site"
)

// protocolClient is an HTTP client that speaks one protocol only.
func protocolClient(t *testing.T, config *tls.Config, set func(*http.Protocols, bool)) *http.Client {
	tr := &http.Transport{TLSClientConfig: config, Protocols: new(http.Protocols)}
	set(tr.Protocols, true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// A rawConn speaks HTTP/1 by hand and never sends anything twice.
type rawConn struct {
	t *testing.T
	net.Conn
	br *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *rawConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &rawConn{t, c, bufio.NewReader(c)}
}

func (c *rawConn) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// receive reads one answer with its body.
func (c *rawConn) receive() *http.Response {
	c.t.Helper()
	res, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		c.t.Fatal(err)
	}
	return res
}

func (c *rawConn) sendGet(path string) {
	c.t.Helper()
	c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
}

// get expects an answer with the status 200.
func (c *rawConn) get(path string) *http.Response {
	c.t.Helper()
	c.sendGet(path)
	res := c.receive()
	if res.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s", path, res.Status)
	}
	return res
}

// wantEOF fails unless the server has closed the connection.
func (c *rawConn) wantEOF() {
	c.t.Helper()
	if _, err := c.br.ReadByte(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		c.t.Fatalf("%v, want the end of the connection", err)
	}
}

func TestProtocols(t *testing.T) {
	b := newBench(t)
	pool := b.writeCertificate()
	if err := os.WriteFile(b.path("healthz"), []byte("ok\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") }))
	defer behind.Close()
	for what, args := range map[string][]string{"site": nil, "files": {"--root", b.dir}, "proxy": {"--proxy", behind.URL}} {
		for scheme, files := range map[string][]string{
			"http": nil, "https": {"--tls-cert", b.path("cert.pem"), "--tls-key", b.path("key.pem")},
		} {
			t.Run(what+" "+scheme, func(t *testing.T) {
				b := newBench(t)
				b.start(append(append([]string{"serve", "--listen", loopback, quick}, args...), files...)...)
				url := scheme + "://" + address(t, b.awaitOwner(1), "default") + "/healthz"
				second := (*http.Protocols).SetUnencryptedHTTP2
				if scheme == "https" {
					second = (*http.Protocols).SetHTTP2
				}
				for major, set := range map[int]func(*http.Protocols, bool){1: (*http.Protocols).SetHTTP1, 2: second} {
					c := protocolClient(t, &tls.Config{RootCAs: pool}, set)
					for range 2 { // the second on the same connection
						res, err := c.Get(url)
						if err != nil {
							t.Fatal(err)
						}
						body, err := io.ReadAll(res.Body)
						res.Body.Close()
						if err != nil || string(body) != "ok\n" || res.ProtoMajor != major || res.Header.Get(site.GenerationHeader) != "1" {
							t.Fatalf("%q, %v, %s, %v; want HTTP/%d", body, err, res.Proto, res.Header, major)
						}
					}
				}
			})
		}
	}
}

// Nothing of HTTP/1 is different because the listener takes HTTP/2 as well.
func TestHTTP1OnAListenerThatTakesHTTP2(t *testing.T) {
	b := newBench(t)
	b.start("serve", "--listen", loopback, quick)
	addr := address(t, b.awaitOwner(1), "default")
	for what, c := range map[string]struct {
		send    []string // one after the other
		answers []int
		closes  bool
	}{
		"kept open":           {[]string{"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"}, []int{200}, false},
		"asked to close":      {[]string{"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"}, []int{200}, true},
		"HTTP/1.0":            {[]string{"GET /healthz HTTP/1.0\r\n\r\n"}, []int{200}, true},
		"shortest":            {[]string{"GET / HTTP/1.0\n\n"}, []int{200}, true},
		"in pieces":           {strings.SplitAfter("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nP*/2", ""), []int{200}, false},
		"pipelined":           {[]string{strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 3)}, []int{200, 200, 200}, false},
		"asks for an upgrade": {[]string{"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n"}, []int{200}, false},
		"almost a preface":    {[]string{"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n"}, []int{404}, true},
		"malformed":           {[]string{"GET /healthz WHAT/1.1\r\n\r\n"}, []int{400}, true},
		"no host":             {[]string{"GET /healthz HTTP/1.1\r\n\r\n"}, []int{400}, true},
	} {
		t.Run(what, func(t *testing.T) {
			conn := dialRaw(t, addr)
			for _, part := range c.send {
				conn.send(part)
			}
			for _, want := range c.answers {
				if res := conn.receive(); res.StatusCode != want || res.ProtoMajor != 1 || res.Close != c.closes {
					t.Errorf("%s, close = %v; want %d, %v", res.Status, res.Close, want, c.closes)
				}
			}
			if c.closes {
				conn.wantEOF()
				return
			}
			conn.get("/healthz")
		})
	}
}

// HTTP/2 without TLS on a connection that is used all the time.
func TestUnencryptedHTTP2AcrossATakeover(t *testing.T) {
	b := newBench(t)
	first := b.start("serve", "--listen", loopback, quick)
	url := "http://" + address(t, b.awaitOwner(1), "default")
	c := protocolClient(t, nil, (*http.Protocols).SetUnencryptedHTTP2)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// A POST is not repeated unless the server says that it may be.
				res, err := c.Post(url+"/echo", "text/plain", strings.NewReader("x"))
				if err != nil {
					t.Error(err)
					return
				}
				if res.Body.Close(); res.ProtoMajor != 2 {
					t.Errorf("answered with %s", res.Proto)
				}
			}
		})
	}
	b.awaitStatus("the client is there", func(st *handover.Status) bool { return st.Stats.Total() > 0 })
	b.start("takeover", "--probation=0", quick)
	b.awaitOwner(2)
	first.wantCode(exitDone)
	close(stop)
	wg.Wait()
	wantGeneration(t, c, url, "2")
}
