package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCorrectServer(t *testing.T) {
	tests := []struct {
		name string
		cfg  Config
	}{
		{"keep-alive", Config{Workers: 8, KeepAlive: true, MaxRequests: 2000}},
		{"keep-alive, post", Config{Workers: 8, KeepAlive: true, PostRatio: .5, BodyMax: 20_000, MaxRequests: 1000}},
		{"keep-alive, think", Config{Workers: 8, KeepAlive: true, Think: time.Millisecond, MaxRequests: 200}},
		{"connection each", Config{Workers: 4, MaxRequests: 300}},
		{"connection each, post", Config{Workers: 4, PostRatio: 1, MaxRequests: 300}},
		{"large bodies", Config{Workers: 2, KeepAlive: true, PostRatio: 1, BodyMax: 3 << 20, MaxRequests: 20}},
		{"open loop", Config{Workers: 4, KeepAlive: true, Rate: 2000, MaxRequests: 200}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Address = serveHTTP(t, echo)
			res := run(t, tt.cfg)
			if err := res.Err(); err != nil {
				t.Fatal(err)
			}
			if res.Requests != tt.cfg.MaxRequests || res.Generations["1"] != res.Requests {
				t.Errorf("want %d requests, all of generation 1: %v", tt.cfg.MaxRequests, res)
			}
			wantConns := res.Requests
			if tt.cfg.KeepAlive {
				wantConns = int64(tt.cfg.Workers)
			}
			// A worker for which no request was left has no connection.
			if res.Connects > wantConns || !tt.cfg.KeepAlive && res.Connects != wantConns {
				t.Errorf("%d connections, want %d", res.Connects, wantConns)
			}
			if res.AnnouncedReconnects+res.UnannouncedReconnects+res.LeftOpen != 0 {
				t.Errorf("reconnects of a server that closes nothing: %v", res)
			}
			if posts := res.Posts; (posts == 0) != (tt.cfg.PostRatio == 0) || (posts == res.Requests) != (tt.cfg.PostRatio == 1) {
				t.Errorf("%d of %d are posts, want a share of %v", posts, res.Requests, tt.cfg.PostRatio)
			}
		})
	}
}

func TestRequestsAsTheServerSeesThem(t *testing.T) {
	var mu sync.Mutex
	ids := make(map[string]bool)
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		id := r.Header.Get("X-Request-Id")
		if ids[id] {
			t.Errorf("id %q twice", id)
		}
		ids[id] = true
		mu.Unlock()
		if r.Close || r.URL.Path != "/there" || r.Host != "name" {
			t.Errorf("close %v, path %q, host %q", r.Close, r.URL.Path, r.Host)
		}
		echo(w, r)
	})
	res := run(t, Config{Address: addr, Path: "/there", Host: "name", KeepAlive: true, Workers: 4, MaxRequests: 400})
	if err := res.Err(); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 400 {
		t.Errorf("%d ids", len(ids))
	}
}

func TestUnixAndTLS(t *testing.T) {
	t.Run("unix", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "load")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "s")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(echo)}}
		s.Start()
		defer s.Close()
		if err := run(t, Config{Network: "unix", Address: path, KeepAlive: true, MaxRequests: 50}).Err(); err != nil {
			t.Error(err)
		}
	})
	t.Run("tls", func(t *testing.T) {
		s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		defer s.Close()
		roots := s.Client().Transport.(*http.Transport).TLSClientConfig
		for _, keep := range []bool{true, false} {
			res := run(t, Config{Address: s.Listener.Addr().String(), TLS: roots, KeepAlive: keep,
				Workers: 2, PostRatio: .5, MaxRequests: 50})
			if err := res.Err(); err != nil {
				t.Error(err)
			}
		}
		res := run(t, Config{Address: s.Listener.Addr().String(), TLS: &tls.Config{}, MaxRequests: 1})
		if res.DialFailed != 1 {
			t.Errorf("a certificate nobody knows was accepted: %v", res)
		}
	})
}

func TestAnnouncedClose(t *testing.T) {
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		echo(w, r)
	})
	res := run(t, Config{Address: addr, KeepAlive: true, MaxRequests: 20})
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if res.AnnouncedReconnects != 19 || res.UnannouncedReconnects != 0 || res.Connects != 20 {
		t.Errorf("want 20 connections, all but the first an announced reconnect: %v", res)
	}
}

func TestLeftOpen(t *testing.T) {
	addr := serveRaw(t, func(c *net.TCPConn, _ int, id string, body []byte) bool {
		c.Write([]byte(good(id, body)))
		return true // although the client has said close
	})
	res := run(t, Config{Address: addr, MaxRequests: 2, CloseWait: 10 * time.Millisecond})
	if res.OK != 2 || res.LeftOpen != 2 {
		t.Errorf("want 2 left open: %v", res)
	}
}

