package server

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// delayed connects to addr through a relay in which each byte takes d.
func delayed(t testing.TB, addr string, d time.Duration) net.Conn {
	t.Helper()
	far, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	near, relay := net.Pipe()
	var pumps sync.WaitGroup
	pump := func(dst, src net.Conn) {
		type piece struct {
			b   []byte
			due time.Time
		}
		queue := make(chan piece, 10_000)
		pumps.Go(func() {
			for p := range queue {
				time.Sleep(time.Until(p.due))
				dst.Write(p.b)
			}
			dst.Close()
		})
		pumps.Go(func() {
			defer close(queue)
			for {
				b := make([]byte, 4096)
				n, err := src.Read(b)
				if n > 0 {
					queue <- piece{b[:n], time.Now().Add(d)}
				}
				if err != nil {
					return
				}
			}
		})
	}
	pump(relay, far)
	pump(far, relay)
	t.Cleanup(func() { near.Close(); relay.Close(); far.Close(); pumps.Wait() })
	return near
}

// openStreams opens a stream every millisecond until it reads a GOAWAY, and
// returns how many were answered and how many were not. begun is called when the
// first one is.
func openStreams(c net.Conn, begun func()) (answered, lost int) {
	const limit = 100 // of streams at a time: no server need take more
	var mu sync.Mutex // of the writes, and what follows
	var leave bool
	var opened uint32
	done := make(map[uint32]bool)
	c.Write([]byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	var opener sync.WaitGroup
	opener.Go(func() {
		for id := uint32(1); ; id += 2 {
			mu.Lock()
			if leave {
				mu.Unlock()
				return
			}
			if int(id+1)/2-len(done) > limit {
				id -= 2
			} else {
				opened = id
				c.Write(frame(frameHeaders, 5, id, []byte{0x82, 0x86, 0x84, 0x41, 1, 'x'}))
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
		}
	})
	for {
		var head [frameHeadSize]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			break
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[:])>>8)
		if _, err := io.ReadFull(c, payload); err != nil {
			break
		}
		stream := binary.BigEndian.Uint32(head[5:])
		switch kind, flags := head[3], head[4]; {
		case kind == frameGoAway:
			mu.Lock()
			leave = true
			mu.Unlock()
		case kind == framePing && flags&flagAck == 0:
			mu.Lock()
			c.Write(frame(framePing, flagAck, 0, payload))
			mu.Unlock()
		case (kind == frameHeaders || kind == frameData) && flags&1 != 0:
			mu.Lock()
			done[stream] = true
			mu.Unlock()
			begun()
		}
	}
	mu.Lock()
	leave = true
	mu.Unlock()
	opener.Wait()
	return len(done), int(opened+1)/2 - len(done)
}

// A client that is 20 ms away opens streams all the time. None of those that it
// opens before it learns of the drain is lost. A bare http.Server loses some,
// which shows that the test can see it.
func TestNoStreamIsRefusedWhileTheGoAwayTravels(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	clientTLS.NextProtos = []string{"h2"}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	run := func(t *testing.T, encrypted bool, config *http.Server, srv interface {
		Serve(net.Listener) error
		ServeTLS(net.Listener, string, string) error
		Shutdown(context.Context) error
	}) int {
		ln := listenTCP(t)
		config.Handler, config.TLSConfig, config.ErrorLog = h, serverTLS.Clone(), discardLog
		var served sync.WaitGroup
		if encrypted {
			served.Go(func() { srv.ServeTLS(ln, "", "") })
		} else {
			config.Protocols = new(http.Protocols)
			config.Protocols.SetUnencryptedHTTP2(true)
			served.Go(func() { srv.Serve(ln) })
		}
		const clients = 4
		lost := make(chan int, clients)
		var begun sync.WaitGroup
		for range clients {
			c := delayed(t, ln.Addr().String(), 10*time.Millisecond)
			if encrypted {
				c = tls.Client(c, clientTLS)
			}
			begun.Add(1)
			go func() {
				begin := sync.OnceFunc(begun.Done)
				answered, n := openStreams(c, begin)
				if answered == 0 {
					t.Error("no stream was answered")
				}
				begin()
				lost <- n
			}()
		}
		begun.Wait()
		time.Sleep(200 * time.Millisecond) // any moment is as good
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		served.Wait()
		sum := 0
		for range clients {
			sum += <-lost
		}
		return sum
	}
	for name, encrypted := range map[string]bool{"TLS": true, "unencrypted": false} {
		t.Run(name, func(t *testing.T) {
			srv := new(Server)
			if n := run(t, encrypted, &srv.Server, srv); n != 0 {
				t.Errorf("%d streams were lost", n)
			}
			bare := new(http.Server)
			n := run(t, encrypted, bare, bare)
			if n == 0 {
				t.Errorf("a bare http.Server has lost no stream")
			}
			t.Logf("a bare http.Server has lost %d streams", n)
		})
	}
}

