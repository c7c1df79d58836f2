package load

import (
	"bufio"
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
// closed.
func serveRaw(t testing.TB, answer func(c *net.TCPConn, n int, id string, body []byte) bool) string {
	t.Helper()
	return serveConns(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for n := 1; ; n++ {
			id, body, err := readRequest(br)
			if err != nil || !answer(c, n, id, body) {
				return
			}
		}
	})
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

// run makes the load of cfg to its end.
func run(t testing.TB, cfg Config) Result {
	t.Helper()
	r, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Done():
	case <-time.After(30 * time.Second):
		t.Fatalf("the run does not end: %v", r.Snapshot())
	}
	res := r.Wait()
	checkSum(t, res)
	return res
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
