package load

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// Each faulty server must be found, and counted as what it is. One stream at a
// time makes the counts exact.
func TestHTTP2Faults(t *testing.T) {
	type answer = func(p *h2peer, n int, r *h2request) bool
	tests := []struct {
		name   string
		answer answer
		cfg    Config
		want   func(*Result) *int64 // the counter that must have all failures
		failed int64                // of 10 requests
		detail string
		conns  int64 // 0: does not matter
	}{
		{
			name: "resets every second stream",
			answer: func(p *h2peer, n int, r *h2request) bool {
				if n%2 == 0 {
					p.WriteRSTStream(r.stream, http2.ErrCodeInternal)
				} else {
					p.good(r)
				}
				return true
			},
			want: func(r *Result) *int64 { return &r.StreamReset }, failed: 5, detail: "INTERNAL_ERROR", conns: 1,
		},
		{
			name: "resets in the answer",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
				p.WriteRSTStream(r.stream, http2.ErrCodeNo)
				return true
			},
			want: func(r *Result) *int64 { return &r.StreamReset }, failed: 10, detail: "NO_ERROR", conns: 1,
		},
		{
			name: "refuses each third stream by GOAWAY",
			answer: func(p *h2peer, n int, r *h2request) bool {
				if n < 3 {
					p.good(r)
				} else {
					p.WriteGoAway(r.stream-2, http2.ErrCodeNo, nil)
				}
				return true
			},
			want: func(r *Result) *int64 { return &r.GoAwayRefused }, failed: 3, detail: "names 3 as the last", conns: 4,
		},
		{
			name: "answers a stream that it has refused",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteGoAway(0, http2.ErrCodeNo, nil)
				p.good(r)
				return true
			},
			want: func(r *Result) *int64 { return &r.GoAwayRefused }, failed: 10,
		},
		{
			name: "lowers the last stream of its GOAWAY",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteGoAway(maxStreamID, http2.ErrCodeNo, nil)
				p.WriteGoAway(0, http2.ErrCodeNo, nil)
				return true
			},
			want: func(r *Result) *int64 { return &r.GoAwayRefused }, failed: 10, conns: 10,
		},
		{
			name: "raises the last stream of its GOAWAY",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteGoAway(1, http2.ErrCodeNo, nil)
				p.WriteGoAway(3, http2.ErrCodeNo, nil)
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "GOAWAY with last stream 3",
		},
		{
			name: "closes after a GOAWAY that promised the answer",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteGoAway(r.stream, http2.ErrCodeNo, nil)
				return false
			},
			want: func(r *Result) *int64 { return &r.EOFBeforeAnswer }, failed: 10,
		},
		{
			name:   "closes without GOAWAY",
			answer: func(p *h2peer, n int, r *h2request) bool { return false },
			want:   func(r *Result) *int64 { return &r.EOFBeforeAnswer }, failed: 10, conns: 10,
		},
		{
			name: "closes in the answer",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
				return false
			},
			want: func(r *Result) *int64 { return &r.EOFInAnswer }, failed: 10,
		},
		{
			name: "closes in a frame",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.conn.Write([]byte{0, 0, 9, 1, 4, 0})
				return false
			},
			want: func(r *Result) *int64 { return &r.EOFBeforeAnswer }, failed: 10,
		},
		{
			name: "resets the connection",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.conn.SetLinger(0)
				p.conn.Close()
				return false
			},
			want: func(r *Result) *int64 { return &r.Reset }, failed: 10,
		},
		{
			name:   "hangs",
			answer: func(p *h2peer, n int, r *h2request) bool { return true },
			cfg:    Config{Timeout: 10 * time.Millisecond},
			want:   func(r *Result) *int64 { return &r.Timeout }, failed: 10, detail: "no whole answer", conns: 10,
		},
		{
			name: "wrong id",
			answer: func(p *h2peer, n int, r *h2request) bool {
				r.id += "0"
				p.good(r)
				return true
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "X-Request-Id", conns: 1,
		},
		{
			name: "no id",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, true, ":status", "200")
				return true
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "seen 0 times",
		},
		{
			name: "id twice",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, true, ":status", "200", "x-request-id", r.id, "x-request-id", r.id)
				return true
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "seen 2 times",
		},
		{
			name: "one byte of the body differs",
			answer: func(p *h2peer, n int, r *h2request) bool {
				r.body[len(r.body)-1]++
				p.good(r)
				return true
			},
			cfg:  Config{PostRatio: 1, Seed: 3},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "differs",
		},
		{
			name: "body too short",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
				p.WriteData(r.stream, true, r.body[1:])
				return true
			},
			cfg:  Config{PostRatio: 1, Seed: 3},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10,
		},
		{
			name: "no body",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, true, ":status", "200", "x-request-id", r.id)
				return true
			},
			cfg:  Config{PostRatio: 1, Seed: 3},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "missing",
		},
		{
			name: "body too long",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
				p.WriteData(r.stream, false, r.body)
				p.WriteData(r.stream, true, []byte("x"))
				return true
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "longer",
		},
		{
			name: "wrong content length",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, false, ":status", "200", "x-request-id", r.id, "content-length", "5000")
				p.WriteData(r.stream, true, r.body)
				return true
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "5000 bytes instead of",
		},
		{
			name: "bad status",
			answer: func(p *h2peer, n int, r *h2request) bool {
				if n%2 == 0 {
					p.good(r)
					return true
				}
				p.head(r.stream, false, ":status", "503")
				p.WriteData(r.stream, true, []byte("busy"))
				return true
			},
			want: func(r *Result) *int64 { return &r.BadStatus }, failed: 5, detail: "status 503", conns: 1,
		},
		{
			name: "answers twice", // the second is charged to the next request
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.good(r)
				p.good(r)
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 5, detail: "after its end", conns: 5,
		},
		{
			name: "two headers",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
				p.head(r.stream, false, "a", "b")
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "a second header", conns: 1,
		},
		{
			name: "body without a header",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteData(r.stream, true, nil)
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "before the header", conns: 1,
		},
		{
			name: "no status",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, true, "x-request-id", r.id)
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "status", conns: 1,
		},
		{
			name: "header with capitals",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, true, ":status", "200", "X-Request-Id", r.id)
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "PROTOCOL_ERROR", conns: 1,
		},
		{
			name: "endless header",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, true, ":status", "200", "a", strings.Repeat("b", maxHeaderBytes))
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "header longer",
		},
		{
			name: "endless interim answers",
			answer: func(p *h2peer, n int, r *h2request) bool {
				for range maxInterim + 1 {
					p.head(r.stream, false, ":status", "103")
				}
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "11 interim", conns: 1,
		},
		{
			name: "switches protocols",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.head(r.stream, false, ":status", "101")
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "101",
		},
		{
			name: "a stream that was never opened",
			answer: func(p *h2peer, n int, r *h2request) bool {
				r.stream += 2
				p.good(r)
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "never opened", conns: 10,
		},
		{
			name: "a push",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WritePushPromise(http2.PushPromiseParam{StreamID: r.stream, PromiseID: 2, EndHeaders: true})
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "push",
		},
		{
			name: "a frame too long",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteData(r.stream, true, make([]byte, frameBytes+1))
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "frame longer",
		},
		{
			name: "rubbish for a header",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, r.stream, []byte{0xff, 0xff, 0xff, 0xff})
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "COMPRESSION_ERROR",
		},
		{
			name: "a window beyond all bounds",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteWindowUpdate(r.stream, maxWindow)
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "FLOW_CONTROL_ERROR",
		},
		{
			name: "an impossible setting",
			answer: func(p *h2peer, n int, r *h2request) bool {
				p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1})
				return true
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "setting",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Address = serveH2(t, nil, tt.answer)
			tt.cfg.HTTP2, tt.cfg.KeepAlive, tt.cfg.Streams, tt.cfg.MaxRequests = true, true, 1, 10
			res := runConnected(t, tt.cfg, tt.conns)
			if got := *tt.want(&res); got != tt.failed || res.Failed() != got || res.OK != 10-got {
				t.Errorf("want %d failures of that kind and no other: %v", tt.failed, res)
			}
			if tt.conns > 0 && res.Connects != tt.conns {
				t.Errorf("want %d connections: %v", tt.conns, res)
			}
			if len(res.FirstErrors) != int(tt.failed) || !strings.Contains(res.FirstErrors[0].Detail, tt.detail) {
				t.Errorf("samples %v, want %d with %q", res.FirstErrors, tt.failed, tt.detail)
			}
		})
	}
}