// A client that does not answer the PING holds up nothing for long, and one
// that reads nothing does not hold up the others.
func TestClientThatIgnoresTheFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := h2cServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		deaf, mute := newH2Client(ln.dial(t)), newH2Client(ln.dial(t))
		go func() { // what it is sent until now, not more
			var head [frameHeadSize]byte
			io.ReadFull(deaf.br, head[:])
			io.CopyN(io.Discard, deaf.br, int64(head[2]))
		}()
		end := make(chan time.Time)
		go func() {
			io.Copy(io.Discard, mute.Conn)
			end <- time.Now()
		}()
		synctest.Wait()
		begin := time.Now()
		stop := stopping(srv)
		if d := (<-end).Sub(begin); d != farewellTimeout+closeGrace {
			t.Errorf("the connection was closed after %v", d)
		}
		deaf.Close()
		if report := stop(); report.Connections() != 2 || !report.Clean() {
			t.Errorf("report %+v", report)
		}
	})
}

// A client that is slow to answer the PING, and opens a stream before, has that
// answered.
func TestSlowClientHasItsStreamAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := h2cServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		h := newH2Client(ln.dial(t))
		end := func(stream uint32) {
			for {
				kind, flags, id, _ := h.next()
				if kind == frameReset {
					t.Fatalf("stream %d is reset", id)
				}
				if (kind == frameHeaders || kind == frameData) && id == stream && flags&1 != 0 {
					return
				}
			}
		}
		h.request(1)
		end(1)
		stop := stopping(srv)
		h.br.Peek(1) // it arrives, but is not looked at
		time.Sleep(9 * time.Second)
		h.request(3)
		end(3)
		h.wantGoAway(3)
		h.wantEOF()
		wantReport(t, stop(), Report{Finished: 1, Duration: 9*time.Second + farewellSettle + closeGrace})
	})
}

// What net/http and a handler know of an HTTP/2 connection is what they know
// without this package.
func TestHTTP2RequestsLookTheSame(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for _, encrypted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var srv *Server
			seen := make(chan *http.Request, 1)
			srv = h2cServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, ok := range []bool{
					implements[http.Flusher](w), implements[http.Pusher](w), implements[io.StringWriter](w),
				} {
					if !ok {
						t.Errorf("a method is missing in %T", w)
					}
				}
				seen <- r
			}))
			srv.ConnState = func(c net.Conn, st http.ConnState) {
				if _, ok := c.(*tls.Conn); ok != encrypted {
					t.Errorf("ConnState saw a %T", c)
				}
			}
			srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
				return context.WithValue(ctx, ctxKey{}, "mine")
			}
			srv.WriteTimeout, srv.ReadTimeout, srv.IdleTimeout = time.Hour, time.Hour, time.Hour
			ln := newPipeListener()
			h := newH2Client(dialH2(t, srv, ln, encrypted, serverTLS, clientTLS))
			h.request(1)
			h.next()
			r := <-seen
			if (r.TLS != nil) != encrypted || r.ProtoMajor != 2 || r.RemoteAddr == "" || r.Context().Value(ctxKey{}) != "mine" {
				t.Errorf("TLS %v, %s, RemoteAddr %q, context %v", r.TLS, r.Proto, r.RemoteAddr, r.Context())
			}
			if encrypted && (r.TLS.NegotiatedProtocol != "h2" || !r.TLS.HandshakeComplete) {
				t.Errorf("TLS %+v", r.TLS)
			}
			if hs, ok := r.Context().Value(http.ServerContextKey).(*http.Server); !ok || hs.Handler == nil {
				t.Errorf("http.ServerContextKey holds %v", hs)
			}
			time.Sleep(2 * time.Hour)
			h.wantGoAway(1) // of the IdleTimeout
			h.wantEOF()
			synctest.Wait()
			wantReport(t, srv.Stop(t.Context()), Report{})
		})
	}
}