func TestGenerations(t *testing.T) {
	var n atomic.Int64
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", r.Header.Get("X-Request-Id"))
		gens := []string{"1", "1", "2", "10", "2", "2"}
		w.Header().Set("Handoverd-Generation", gens[n.Add(1)-1])
	})
	res := run(t, Config{Address: addr, MaxRequests: 6})
	if err := res.Err(); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, s := range res.GenerationsSeen {
		order = append(order, fmt.Sprint(s.Generation, ":", res.Generations[s.Generation]))
		if s.Last.Before(s.First) {
			t.Errorf("generation %s ends before it begins", s.Generation)
		}
	}
	if got := strings.Join(order, " "); got != "1:2 2:3 10:1" {
		t.Errorf("generations %q", got)
	}
	if res.WentBack != 2 {
		t.Errorf("went back %d times, want 2", res.WentBack)
	}
}

func TestDuration(t *testing.T) {
	addr := serveHTTP(t, echo)
	begin := time.Now()
	res := run(t, Config{Address: addr, KeepAlive: true, Duration: 50 * time.Millisecond})
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d < 50*time.Millisecond || res.Elapsed < 50*time.Millisecond {
		t.Errorf("ended after %v", d)
	}
}

func TestStopFinishesRequestsInFlight(t *testing.T) {
	arrived, release := make(chan bool, 4), make(chan bool)
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- true
		<-release
		echo(w, r)
	})
	r, err := Start(context.Background(), Config{Address: addr, Workers: 4, KeepAlive: true, MaxRequests: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		<-arrived
	}
	stopped := make(chan Result)
	go func() { stopped <- r.Stop() }()
	<-r.halt
	select {
	case <-stopped:
		t.Error("stopped before the answers")
	default:
	}
	close(release)
	res := <-stopped
	checkSum(t, res)
	if res.Requests != 4 || res.OK != 4 {
		t.Errorf("want 4 requests, all answered: %v", res)
	}
	if again := r.Stop(); again.OK != 4 || again.Elapsed != res.Elapsed {
		t.Errorf("a second Stop differs: %v", again)
	}
}

