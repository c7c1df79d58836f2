package load

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestHTTP2CorrectServer(t *testing.T) {
	tests := map[string]Config{
		"keep-alive":        {Workers: 4, KeepAlive: true, MaxRequests: 2000},
		"one stream":        {Workers: 4, KeepAlive: true, Streams: 1, PostRatio: .5, MaxRequests: 300},
		"many streams":      {Workers: 2, KeepAlive: true, Streams: 100, PostRatio: .5, MaxRequests: 1000},
		"long bodies":       {Workers: 2, KeepAlive: true, PostRatio: 1, BodyMax: 3 << 20, MaxRequests: 16},
		"connection each":   {Workers: 2, PostRatio: .5, MaxRequests: 200},
		"think":             {Workers: 2, KeepAlive: true, Think: time.Millisecond, MaxRequests: 100},
		"open loop":         {Workers: 2, KeepAlive: true, Rate: 2000, MaxRequests: 200},
		"in pieces":         {Workers: 2, KeepAlive: true, CutRatio: .5, CutPause: time.Millisecond, PostRatio: .5, MaxRequests: 100},
		"byte by byte":      {Workers: 2, KeepAlive: true, CutRatio: 1, CutBytes: 1, PostRatio: .5, BodyMax: 50, MaxRequests: 50},
		"each byte by byte": {Workers: 2, CutRatio: 1, CutBytes: 1, MaxRequests: 20},
	}
	for name, cfg := range tests {
		t.Run(name, func(t *testing.T) {
			var ledger Ledger
			cfg.HTTP2 = true
			cfg.Address = serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 2 || r.Host != cfg.Address || r.URL.Path != "/echo" {
					t.Errorf("%s request for %s at %s", r.Proto, r.URL, r.Host)
				}
				w.Header().Set("Handoverd-Generation", "1")
				ledger.ServeHTTP(w, r)
			})
			res := run(t, cfg)
			if err := res.Err(); err != nil {
				t.Fatal(err)
			}
			if res.Requests != cfg.MaxRequests || res.Generations["1"] != res.Requests || res.Workers != cfg.Workers {
				t.Errorf("want %d requests, all of generation 1: %v", cfg.MaxRequests, res)
			}
			if cfg.KeepAlive && res.Connects > int64(cfg.Workers) || !cfg.KeepAlive && res.Connects != res.Requests {
				t.Errorf("%d connections", res.Connects)
			}
			if res.Reconnects() != 0 || (res.Cut > 0) != (cfg.CutRatio > 0) {
				t.Errorf("want no reconnects, and writes cut if they should be: %v", res)
			}
			if r := ledger.Report(); r.Seen != res.Requests || r.Duplicated != 0 || r.Foreign != 0 {
				t.Errorf("the server saw %+v", r)
			}
		})
	}
}

func TestHTTP2WithTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig
	for _, keep := range []bool{true, false} {
		res := run(t, Config{Address: s.Listener.Addr().String(), TLS: roots, HTTP2: true, KeepAlive: keep,
			Workers: 2, PostRatio: .5, CutRatio: .2, MaxRequests: 50})
		if err := res.Err(); err != nil {
			t.Error(err)
		}
	}
}

func TestHTTP2StreamsAreOpenTogether(t *testing.T) {
	const streams = 7
	var together sync.WaitGroup
	together.Add(streams)
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		together.Done()
		together.Wait()
		echo(w, r)
	})
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: streams, MaxRequests: streams})
	if err := res.Err(); err != nil || res.Connects != 1 {
		t.Errorf("want %d streams at once on a connection: %v", streams, res)
	}
}

// A server that announces the end as RFC 9113 says fails nothing: a first
// GOAWAY refuses no stream, a second names the last one that was opened before
// the client has answered a PING.
func TestHTTP2GracefulGoAway(t *testing.T) {
	acks := make(chan bool, 400)
	addr := serveH2(t, func(p *h2peer) {
		last := uint32(0)
		p.heard = func(f http2.Frame) bool {
			switch f := f.(type) {
			case *http2.MetaHeadersFrame:
				last = f.StreamID
			case *http2.PingFrame:
				if f.IsAck() && string(f.Data[:]) == "farewell" {
					acks <- true
					p.WriteGoAway(last, http2.ErrCodeNo, nil)
				}
			}
			return true
		}
	}, func(p *h2peer, n int, r *h2request) bool {
		if n == 10 {
			p.WriteGoAway(maxStreamID, http2.ErrCodeNo, nil)
			p.WritePing(false, [8]byte([]byte("farewell")))
		}
		p.good(r)
		return true
	})
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Workers: 2, PostRatio: .5, BodyMax: 500, MaxRequests: 400})
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if res.AnnouncedReconnects < 10 || res.UnannouncedReconnects != 0 {
		t.Errorf("want announced reconnects only: %v", res)
	}
	for i := range res.AnnouncedReconnects {
		select {
		case <-acks:
		case <-time.After(time.Minute):
			t.Fatalf("%d PINGs of %d were answered", i, res.AnnouncedReconnects)
		}
	}
}

