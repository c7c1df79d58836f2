package server

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// An h2Client is as much of an HTTP/2 client as it takes to see every frame.
type h2Client struct{ *client }

const (
	frameData  = 0
	frameReset = 3

	anyStream = 1<<31 - 1 // in the first GOAWAY
)

func newH2Client(c *client) h2Client {
	c.send("%s", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	h := h2Client{c}
	h.write(4, 0, 0, nil) // SETTINGS
	return h
}

func (h h2Client) write(kind, flags byte, stream uint32, payload []byte) {
	h.t.Helper()
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	b = binary.BigEndian.AppendUint32(append(b, flags), stream)
	if _, err := h.Write(append(b, payload...)); err != nil {
		h.t.Fatalf("write frame: %v", err)
	}
}

// request opens a stream with GET /.
func (h h2Client) request(stream uint32) {
	h.t.Helper()
	h.write(frameHeaders, 0x5, stream, []byte{0x82, 0x86, 0x84, 0x41, 1, 'x'})
}

// next answers PINGs and returns the next frame of HEADERS, DATA, RST_STREAM or
// GOAWAY.
func (h h2Client) next() (kind, flags byte, stream uint32, payload []byte) {
	h.t.Helper()
	for {
		var head [9]byte
		if _, err := io.ReadFull(h.br, head[:]); err != nil {
			h.t.Fatalf("read frame: %v", err)
		}
		payload = make([]byte, binary.BigEndian.Uint32(head[:])>>8)
		if _, err := io.ReadFull(h.br, payload); err != nil {
			h.t.Fatalf("read frame: %v", err)
		}
		kind, flags, stream = head[3], head[4], binary.BigEndian.Uint32(head[5:])
		switch kind {
		case frameData, frameHeaders, frameReset, frameGoAway:
			return kind, flags, stream, payload
		case framePing:
			if flags&flagAck == 0 {
				h.write(framePing, flagAck, 0, payload)
			}
		}
	}
}

// wantGoAway fails unless the next frame is a GOAWAY without error.
func (h h2Client) wantGoAway(last uint32) {
	h.t.Helper()
	kind, _, _, payload := h.next()
	if kind != frameGoAway {
		h.t.Fatalf("got frame of type %d, want GOAWAY", kind)
	}
	if got, code := binary.BigEndian.Uint32(payload), binary.BigEndian.Uint32(payload[4:]); got != last || code != 0 {
		h.t.Errorf("GOAWAY of stream %d, code %d; want stream %d, code 0", got, code, last)
	}
}

func h2cServer(h http.Handler) *Server {
	srv := newServer(h)
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

// This pins what the package relies on in net/http: that HTTP/2 connections
// belong to the http.Server on which HTTP/2 was set up, and get their GOAWAY
// when that one is shut down, at once and without a response being written.
func TestHTTP2GoAwayComesAtTheBeginningOfTheDrain(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for _, encrypted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			srv, ln := h2cServer(g), newPipeListener()
			h := newH2Client(dialH2(t, srv, ln, encrypted, serverTLS, clientTLS))
			h.request(1)
			<-g.entered
			h.request(3)
			<-g.entered
			if got := srv.Counts(); got.Active != 1 || got.Open() != 1 {
				t.Errorf("counts %+v", got)
			}
			stop := stopping(srv)
			h.wantGoAway(anyStream)
			h.wantGoAway(3)
			time.Sleep(30 * time.Second) // longer than Linger
			close(g.open)
			for ended := map[uint32]bool{}; len(ended) < 2; {
				kind, flags, stream, _ := h.next()
				if kind != frameHeaders && kind != frameData {
					t.Fatalf("got frame of type %d on stream %d", kind, stream)
				}
				if flags&1 != 0 {
					ended[stream] = true
				}
			}
			h.wantEOF()
			report := stop()
			wantReport(t, report, Report{Finished: 1})
			if report.Duration < 30*time.Second || report.Duration > 32*time.Second {
				t.Errorf("took %v", report.Duration)
			}
		})
	}
}