func TestEndOfContextAborts(t *testing.T) {
	arrived := make(chan bool, 4)
	done := make(chan bool)
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- true
		<-done
	})
	defer close(done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := Start(ctx, Config{Address: addr, Workers: 4, KeepAlive: true, MaxRequests: 1000, Timeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		<-arrived
	}
	cancel()
	res := r.Wait()
	checkSum(t, res)
	if res.Requests != 4 || res.Aborted != 4 || res.Failed() != 0 {
		t.Errorf("want 4 aborted: %v", res)
	}
	if res.Err() == nil {
		t.Error("a run without any answer passes")
	}
}

func TestAbortInDial(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dialing := make(chan bool)
	r, err := Start(ctx, Config{MaxRequests: 1, Dial: func(ctx context.Context) (net.Conn, error) {
		close(dialing)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	<-dialing
	cancel()
	if res := r.Wait(); res.Aborted != 1 {
		t.Errorf("want 1 aborted: %v", res)
	}
}

// A client that leaves the close to the server does not keep an aborted run.
func TestAbortBeforeTheClose(t *testing.T) {
	answered := make(chan bool)
	addr := serveRaw(t, func(c *net.TCPConn, _ int, id string, body []byte) bool {
		c.Write([]byte(good(id, body)))
		close(answered)
		return true // although the client has said close
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := Start(ctx, Config{Address: addr, MaxRequests: 1, Timeout: time.Hour, CloseWait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	<-answered
	cancel()
	res := r.Wait()
	checkSum(t, res)
	if res.OK+res.Aborted != 1 || res.LeftOpen != 0 {
		t.Errorf("want one request: %v", res)
	}
}

func TestOpenLoopCountsTheWait(t *testing.T) {
	// One worker, four requests due at once, and each answer takes a while: in
	// an open loop the last one has waited for three others.
	const each = 20 * time.Millisecond
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		<-time.After(each)
		echo(w, r)
	})
	res := run(t, Config{Address: addr, KeepAlive: true, Rate: 1e6, MaxRequests: 4})
	if m := res.Latency.Max(); m < 4*each {
		t.Errorf("longest latency %v, want at least %v", m, 4*each)
	}
}

func TestSnapshotIsLive(t *testing.T) {
	next := make(chan bool)
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		<-next
		echo(w, r)
	})
	r, err := Start(context.Background(), Config{Address: addr, KeepAlive: true, MaxRequests: 100})
	if err != nil {
		t.Fatal(err)
	}
	next <- true
	next <- true // the first answer was counted before this request was sent
	if s := r.Snapshot(); s.OK < 1 || s.OK > 2 || s.Workers != 1 {
		t.Errorf("snapshot after one answer: %v", s)
	}
	close(next)
	if res := r.Wait(); res.OK != 100 || r.Snapshot().OK != 100 {
		t.Errorf("final: %v", res)
	}
}

func TestSourceAddrs(t *testing.T) {
	var mu sync.Mutex
	from := make(map[string]int)
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		mu.Lock()
		from[host]++
		mu.Unlock()
		echo(w, r)
	})
	res := run(t, Config{Address: addr, Workers: 2, SourceAddrs: 3, MaxRequests: 60})
	if res.ClientFault > 0 {
		t.Skipf("this system has no 127.0.0.2: %v", res)
	}
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	for i := 1; i <= 3; i++ {
		if host := "127.0.0." + strconv.Itoa(i); from[host] < 10 {
			t.Errorf("%d connections from %s", from[host], host)
		}
	}
}

func TestSeedRepeats(t *testing.T) {
	record := func(seed uint64) string {
		var all strings.Builder
		addr := serveRaw(t, func(c *net.TCPConn, _ int, id string, body []byte) bool {
			fmt.Fprintf(&all, "%s %x\n", id, body)
			c.Write([]byte(good(id, body)))
			return true
		})
		run(t, Config{Address: addr, KeepAlive: true, PostRatio: .5, BodyMax: 100, MaxRequests: 20, Seed: seed})
		return all.String()
	}
	if a, b := record(7), record(7); a != b {
		t.Errorf("one seed, two sequences:\n%s\n%s", a, b)
	}
	if record(7) == record(8) {
		t.Error("two seeds, one sequence")
	}
}

func TestConfigErrors(t *testing.T) {
	base := Config{Address: "127.0.0.1:1", MaxRequests: 1}
	tests := []struct {
		want   string
		change func(*Config)
	}{
		{"neither Address nor Dial", func(c *Config) { c.Address = "" }},
		{"no end", func(c *Config) { c.MaxRequests = 0 }},
		{"negative", func(c *Config) { c.Think = -1 }},
		{"negative", func(c *Config) { c.Duration = -1 }},
		{"workers", func(c *Config) { c.Workers = -1 }},
		{"post ratio", func(c *Config) { c.PostRatio = 1.1 }},
		{"rate", func(c *Config) { c.Rate = -1 }},
		{"longest body", func(c *Config) { c.BodyMax = -1 }},
		{"path", func(c *Config) { c.Path = "echo" }},
		{"host", func(c *Config) { c.Host = "a\r\nb" }},
		{"network", func(c *Config) { c.Network = "udp" }},
		{"source addresses", func(c *Config) { c.SourceAddrs, c.Address = 2, "192.0.2.1:80" }},
		{"source addresses", func(c *Config) { c.SourceAddrs = 1000 }},
		{"negative", func(c *Config) { c.CutPause = -1 }},
		{"negative", func(c *Config) { c.CloseWait = -1 }},
		{"negative", func(c *Config) { c.CutBytes = -1 }},
		{"cut ratio", func(c *Config) { c.CutRatio = math.NaN() }},
		{"pipeline ratio", func(c *Config) { c.PipelineRatio = 2 }},
		{"needs HTTP/1.1 and KeepAlive", func(c *Config) { c.PipelineRatio = 1 }},
		{"needs HTTP/1.1 and KeepAlive", func(c *Config) { c.PipelineRatio, c.KeepAlive, c.HTTP2 = 1, true, true }},
		{"streams", func(c *Config) { c.Streams = 2 }},
		{"streams", func(c *Config) { c.Streams, c.HTTP2 = 1000, true }},
		{"longer than", func(c *Config) { c.Path = "/" + strings.Repeat("a", 10_000) }},
	}
	for _, tt := range tests {
		cfg := base
		tt.change(&cfg)
		if _, err := Start(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want one about %q", err, tt.want)
		}
	}
}

func BenchmarkKeepAlive(b *testing.B) {
	addr := serveHTTP(b, echo)
	b.ReportAllocs()
	b.ResetTimer()
	res := run(b, Config{Address: addr, KeepAlive: true, Workers: 64, MaxRequests: int64(b.N)})
	if err := res.Err(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(res.OK)/res.Elapsed.Seconds(), "req/s")
}

func BenchmarkConnectionEach(b *testing.B) {
	addr := serveHTTP(b, echo)
	res := run(b, Config{Address: addr, Workers: 64, SourceAddrs: 8, MaxRequests: int64(b.N)})
	if err := res.Err(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(res.OK)/res.Elapsed.Seconds(), "req/s")
}