// What has no request to be charged to, and ends the connection, is the end
// without an announcement.
func TestHTTP2Reconnects(t *testing.T) {
	tests := []struct {
		name                  string
		answer                func(p *h2peer, n int, r *h2request) bool
		announced, unannouced int64
	}{
		{"GOAWAY", func(p *h2peer, n int, r *h2request) bool {
			p.WriteGoAway(r.stream, http2.ErrCodeNo, nil)
			p.good(r)
			return true
		}, 9, 0},
		{"GOAWAY, then closed", func(p *h2peer, n int, r *h2request) bool {
			p.WriteGoAway(r.stream, http2.ErrCodeNo, nil)
			p.good(r)
			return false
		}, 9, 0},
		{"GOAWAY with an error", func(p *h2peer, n int, r *h2request) bool {
			p.WriteGoAway(r.stream, http2.ErrCodeEnhanceYourCalm, nil)
			p.good(r)
			return true
		}, 0, 9},
		{"two GOAWAYs", func(p *h2peer, n int, r *h2request) bool {
			p.WriteGoAway(maxStreamID, http2.ErrCodeNo, nil)
			p.WriteGoAway(r.stream, http2.ErrCodeNo, nil)
			p.good(r)
			return true
		}, 9, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := serveH2(t, nil, tt.answer)
			res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 1, PostRatio: .5, MaxRequests: 10})
			if err := res.Err(); err != nil {
				t.Error(err)
			}
			if res.AnnouncedReconnects != tt.announced || res.UnannouncedReconnects != tt.unannouced || res.Reconnects() != 9 {
				t.Errorf("want %d announced and %d unannounced reconnects: %v", tt.announced, tt.unannouced, res)
			}
		})
	}
}

