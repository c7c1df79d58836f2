package load

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// echo is the handler that the generator expects.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("X-Request-Id", r.Header.Get("X-Request-Id"))
	w.Header().Set("Handoverd-Generation", "1")
	w.Write(body)
}

// serveHTTP serves h with net/http and returns its host and port.
func serveHTTP(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// rawServer serves connections with whatever bytes its serve function likes.
type rawServer struct {
	ln    net.Listener
	serve func(c *net.TCPConn) // the connection is closed when it returns

	wg    sync.WaitGroup
	mu    sync.Mutex
	conns []net.Conn
}

func serveConns(t testing.TB, serve func(c *net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{ln: ln, serve: serve}
	s.wg.Go(s.accept)
	t.Cleanup(s.close)
	return ln.Addr().String()
}

func (s *rawServer) close() {
	s.ln.Close()
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *rawServer) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		s.wg.Go(func() {
			defer c.Close()
			s.serve(c.(*net.TCPConn))
		})
	}
}

// serveRaw answers HTTP/1.1 requests. answer is called with the number of the
// request on its connection, from 1. It returns false to have the connection
// closed: it ends then as if everything had been read, even if the client sends
// another request meanwhile, so that there is no reset.
func serveRaw(t testing.TB, answer func(c *net.TCPConn, n int, id string, body []byte) bool) string {
	t.Helper()
	return serveConns(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for n := 1; ; n++ {
			id, body, err := readRequest(br)
			if err != nil {
				return
			}
			if !answer(c, n, id, body) {
				c.CloseWrite()
				io.Copy(io.Discard, c)
				return
			}
		}
	})
}

// refusing returns an address at which nobody can listen while the test runs:
// that of the client's end of a connection.
func refusing(t testing.TB) string {
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

func readRequest(br *bufio.Reader) (id string, body []byte, err error) {
	req, err := http.ReadRequest(br)
	if err != nil {
		return "", nil, err
	}
	body, err = io.ReadAll(req.Body)
	return req.Header.Get("X-Request-Id"), body, err
}

// good is a correct answer.
func good(id string, body []byte) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Request-Id: %s\r\nHandoverd-Generation: 1\r\nContent-Length: %d\r\n\r\n%s",
		id, len(body), body)
}

// run makes the load of cfg to its end. That a machine is busy fails no request
// unless cfg says so.
func run(t testing.TB, cfg Config) Result {
	t.Helper()
	cfg.Timeout = cmp.Or(cfg.Timeout, 2*time.Minute)
	cfg.CloseWait = cmp.Or(cfg.CloseWait, 2*time.Minute)
	r, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Done():
	case <-time.After(3 * time.Minute):
		t.Fatalf("the run does not end: %v", r.Snapshot())
	}
	res := r.Wait()
	checkSum(t, res)
	return res
}

// runConnected is run for a cfg whose timeout is to be met on each of a number of
// connections: on a busy machine it must be longer, to be over only there. 0
// stands for any number.
func runConnected(t testing.TB, cfg Config, conns int64) Result {
	t.Helper()
	for {
		res := run(t, cfg)
		if conns == 0 || res.Connects == conns || cfg.Timeout == 0 || cfg.Timeout > 10*time.Second {
			return res
		}
		t.Logf("%d connections within %v each", res.Connects, cfg.Timeout)
		cfg.Timeout *= 8
	}
}

// checkSum checks that every request has exactly one outcome.
func checkSum(t testing.TB, res Result) {
	t.Helper()
	if sum := res.OK + res.Failed() + res.ClientFault + res.Aborted; sum != res.Requests {
		t.Errorf("%d requests, but the outcomes add up to %d: %v", res.Requests, sum, res)
	}
	if res.Latency.Count() != res.OK {
		t.Errorf("%d latencies of %d answers", res.Latency.Count(), res.OK)
	}
}

// newReader is a reader that holds any pipeline of short requests.
func newReader(c net.Conn) *bufio.Reader { return bufio.NewReaderSize(c, 64<<10) }
