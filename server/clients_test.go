package server

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A handler that was running when the drain began, and has written nothing,
// announces the close all the same, unless it has said something else itself.
func TestHandlerThatWritesNothingAnnouncesTheClose(t *testing.T) {
	for own, want := range map[string]string{"": "close", "X-Own": "X-Own"} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				g.entered <- struct{}{}
				<-g.open
				if own != "" {
					w.Header().Set("Connection", own)
				}
			})), newPipeListener()
			serve(t, srv, ln)
			c := ln.dial(t)
			c.sendGet("/")
			<-g.entered
			stop := stopping(srv)
			synctest.Wait()
			close(g.open)
			c.br.Peek(1)
			b, _ := c.br.Peek(c.br.Buffered())
			if !strings.Contains(string(b), "Connection: "+want+"\r\n") {
				t.Errorf("got %q", b)
			}
			c.Close()
			wantReport(t, stop(), Report{Finished: 1})
		})
	}
}

// A reverse proxy adds its backend's headers to what is set already. In an
// upgrade during the drain the answer must say nothing but Upgrade.
func TestProxiedUpgradeDuringTheDrain(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, _ := http.NewResponseController(w).Hijack()
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n")
		io.Copy(c, c)
	}))
	defer backend.Close()
	target, _ := url.Parse(backend.URL)
	proxy := httputil.NewSingleHostReverseProxy(target)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	proxy.Transport = transport
	srv, ln := &Server{Server: http.Server{Handler: proxy}}, listenTCP(t)
	serve(t, srv, ln)
	c := dialTCP(t, ln.Addr().String())
	eventually(t, "connection is known", func() bool { return srv.Counts().New == 1 })
	stop := stopping(srv)
	<-srv.Draining()
	c.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header["Connection"]; resp.StatusCode != 101 || resp.Close || len(got) != 1 || got[0] != "Upgrade" {
		t.Errorf("%s, Connection: %q, Close %v", resp.Status, got, resp.Close)
	}
	c.send("ping\n")
	if line, _ := c.br.ReadString('\n'); line != "ping\n" {
		t.Errorf("got %q", line)
	}
	c.Close()
	wantReport(t, stop(), Report{Finished: 1, Hijacked: 1})
}

// All manners of requests that come on idle connections during the drain.
func TestOddRequestsDuringTheDrain(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", hello)
	mux.HandleFunc("/deaf", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "too much") })
	mux.HandleFunc("/trailer", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "Sum")
		w.Write(b)
		w.Header().Set("Sum", r.Trailer.Get("Sum"))
	})
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) { panic("on purpose") })
	mux.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	for name, tt := range map[string]struct{ request, want string }{
		"HTTP/1.0":            {"GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK"},
		"HTTP/1.0 keep-alive": {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.0 200 OK"},
		"HEAD":                {"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n", "HTTP/1.1 200 OK"},
		"body not read":       {"POST /deaf HTTP/1.1\r\nHost: test\r\nContent-Length: 600000\r\n\r\nbegin", "too much"},
		"trailer": {"POST /trailer HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n" +
			"3\r\nabc\r\n0\r\nSum: 7\r\n\r\n", "Sum: 7\r\n"},
		"bad":   {"rubbish\r\n\r\n", "400 Bad Request"},
		"panic": {"GET /panic HTTP/1.1\r\nHost: test\r\n\r\n", ""},
		"abort": {"GET /abort HTTP/1.1\r\nHost: test\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, ln := newServer(mux), newPipeListener()
				srv.ErrorLog = discardLog
				serve(t, srv, ln)
				c := ln.dial(t)
				c.get("/before")
				synctest.Wait()
				stop := stopping(srv)
				time.Sleep(19 * time.Second)
				go io.WriteString(c, tt.request)
				b, _ := io.ReadAll(c.br)
				if got := string(b); !strings.Contains(got, tt.want) || strings.Contains(got, "keep-alive") {
					t.Errorf("got %q", got)
				}
				report := stop()
				wantReport(t, report, Report{Finished: 1})
				if d := report.Duration; d > 20*time.Second {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

// A reader so slow that its download outlasts the stop timeout is cut off and
// counted.
func TestDownloadThatOutlastsTheStopTimeoutIsKilled(t *testing.T) {
	failed := make(chan error, 1)
	srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(w, zeros{})
		failed <- err
	})), listenTCP(t)
	srv.StopTimeout = 200 * time.Millisecond
	serve(t, srv, ln)
	c := dialTCP(t, ln.Addr().String())
	c.sendGet("/")
	if _, err := c.br.Peek(1000); err != nil {
		t.Fatal(err)
	}
	wantReport(t, srv.Stop(t.Context()), Report{Killed: 1})
	if err := <-failed; err == nil {
		t.Error("the handler has seen no error")
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// The second of two pipelined requests is under way when the drain begins,
// while net/http still calls its connection idle, and TLS hides its bytes.
func TestPipelinedRequestInTLSOutlastsTheLinger(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for _, last := range []string{"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n", "GET /slow HTTP/1.1\r\nHo"} {
		synctest.Test(t, func(t *testing.T) {
			srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					time.Sleep(40 * time.Second)
				}
				hello(w, r)
			})), newPipeListener()
			srv.TLSConfig, srv.Linger = serverTLS, time.Second
			serveTLS(t, srv, ln)
			c := ln.dialTLS(t, clientTLS)
			go c.send("%s", "GET /1 HTTP/1.1\r\nHost: test\r\n\r\n"+last)
			c.receive()
			synctest.Wait()
			stop := stopping(srv)
			if !strings.HasSuffix(last, "\r\n\r\n") {
				time.Sleep(10 * time.Second)
				c.send("st: test\r\n\r\n")
			}
			if _, body := c.receive(); body != "hello /slow" {
				t.Errorf("got %q", body)
			}
			c.Close()
			if report := stop(); report.Connections() != 1 || report.Closed+report.Finished != 1 || report.Duration < 40*time.Second {
				t.Errorf("report %+v", report)
			}
		})
	}
}