func implements[T any](v any) bool { _, ok := v.(T); return ok }

// Whoever agrees on HTTP/2 and then speaks something else, or nothing, is left.
func TestHTTP2WithoutPreface(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for _, send := range []string{"", "PRI * HTTP", "GET / HTTP/1.1\r\nHost: test\r\n\r\n"} {
		synctest.Test(t, func(t *testing.T) {
			var log lockedBuilder
			srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
			srv.ErrorLog = log.logger()
			c := dialH2(t, srv, ln, true, serverTLS, clientTLS)
			srv.ErrorLog = nil
			begin := time.Now()
			c.send("%s", send)
			c.wantEOF()
			if d := time.Since(begin); d > prefaceTimeout {
				t.Errorf("closed after %v", d)
			}
			synctest.Wait()
			if got := log.String(); !strings.Contains(got, "preface") {
				t.Errorf("log has %q", got)
			}
			wantReport(t, srv.Stop(t.Context()), Report{})
		})
	}
}

// An HTTP/2 that the user has installed is used as it is.
func TestUsersOwnHTTP2(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		own, err := newHTTP2(&http.Server{}, true)
		if err != nil {
			t.Fatal(err)
		}
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		srv.TLSNextProto = own.TLSNextProto
		h := newH2Client(dialH2(t, srv, ln, true, serverTLS, clientTLS))
		synctest.Wait()
		stop := stopping(srv)
		synctest.Wait()
		h.request(1)
		for told, ended := false, false; !told || !ended; {
			kind, flags, _, _ := h.next()
			told = told || kind == frameGoAway
			ended = ended || kind == frameData && flags&1 != 0
		}
		h.wantEOF()
		wantReport(t, stop(), Report{Finished: 1, Duration: closeGrace})
	})
}

// A onceBody knows whether anybody has begun to send it.
type onceBody struct {
	io.Reader
	read atomic.Bool
}

func (b *onceBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	return b.Reader.Read(p)
}

// net/http's own client, with bodies that it cannot send twice, all through a
// drain. Whatever it has sent and does not get an answer to is lost. (When it
// hears of a GOAWAY after it has chosen a connection and before it opens the
// stream there, it also fails a request of which it has sent nothing at all.)
func TestHTTP2ClientLosesNoUploadToTheDrain(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	var mu sync.Mutex
	var current net.Listener
	start := func() *Server {
		srv, ln := &Server{Server: http.Server{Handler: echo, ErrorLog: discardLog, TLSConfig: serverTLS.Clone()}}, listenTCP(t)
		go srv.ServeTLS(ln, "", "")
		mu.Lock()
		defer mu.Unlock()
		current = ln
		return srv
	}
	srv := start()
	tr := &http.Transport{TLSClientConfig: clientTLS, ForceAttemptHTTP2: true}
	tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
		mu.Lock()
		addr := current.Addr().String()
		mu.Unlock()
		return delayed(t, addr, 10*time.Millisecond), nil
	}
	defer tr.CloseIdleConnections()
	quit := make(chan struct{})
	var load sync.WaitGroup
	var answered atomic.Int64
	for range 8 {
		load.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				body := &onceBody{Reader: strings.NewReader("once")}
				resp, err := (&http.Client{Transport: tr}).Post("https://example.com/", "text/plain", body)
				if err != nil {
					if body.read.Load() {
						t.Errorf("Post: %v", err)
					}
					continue
				}
				if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "once" || resp.ProtoMajor != 2 {
					t.Errorf("%s: got %q, %v", resp.Proto, b, err)
				}
				resp.Body.Close()
				answered.Add(1)
			}
		})
	}
	for range 3 {
		before := answered.Load()
		eventually(t, "uploads are answered", func() bool { return answered.Load() >= before+20 })
		old := srv
		srv = start()
		if report := old.Stop(t.Context()); !report.Clean() {
			t.Errorf("report %+v", report)
		}
	}
	close(quit)
	load.Wait()
	tr.CloseIdleConnections()
	srv.Stop(t.Context())
}