// A server that closes idle connections without GOAWAY fails those requests
// that are on their way, and is found out even if there is none.
func TestHTTP2IdleConnectionClosed(t *testing.T) {
	addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool {
		p.good(r)
		return false
	})
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 1, Think: 5 * time.Millisecond, MaxRequests: 30})
	if res.OK != res.Connects || res.EOFBeforeAnswer+res.Reset != res.Failed() {
		t.Errorf("want the first request of each connection answered: %v", res)
	}
	if res.UnannouncedReconnects != res.Connects-1 || res.AnnouncedReconnects != 0 || res.Connects < 2 {
		t.Errorf("want unannounced reconnects: %v", res)
	}
}

// All streams of a connection are charged with its end.
func TestHTTP2ConnectionLostWithStreamsOpen(t *testing.T) {
	addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool { return n < 5 })
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 5, MaxRequests: 20})
	if res.EOFBeforeAnswer != 20 || res.Connects != 4 || res.UnannouncedReconnects != 3 {
		t.Errorf("want 20 lost on 4 connections: %v", res)
	}
}

// A GOAWAY splits the streams of a connection into those that are answered and
// those that are not.
func TestHTTP2GoAwaySplitsStreams(t *testing.T) {
	addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool {
		if n < 4 {
			return true
		}
		p.WriteGoAway(3, http2.ErrCodeNo, nil)
		for _, stream := range []uint32{3, 1} {
			p.head(stream, true, ":status", "204")
		}
		return true
	})
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 4, MaxRequests: 12})
	if res.BadStatus != 6 || res.GoAwayRefused != 6 || res.AnnouncedReconnects != 2 {
		t.Errorf("want half of the streams refused: %v", res)
	}
}

// What was refused must not be answered all the same.
func TestHTTP2RefusedStreamIsAnswered(t *testing.T) {
	addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool {
		if n == 2 {
			p.WriteGoAway(1, http2.ErrCodeNo, nil)
			p.head(3, true, ":status", "200")
		}
		return true
	})
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 2, MaxRequests: 10})
	if res.GoAwayRefused != 5 || res.Malformed != 5 {
		t.Errorf("want half of the streams refused, the others malformed: %v", res)
	}
}

func TestHTTP2ServerThatSpeaksHTTP1(t *testing.T) {
	res := run(t, Config{Address: serveHTTP(t, echo), HTTP2: true, KeepAlive: true, Streams: 1, MaxRequests: 3})
	if res.Malformed != 3 || !strings.Contains(res.FirstErrors[0].Detail, "frame longer") {
		t.Errorf("want malformed answers: %v", res)
	}
	addr := serveConns(t, func(c *net.TCPConn) {
		io.WriteString(c, "\x00\x00\x08\x06\x00\x00\x00\x00\x00pingpong")
		io.Copy(io.Discard, c)
	})
	res = run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 1, MaxRequests: 3})
	if res.Malformed != 3 || !strings.Contains(res.FirstErrors[0].Detail, "begins with") {
		t.Errorf("want malformed answers: %v", res)
	}
}

func TestHTTP2NotNegotiated(t *testing.T) {
	for _, protos := range [][]string{nil, {"http/1.1"}} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		s.TLS = &tls.Config{NextProtos: protos}
		s.StartTLS()
		res := run(t, Config{Address: s.Listener.Addr().String(), TLS: &tls.Config{InsecureSkipVerify: true},
			HTTP2: true, KeepAlive: true, MaxRequests: 3})
		if res.DialFailed != 3 || res.Connects != 0 {
			t.Errorf("ALPN with %q: %v", protos, res)
		}
		s.Close()
	}
}