// When a GOAWAY has come the next stream is on another connection, even though
// the old one still has streams.
func TestHTTP2GoAwayDoesNotWaitForSlowStreams(t *testing.T) {
	var mu sync.Mutex // of what follows, and of writing on the first connection
	var slow *h2request
	var on *h2peer
	over := make(chan bool)
	addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool {
		mu.Lock()
		defer mu.Unlock()
		if slow == nil {
			slow, on = r, p
			p.WriteGoAway(maxStreamID, http2.ErrCodeNo, nil)
			return true
		}
		p.good(r)
		if p != on && n == 20 {
			close(over)
		}
		return true
	})
	r, err := Start(context.Background(), Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 2, MaxRequests: 1000})
	if err != nil {
		t.Fatal(err)
	}
	<-over
	mu.Lock()
	on.good(slow)
	mu.Unlock()
	res := r.Stop()
	checkSum(t, res)
	if err := res.Err(); err != nil || res.AnnouncedReconnects != 1 || res.Connects != 2 {
		t.Errorf("want one announced reconnect: %v", res)
	}
}

// The client sends no more than the server lets it, on a stream and on the
// connection, also when the server changes its mind.
func TestHTTP2FlowControlIsObeyed(t *testing.T) {
	windows := []int{0, 100} // of a stream in the beginning, one after the other
	addr := serveH2(t, func(p *h2peer) {
		set := func(n int) http2.Setting {
			return http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(n)}
		}
		p.settings = []http2.Setting{set(windows[0])}
		p.keepWindows = true
		acked, initial := 0, initialWindow // as far as the client has said that it knows
		left := make(map[uint32]int)       // of streams whose end has not come
		conn := initialWindow
		grant := func(stream uint32) {
			if n := 7 - left[stream]; n >= 7 {
				left[stream] += n
				p.WriteWindowUpdate(stream, uint32(n))
			}
		}
		p.heard = func(f http2.Frame) bool {
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					break
				}
				// What is open gets the difference, and has less than nothing
				// then if need be (RFC 9113, section 6.9.2).
				change := windows[acked] - initial
				initial += change
				if acked++; acked < len(windows) {
					p.WriteSettings(set(windows[acked]))
				}
				for stream := range left {
					left[stream] += change
					grant(stream)
				}
			case *http2.MetaHeadersFrame:
				if !f.StreamEnded() {
					left[f.StreamID] = initial
				}
			case *http2.DataFrame:
				left[f.StreamID] -= len(f.Data())
				conn -= len(f.Data())
				if len(f.Data()) > 0 && (left[f.StreamID] < 0 || conn < 0) {
					t.Errorf("stream %d is %d bytes within its window, the connection %d", f.StreamID, left[f.StreamID], conn)
					return false
				}
				if f.StreamEnded() {
					delete(left, f.StreamID)
				} else {
					grant(f.StreamID)
				}
				if conn < 100 {
					conn += 500
					p.WriteWindowUpdate(0, 500)
				}
			}
			return true
		}
	}, func(p *h2peer, n int, r *h2request) bool { p.good(r); return true })
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, PostRatio: 1, BodyMax: 2000, MaxRequests: 200})
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if res.SentBytes < 2*initialWindow {
		t.Errorf("only %d bytes were sent", res.SentBytes)
	}
}

func TestHTTP2StreamLimitIsObeyed(t *testing.T) {
	const limit = 2
	most := 0
	var held []*h2request // until a PING is answered, which is time to open one too many
	addr := serveH2(t, func(p *h2peer) {
		p.settings = []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: limit}}
		acked, since := false, uint32(0) // the first stream that was opened with the limit known
		p.heard = func(f http2.Frame) bool {
			switch f := f.(type) {
			case *http2.SettingsFrame:
				acked = acked || f.IsAck()
			case *http2.PingFrame:
				for _, r := range held {
					p.good(r)
				}
				held = nil
			case *http2.MetaHeadersFrame:
				if acked && since == 0 {
					since = f.StreamID
				}
				open := 1
				for _, r := range held {
					if r.stream >= since {
						open++
					}
				}
				if acked {
					most = max(most, open)
				}
			}
			return true
		}
	}, func(p *h2peer, n int, r *h2request) bool {
		held = append(held, r)
		p.WritePing(false, [8]byte{})
		return true
	})
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 8, MaxRequests: 300})
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if most == 0 || most > limit {
		t.Errorf("%d streams were open, the limit is %d", most, limit)
	}
}

