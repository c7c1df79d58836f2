package load

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestCutsCoverEverything(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, most := range []int{0, 1, 2, 7, 1000} {
		inHead, byteOfHead := 0, make(map[int]bool)
		for range 2000 {
			head, body := 60, rng.IntN(1000)
			batch := []request{{bytes: make([]byte, head+body), body: make([]byte, body)}}
			size := head + body
			c := cutter{cfg: &Config{CutBytes: most}}
			c.cutBatch(rng, batch)
			last := 0
			for _, end := range c.ends {
				if end <= last || most > 0 && end-last > most {
					t.Fatalf("pieces of at most %d bytes end at %v", most, c.ends)
				}
				if last = end; end <= head && end < size {
					inHead++
					byteOfHead[end] = true
				}
			}
			if last != size || len(c.ends) < 2 {
				t.Fatalf("pieces of %d bytes end at %v", size, c.ends)
			}
		}
		if inHead < 300 || len(byteOfHead) < 60 {
			t.Errorf("pieces of at most %d: %d cuts at %d places of the head", most, inHead, len(byteOfHead))
		}
	}
}

// writesConn notes what each Write has written.
type writesConn struct {
	net.Conn
	mu     sync.Mutex
	writes [][]byte
}

func (c *writesConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.writes = append(c.writes, bytes.Clone(b))
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// recordWrites makes cfg's connection one whose writes are noted.
func recordWrites(cfg Config) (Config, *writesConn) {
	c := new(writesConn)
	addr := cfg.Address
	cfg.Dial = func(ctx context.Context) (conn net.Conn, err error) {
		c.Conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
		return c, err
	}
	return cfg, c
}

func TestWritesAreCut(t *testing.T) {
	cfg, c := recordWrites(Config{Address: serveHTTP(t, echo), KeepAlive: true, CutRatio: 1, CutBytes: 1, MaxRequests: 3})
	res := run(t, cfg)
	if err := res.Err(); err != nil {
		t.Fatal(err)
	}
	for _, w := range c.writes {
		if len(w) != 1 {
			t.Errorf("a piece of %q", w)
		}
	}
	if res.Cut != 3 || res.Connects != 1 {
		t.Errorf("want 3 cuts on one connection: %v", res)
	}
}

func TestRequestsArePipelined(t *testing.T) {
	cfg, c := recordWrites(Config{Address: serveHTTP(t, echo), KeepAlive: true, PipelineRatio: 1, MaxRequests: 100})
	res := run(t, cfg)
	if err := res.Err(); err != nil {
		t.Fatal(err)
	}
	sizes := make(map[int]int)
	for _, w := range c.writes {
		sizes[bytes.Count(w, []byte("X-Request-Id"))]++
	}
	if sizes[1] > 1 || sizes[2] == 0 || sizes[3] == 0 || sizes[4] == 0 || len(sizes)-min(sizes[1], 1) != 3 {
		t.Errorf("writes by their number of requests: %v", sizes)
	}
	if res.Pipelined != res.Requests-int64(sizes[1]) || res.Connects != 1 {
		t.Errorf("want all pipelined but %d, on one connection: %v", sizes[1], res)
	}
}

func TestAwkwardRequestsToCorrectServer(t *testing.T) {
	tests := map[string]Config{
		"pipelined":             {Workers: 4, KeepAlive: true, PipelineRatio: .5, PostRatio: .5, MaxRequests: 1000},
		"pipelined, long":       {Workers: 2, KeepAlive: true, PipelineRatio: 1, PostRatio: 1, BodyMax: 200_000, MaxRequests: 50},
		"cut":                   {Workers: 4, KeepAlive: true, CutRatio: 1, PostRatio: .5, MaxRequests: 400},
		"cut, connection each":  {Workers: 4, CutRatio: .5, CutPause: time.Millisecond, PostRatio: .5, MaxRequests: 100},
		"cut, long":             {Workers: 2, KeepAlive: true, CutRatio: 1, CutBytes: 100_000, PostRatio: 1, BodyMax: 1 << 20, MaxRequests: 20},
		"cut everywhere, paced": {Workers: 4, KeepAlive: true, CutRatio: 1, CutBytes: 1, CutPause: 20 * time.Microsecond, PipelineRatio: .5, PostRatio: .5, BodyMax: 50, MaxRequests: 20},
		"cut pipelined":         {Workers: 4, KeepAlive: true, CutRatio: .7, CutPause: time.Millisecond, PipelineRatio: .7, PostRatio: .5, MaxRequests: 300},
		"cut pipelined, rate":   {Workers: 4, KeepAlive: true, CutRatio: .7, PipelineRatio: .7, Rate: 2000, MaxRequests: 200},
	}
	for name, cfg := range tests {
		t.Run(name, func(t *testing.T) {
			var ledger Ledger
			cfg.Address = serveHTTP(t, ledger.ServeHTTP)
			res := run(t, cfg)
			if err := res.Err(); err != nil {
				t.Fatal(err)
			}
			if res.Requests != cfg.MaxRequests || res.Reconnects() != 0 {
				t.Errorf("want %d requests and no reconnects: %v", cfg.MaxRequests, res)
			}
			if (res.Pipelined > 0) != (cfg.PipelineRatio > 0) || (res.Cut > 0) != (cfg.CutRatio > 0) {
				t.Errorf("pipelined %d, cut %d", res.Pipelined, res.Cut)
			}
			if r := ledger.Report(); r.Seen != res.Requests || r.Duplicated != 0 || r.Foreign != 0 {
				t.Errorf("the server saw %+v", r)
			}
		})
	}
}

// lossyListener stands for a server that reads on in another process, and
// drops or repeats a byte there: the first one of a connection's second read.
type lossyListener struct {
	net.Listener
	repeat bool
}

type lossyConn struct {
	net.Conn
	repeat bool
	reads  int
}

func (l lossyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &lossyConn{Conn: c, repeat: l.repeat}, err
}

func (c *lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.reads++; n == 0 || c.reads != 2 {
		return n, err
	}
	if !c.repeat {
		return copy(b, b[1:n]), err
	}
	if n < len(b) {
		copy(b[1:n+1], b[:n])
		n++
	}
	return n, err
}

// A server that does so is found by requests in pieces, and only by these.
func TestLossBetweenPiecesIsFound(t *testing.T) {
	for _, repeat := range []bool{false, true} {
		for _, cut := range []float64{0, 1} {
			s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
			s.Listener = lossyListener{s.Listener, repeat}
			s.Start()
			cfg := Config{Address: s.Listener.Addr().String(), CutRatio: cut, CutPause: 20 * time.Millisecond,
				PostRatio: .5, BodyMax: 1000, Workers: 4, MaxRequests: 20}
			if cut > 0 { // the server waits for a byte that it has dropped, or does not know that it is to close
				cfg.Timeout, cfg.CloseWait = 500*time.Millisecond, 10*time.Millisecond
			}
			res := run(t, cfg)
			s.Close()
			if (res.Failed() > 0) != (cut > 0) {
				t.Errorf("repeats %v, cut %v: %v", repeat, cut, res)
			}
		}
	}
}

// serveReversed answers requests that come together in the wrong order.
func serveReversed(t testing.TB) string {
	return serveConns(t, func(c *net.TCPConn) {
		br := newReader(c)
		for {
			var answers []string
			for len(answers) == 0 || br.Buffered() > 0 {
				id, body, err := readRequest(br)
				if err != nil {
					return
				}
				answers = append([]string{good(id, body)}, answers...)
			}
			if _, err := c.Write([]byte(strings.Join(answers, ""))); err != nil {
				return
			}
		}
	})
}

func TestPipelineFaults(t *testing.T) {
	t.Run("wrong order", func(t *testing.T) {
		addr := serveReversed(t)
		if err := run(t, Config{Address: addr, KeepAlive: true, MaxRequests: 20}).Err(); err != nil {
			t.Error(err)
		}
		res := run(t, Config{Address: addr, KeepAlive: true, PipelineRatio: 1, MaxRequests: 20})
		if res.OK > 1 || res.WrongAnswer != res.Pipelined || res.WrongAnswer != res.Failed() {
			t.Errorf("want all pipelined requests to have wrong answers: %v", res)
		}
	})
	t.Run("one answer is missing", func(t *testing.T) {
		addr := serveConns(t, func(c *net.TCPConn) {
			br := newReader(c)
			for {
				id, body, err := readRequest(br)
				if err != nil {
					return
				}
				if br.Buffered() == 0 { // the last one in a pipeline
					c.Write([]byte(good(id, body)))
				}
			}
		})
		res := run(t, Config{Address: addr, KeepAlive: true, PipelineRatio: 1, MaxRequests: 20})
		if res.OK > 1 || res.WrongAnswer != res.Pipelined {
			t.Errorf("want all pipelined requests to have wrong answers: %v", res)
		}
	})
	t.Run("one answer comes twice", func(t *testing.T) {
		addr := serveRaw(t, func(c *net.TCPConn, n int, id string, body []byte) bool {
			c.Write([]byte(good(id, body)))
			if n == 1 {
				c.Write([]byte(good(id, body)))
			}
			return true
		})
		res := run(t, Config{Address: addr, KeepAlive: true, PipelineRatio: 1, MaxRequests: 20})
		if res.WrongAnswer == 0 || res.WrongAnswer != res.Failed() || res.OK != res.Connects {
			t.Errorf("want one answer of each connection to be right: %v", res)
		}
	})
	t.Run("closes without a word", func(t *testing.T) {
		addr := serveRaw(t, func(c *net.TCPConn, n int, id string, body []byte) bool {
			c.Write([]byte(good(id, body)))
			return n < 3
		})
		res := run(t, Config{Address: addr, KeepAlive: true, PipelineRatio: 1, MaxRequests: 20})
		if got := res.EOFBeforeAnswer + res.Reset; got == 0 || got != res.Failed() || res.UnannouncedReconnects == 0 || res.AnnouncedReconnects > 0 {
			t.Errorf("want closed connections: %v", res)
		}
	})
	t.Run("announces the close", func(t *testing.T) {
		var ledger Ledger
		addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			ledger.ServeHTTP(w, r)
		})
		for _, cut := range []float64{0, 1} {
			res := run(t, Config{Address: addr, KeepAlive: true, PipelineRatio: 1, CutRatio: cut,
				CutPause: time.Millisecond, PostRatio: .5, MaxRequests: 20})
			if res.BehindClose == 0 || res.Failed() != res.BehindClose || res.OK != res.Connects ||
				res.UnannouncedReconnects != 0 || res.LeftOpen != 0 {
				t.Errorf("want all but one of each connection turned away: %v", res)
			}
			if !strings.Contains(res.FirstErrors[0].Detail, "closes the connection") {
				t.Errorf("sample %v", res.FirstErrors[0])
			}
			if r := ledger.Report(); r.Seen != res.OK || r.Duplicated != 0 {
				t.Errorf("%d answers, and the server saw %+v", res.OK, r)
			}
			ledger = Ledger{}
		}
	})
	t.Run("goes on after an announced close", func(t *testing.T) {
		addr := serveConns(t, func(c *net.TCPConn) {
			br := newReader(c)
			for {
				id, body, err := readRequest(br)
				if err != nil {
					return
				}
				c.Write([]byte(strings.Replace(good(id, body), "\r\n", "\r\nConnection: close\r\n", 1)))
				if br.Buffered() == 0 { // the last one in a pipeline
					return
				}
			}
		})
		res := run(t, Config{Address: addr, KeepAlive: true, PipelineRatio: 1, MaxRequests: 10})
		if res.WrongAnswer != res.Connects && res.WrongAnswer+1 != res.Connects || res.BehindClose == 0 {
			t.Errorf("want a wrong answer on each connection: %v", res)
		}
	})
	t.Run("bad status in the middle", func(t *testing.T) {
		addr := serveRaw(t, func(c *net.TCPConn, n int, id string, body []byte) bool {
			if n%2 == 0 {
				c.Write([]byte("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"))
			} else {
				c.Write([]byte(good(id, body)))
			}
			return true
		})
		res := run(t, Config{Address: addr, KeepAlive: true, PipelineRatio: 1, MaxRequests: 20})
		if res.BadStatus != 10 || res.OK != 10 || res.Connects != 1 {
			t.Errorf("want every second answer bad, on one connection: %v", res)
		}
	})
}

// A server that answers and closes before the last piece is there does not
// keep the worker.
func TestEarlyAnswerBetweenPieces(t *testing.T) {
	addr := serveConns(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.Write([]byte("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
		c.CloseWrite()
		c.Read(make([]byte, 1<<16))
	})
	res := run(t, Config{Address: addr, KeepAlive: true, CutRatio: 1, CutBytes: 1, CutPause: time.Millisecond, MaxRequests: 5})
	if res.BadStatus != 5 || res.Failed() != 5 {
		t.Errorf("want bad answers: %v", res)
	}
}

func TestAbortBetweenPieces(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	read := make(chan bool, 4)
	addr := serveConns(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		read <- true
		c.Read(make([]byte, 1<<16))
	})
	r, err := Start(ctx, Config{Address: addr, CutRatio: 1, CutBytes: 1, CutPause: time.Hour, KeepAlive: true,
		PipelineRatio: 1, MaxRequests: 2, Timeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	<-read
	cancel()
	res := r.Wait()
	checkSum(t, res)
	if res.Aborted != 2 {
		t.Errorf("want 2 aborted: %v", res)
	}
}