func TestHTTP2DialFaults(t *testing.T) {
	dial := func(context.Context) (net.Conn, error) { return nil, errors.New("no such host") }
	res := run(t, Config{Dial: dial, HTTP2: true, KeepAlive: true, Workers: 2, MaxRequests: 20})
	if res.DialFailed != 20 || res.Connects != 0 || res.FirstErrors[0].OnConn != 0 {
		t.Errorf("want 20 failed dials: %v", res)
	}
	hang := func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	res = run(t, Config{Dial: hang, HTTP2: true, KeepAlive: true, MaxRequests: 4, Timeout: 10 * time.Millisecond})
	if res.Timeout != 4 {
		t.Errorf("want 4 timeouts, of those that wait for the dialing one too: %v", res)
	}
}

// A server that answers early, and takes no more of the body, holds nobody up.
func TestHTTP2EarlyAnswer(t *testing.T) {
	early := func(status string) func(p *h2peer) {
		return func(p *h2peer) {
			p.keepWindows = true
			p.heard = func(f http2.Frame) bool {
				if h, is := f.(*http2.MetaHeadersFrame); is {
					p.head(h.StreamID, true, ":status", status)
				}
				return true
			}
		}
	}
	cfg := Config{HTTP2: true, KeepAlive: true, Streams: 2, PostRatio: 1, BodyMax: 8 << 20, Seed: 5, MaxRequests: 6, Timeout: time.Hour}
	cfg.Address = serveH2(t, early("413"), func(*h2peer, int, *h2request) bool { return true })
	if res := run(t, cfg); res.BadStatus != 6 || res.Connects != 1 {
		t.Errorf("want 6 bad answers on a connection: %v", res)
	}
}

func TestHTTP2AbortWithStreamsOpen(t *testing.T) {
	tests := map[string]func(t *testing.T, arrived chan bool) string{
		"waiting for answers": func(t *testing.T, arrived chan bool) string {
			return serveH2(t, nil, func(*h2peer, int, *h2request) bool { arrived <- true; return true })
		},
		"waiting for windows": func(t *testing.T, arrived chan bool) string {
			return serveH2(t, func(p *h2peer) {
				p.keepWindows = true
				p.heard = func(f http2.Frame) bool {
					if _, is := f.(*http2.MetaHeadersFrame); is {
						arrived <- true
					}
					return true
				}
			}, nil)
		},
		"the server reads nothing": func(t *testing.T, arrived chan bool) string {
			over := make(chan bool)
			addr := serveConns(t, func(c *net.TCPConn) {
				f := http2.NewFramer(c, nil)
				f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxWindow})
				f.WriteWindowUpdate(0, maxWindow-initialWindow)
				io.ReadFull(c, make([]byte, 1000)) // of a first request at least
				for range 4 {
					arrived <- true
				}
				<-over
			})
			t.Cleanup(func() { close(over) })
			return addr
		},
	}
	for name, serve := range tests {
		t.Run(name, func(t *testing.T) {
			arrived := make(chan bool, 4)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			r, err := Start(ctx, Config{Address: serve(t, arrived), HTTP2: true, KeepAlive: true, PostRatio: 1,
				BodyMax: 8 << 20, Seed: 3, MaxRequests: 4, Timeout: time.Hour, CloseWait: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			for range 4 {
				<-arrived
			}
			cancel()
			res := r.Wait()
			checkSum(t, res)
			if res.Aborted == 0 || res.Aborted != res.Requests {
				t.Errorf("want all aborted: %v", res)
			}
		})
	}
}

// Nothing that a server sends may cause a panic, or keep the client.
func FuzzAgainstHTTP2Server(f *testing.F) {
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	settings := "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	f.Add([]byte(settings + "\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88"))
	f.Add([]byte(settings + "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Add([]byte(settings + "\x00\x00\x04\x03\x00\x00\x00\x00\x03\x00\x00\x00\x08" + "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		res := run(t, Config{HTTP2: true, KeepAlive: true, Streams: 2, PostRatio: .5, MaxRequests: 4,
			Dial: func(context.Context) (net.Conn, error) {
				client, server := net.Pipe()
				go io.Copy(io.Discard, server)
				go func() {
					server.Write(b)
					server.Close()
				}()
				return client, nil
			}})
		if res.OK > 0 {
			t.Errorf("an answer whose id cannot have been known: %v", res)
		}
	})
}