// Unusual but correct answers are no faults.
func TestHTTP2UnusualAnswers(t *testing.T) {
	answers := map[string]func(p *h2peer, r *h2request){
		"interim": func(p *h2peer, r *h2request) {
			p.head(r.stream, false, ":status", "100")
			p.head(r.stream, false, ":status", "103", "link", "</a>")
			p.good(r)
		},
		"trailers": func(p *h2peer, r *h2request) {
			p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
			p.WriteData(r.stream, false, r.body)
			p.head(r.stream, true, "digest", "x")
		},
		"empty frames": func(p *h2peer, r *h2request) {
			p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
			for i := range r.body {
				p.WriteData(r.stream, false, r.body[i:i+1])
				p.WriteData(r.stream, false, nil)
			}
			p.WriteData(r.stream, true, nil)
		},
		"padding": func(p *h2peer, r *h2request) {
			p.head(r.stream, false, ":status", "200", "x-request-id", r.id)
			p.WriteDataPadded(r.stream, true, r.body, make([]byte, 200))
		},
		"continuation": func(p *h2peer, r *h2request) {
			p.head(r.stream, false, ":status", "103") // leaves its block
			p.block.Reset()
			p.hpack.WriteField(hpackField(":status", "200"))
			p.hpack.WriteField(hpackField("x-request-id", r.id))
			b := p.block.Bytes()
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: r.stream, BlockFragment: b[:1]})
			p.WriteContinuation(r.stream, true, b[1:])
			p.WriteData(r.stream, true, r.body)
		},
		"other frames": func(p *h2peer, r *h2request) {
			p.WritePing(false, [8]byte{1})
			p.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(r.stream % 100)})
			p.WriteRawFrame(0xfe, 0, r.stream, []byte("unknown"))
			p.WriteRawFrame(http2.FramePriority, 0, r.stream, make([]byte, 5))
			p.good(r)
			p.WriteRSTStream(r.stream, http2.ErrCodeNo) // the answer is over, so nothing is lost
			p.WriteWindowUpdate(r.stream, 1)
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool { answer(p, r); return true })
			res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, PostRatio: .7, BodyMax: 300, MaxRequests: 200})
			if err := res.Err(); err != nil || res.Connects != 1 {
				t.Errorf("%v", res)
			}
		})
	}
}

func TestHTTP2TimeoutRetiresTheConnection(t *testing.T) {
	addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool {
		if n != 1 {
			p.good(r)
		}
		return true
	})
	res := runConnected(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 1, MaxRequests: 5, Timeout: 20 * time.Millisecond}, 5)
	if res.Timeout != 5 || res.Connects != 5 || res.Reconnects() != 0 {
		t.Errorf("want a connection each, ended by the client: %v", res)
	}
}

func TestHTTP2StopFinishesRequestsInFlight(t *testing.T) {
	arrived, release := make(chan bool, 8), make(chan bool)
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- true
		<-release
		echo(w, r)
	})
	r, err := Start(context.Background(), Config{Address: addr, HTTP2: true, KeepAlive: true, Workers: 2, MaxRequests: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		<-arrived
	}
	stopped := make(chan Result)
	go func() { stopped <- r.Stop() }()
	<-r.halt
	close(release)
	res := <-stopped
	checkSum(t, res)
	if res.Requests != 8 || res.OK != 8 {
		t.Errorf("want 8 requests, all answered: %v", res)
	}
}

func TestHTTP2Generations(t *testing.T) {
	gens := []string{"1", "10", "2", "2"}
	addr := serveH2(t, nil, func(p *h2peer, n int, r *h2request) bool {
		if n == 3 { // the next stream is not opened before the answer, so none crosses it
			p.WriteGoAway(r.stream, http2.ErrCodeNo, nil)
		}
		p.head(r.stream, true, ":status", "200", "x-request-id", r.id, "handoverd-generation", gens[p.number-1])
		return true
	})
	res := run(t, Config{Address: addr, HTTP2: true, KeepAlive: true, Streams: 1, MaxRequests: 12})
	got := ""
	for _, s := range res.GenerationsSeen {
		got += s.Generation + ":" + strconv.FormatInt(res.Generations[s.Generation], 10) + " "
	}
	if res.OK != 12 || got != "1:3 10:3 2:6 " || res.WentBack != 2 {
		t.Errorf("generations %s: %v", got, res)
	}
}

func BenchmarkHTTP2(b *testing.B) {
	addr := serveH2C(b, echo)
	b.ReportAllocs()
	b.ResetTimer()
	res := run(b, Config{Address: addr, HTTP2: true, KeepAlive: true, Workers: 16, MaxRequests: int64(b.N)})
	if err := res.Err(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(res.OK)/res.Elapsed.Seconds(), "req/s")
}