// Even where there is no linger time, it is net/http that closes the connection,
// a second after the GOAWAY.
func TestHTTP2IdleConnectionGetsGoAway(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for _, linger := range []time.Duration{20 * time.Second, -1} {
		for _, encrypted := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				srv, ln := h2cServer(http.HandlerFunc(hello)), newPipeListener()
				srv.Linger = linger
				h := newH2Client(dialH2(t, srv, ln, encrypted, serverTLS, clientTLS))
				h.request(1)
				for {
					if _, flags, _, _ := h.next(); flags&1 != 0 {
						break
					}
				}
				synctest.Wait()
				if got := srv.Counts(); got.Idle != 1 || got.Open() != 1 {
					t.Errorf("counts %+v", got)
				}
				stop := stopping(srv)
				h.wantGoAway(anyStream)
				h.wantGoAway(1)
				h.wantEOF()
				wantReport(t, stop(), Report{Finished: 1, Duration: farewellSettle + closeGrace})
			})
		}
	}
}

// dialH2 makes srv serve ln, with TLS or without, and connects to it.
func dialH2(t *testing.T, srv *Server, ln *pipeListener, encrypted bool, serverTLS, clientTLS *tls.Config) *client {
	t.Helper()
	if !encrypted {
		serve(t, srv, ln)
		return ln.dial(t)
	}
	srv.Protocols, srv.TLSConfig = nil, serverTLS
	serveTLS(t, srv, ln)
	config := clientTLS.Clone()
	config.NextProtos = []string{"h2"}
	return ln.dialTLS(t, config)
}

// A connection that becomes HTTP/2 during the drain is told so at once, is not
// refused anything, and leaves.
func TestHTTP2ConnectionThatComesLateGetsGoAwayToo(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for _, encrypted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			srv, ln := h2cServer(http.HandlerFunc(hello)), newPipeListener()
			var c *client
			if encrypted {
				srv.Protocols, srv.TLSConfig = nil, serverTLS
				serveTLS(t, srv, ln)
				c = ln.dial(t)
			} else {
				serve(t, srv, ln)
				c = ln.dial(t)
			}
			stop := stopping(srv)
			time.Sleep(3 * time.Second)
			if encrypted {
				config := clientTLS.Clone()
				config.NextProtos = []string{"h2"}
				c = newClient(t, tls.Client(c.Conn, config))
			}
			h := newH2Client(c)
			h.wantGoAway(anyStream)
			h.request(1)
			for ended := false; !ended; {
				kind, flags, _, _ := h.next()
				if kind != frameHeaders && kind != frameData {
					t.Fatalf("got frame of type %d", kind)
				}
				ended = flags&1 != 0
			}
			h.wantGoAway(1)
			h.wantEOF()
			wantReport(t, stop(), Report{Finished: 1, Duration: 3*time.Second + farewellSettle + closeGrace})
		})
	}
}

func TestHTTP2HandlerThatMissesTheKillTimeoutIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		srv, ln := h2cServer(g), newPipeListener()
		serve(t, srv, ln)
		h := newH2Client(ln.dial(t))
		go io.Copy(io.Discard, h.br)
		h.request(1)
		h.request(3)
		<-g.entered
		<-g.entered
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1, Remaining: 2, Duration: 90 * time.Second})
		close(g.open)
	})
}