// In TLS the first request of a connection may come as slowly as a later one.
func TestFirstRequestInTLSCutInTwo(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		srv.TLSConfig = serverTLS
		serveTLS(t, srv, ln)
		c := ln.dialTLS(t, clientTLS)
		c.send("GET /cut HTTP/1.1\r\nHo")
		synctest.Wait()
		stop := stopping(srv)
		time.Sleep(19 * time.Second)
		c.send("st: test\r\n\r\n")
		resp, _ := c.receive()
		wantClose(t, resp, true)
		c.wantEOF()
		wantReport(t, stop(), Report{Finished: 1, Duration: 19 * time.Second})
	})
}

// When many connections are closed at once, some may have received a request
// since they were looked at.
func TestConnectionThatWakesUpIsNotClosed(t *testing.T) {
	var r registry
	ln := listenTCP(t)
	for _, tt := range []struct{ unread, muxed bool }{{true, false}, {false, false}, {true, true}} {
		c := dialTCP(t, ln.Addr().String())
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		wrapped, _ := wrap(&r, far, false)
		e := r.lookup(wrapped)
		e.muxed.Store(tt.muxed)
		r.setState(e, wrapped, http.StateIdle)
		r.phase.Store(draining)
		c.sendGet("/")
		eventually(t, "bytes are there", func() bool { return hasUnread(far) })
		if !tt.unread { // in the socket any more
			if _, err := bufio.NewReader(wrapped).Peek(1); err != nil {
				t.Fatal(err)
			}
		}
		r.mu.Lock()
		r.closeLocked(e, closed)
		r.mu.Unlock()
		eventually(t, "the close is over", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.closing == 0
		})
		if e.closed || e.outcome != finished {
			t.Errorf("%+v: closed %v, outcome %v", tt, e.closed, e.outcome)
		}
		r.phase.Store(serving)
	}
	if c := dialTCP(t, ln.Addr().String()); hasUnread(c.Conn) {
		t.Error("a connection without data has some")
	}
}

// A sliceConn cannot be compared, nor be a key of a map.
type sliceConn struct {
	net.Conn
	_ []byte
}

func TestConnectionTypeThatCannotBeCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		ln.wrap = func(c net.Conn) net.Conn { return sliceConn{Conn: c} }
		serve(t, srv, ln)
		c := ln.dial(t)
		c.get("/")
		c.Close()
		synctest.Wait()
		if got := srv.Counts(); got != (Counts{}) {
			t.Errorf("counts %+v", got)
		}
		wantReport(t, srv.Stop(t.Context()), Report{})
	})
}

// A hijacker may close the connection inside the one that it got.
func TestHijackedConnectionIsClosedFromInside(t *testing.T) {
	srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, _ := http.NewResponseController(w).Hijack()
		c.(interface{ NetConn() net.Conn }).NetConn().Close()
	})), listenTCP(t)
	serve(t, srv, ln)
	c := dialTCP(t, ln.Addr().String())
	c.sendGet("/")
	c.wantEOF()
	report := srv.Stop(t.Context())
	if report.Duration > 10*time.Second || !report.Clean() {
		t.Errorf("report %+v", report)
	}
	var none *tls.Conn
	if _, ok := srv.reg.foreign.Load(none); ok {
		t.Error("foreign connections remain")
	}
}