// With net/http's own client over TCP: the streams that are open finish, and
// the next request goes to the successor.
func TestHTTP2ClientMovesToTheNextServer(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for name, encrypted := range map[string]bool{"TLS": true, "unencrypted": false} {
		t.Run(name, func(t *testing.T) {
			g := newGate()
			named := func(name string) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Server", name)
					if r.URL.Path == "/wait" {
						g.ServeHTTP(w, r)
					}
				})
			}
			var lns []net.Listener
			var servers []*Server
			for _, name := range []string{"old", "new"} {
				srv, ln := h2cServer(named(name)), listenTCP(t)
				srv.ErrorLog = discardLog // the transport may give up a dial that it does not need
				if encrypted {
					srv.Protocols, srv.TLSConfig = nil, serverTLS.Clone()
					serveTLS(t, srv, ln)
				} else {
					serve(t, srv, ln)
				}
				servers, lns = append(servers, srv), append(lns, ln)
				t.Cleanup(func() { srv.Close() })
			}
			var current atomic.Int32
			tr := &http.Transport{TLSClientConfig: clientTLS, Protocols: new(http.Protocols)}
			tr.Protocols.SetHTTP2(encrypted)
			tr.Protocols.SetUnencryptedHTTP2(!encrypted)
			tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, lns[current.Load()].Addr().String())
			}
			defer tr.CloseIdleConnections()
			url := map[bool]string{true: "https://example.com", false: "http://example.com"}[encrypted]
			get := func(path string) (string, error) {
				resp, err := (&http.Client{Transport: tr}).Get(url + path)
				if err != nil {
					return "", err
				}
				defer resp.Body.Close()
				_, err = io.Copy(io.Discard, resp.Body)
				if resp.ProtoMajor != 2 {
					t.Errorf("%s answered with %s", path, resp.Proto)
				}
				return resp.Header.Get("Server"), err
			}
			type answer struct {
				from string
				err  error
			}
			answers := make(chan answer, 10)
			for range 10 {
				go func() {
					from, err := get("/wait")
					answers <- answer{from, err}
				}()
			}
			for range 10 {
				<-g.entered
			}
			current.Store(1)
			stop := stopping(servers[0])
			eventually(t, "requests go to the new server", func() bool {
				from, err := get("/")
				if err != nil {
					t.Fatal(err)
				}
				return from == "new"
			})
			close(g.open)
			for range 10 {
				if a := <-answers; a.err != nil || a.from != "old" {
					t.Errorf("open stream answered by %q, %v", a.from, a.err)
				}
			}
			if report := stop(); !report.Clean() {
				t.Errorf("report %+v", report)
			}
		})
	}
}

// How a user has set up HTTP/2 is respected.
func TestHTTP2Settings(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	only := func(set ...func(*http.Protocols)) *http.Protocols {
		p := new(http.Protocols)
		for _, f := range set {
			f(p)
		}
		return p
	}
	http1 := func(p *http.Protocols) { p.SetHTTP1(true) }
	http2 := func(p *http.Protocols) { p.SetHTTP2(true) }
	for _, tt := range []struct {
		name string
		set  func(*http.Server)
		want string
	}{
		{"default", func(*http.Server) {}, "h2"},
		{"empty TLSNextProto", func(s *http.Server) {
			s.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		}, "http/1.1"},
		{"HTTP/1 only", func(s *http.Server) { s.Protocols = only(http1) }, "http/1.1"},
		{"HTTP/2 only", func(s *http.Server) { s.Protocols = only(http2) }, "h2"},
		{"own NextProtos", func(s *http.Server) { s.TLSConfig.NextProtos = []string{"http/1.1", "h2"} }, "http/1.1"},
		{"own protocol", func(s *http.Server) {
			s.TLSConfig.NextProtos = []string{"own"}
			s.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
				"own": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
					io.WriteString(c, "own protocol\n")
					io.Copy(io.Discard, c)
				},
			}
		}, "own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
				srv.TLSConfig = serverTLS.Clone()
				tt.set(&srv.Server)
				protos := len(srv.TLSConfig.NextProtos)
				serveTLS(t, srv, ln)
				config := clientTLS.Clone()
				config.NextProtos = []string{"own", "h2", "http/1.1"}
				c := ln.dialTLS(t, config)
				if got := c.Conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != tt.want {
					t.Errorf("negotiated %q, want %q", got, tt.want)
				}
				if tt.want == "own" {
					if line, _ := c.br.ReadString('\n'); line != "own protocol\n" {
						t.Errorf("got %q", line)
					}
					if got := srv.Counts(); got.Active != 1 {
						t.Errorf("counts %+v", got)
					}
				}
				if len(srv.TLSConfig.NextProtos) != protos {
					t.Errorf("the user's TLSConfig was changed")
				}
				c.Close()
				srv.Stop(t.Context())
			})
		})
	}
}
