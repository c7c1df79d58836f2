package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Each faulty server must be found, and counted as what it is.
func TestFaults(t *testing.T) {
	write := func(c io.Writer, s string) bool {
		c.Write([]byte(s))
		return true
	}
	var stale struct {
		sync.Mutex
		id string
	}
	tests := []struct {
		name   string
		answer func(c *net.TCPConn, n int, id string, body []byte) bool
		cfg    Config
		want   func(*Result) *int64 // the counter that must have all failures
		failed int64                // of 10 requests
		detail string
	}{
		{
			name: "wrong id",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, good("w0-1-0000000000000000", body))
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "w0-1-0000000000000000",
		},
		{
			name: "no id",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "seen 0 times",
		},
		{
			name: "id twice",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, strings.Replace(good(id, body), "Content", "X-Request-Id: "+id+"\r\nContent", 1))
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "seen 2 times",
		},
		{
			name: "id of the request before",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				stale.Lock()
				defer stale.Unlock()
				id, stale.id = stale.id, id
				return write(c, good(id, body))
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10,
		},
		{
			name: "answer twice", // the second is taken for the answer to the next request
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, good(id, body)+good(id, body))
			},
			cfg:  Config{KeepAlive: true},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 5,
		},
		{
			name: "answer twice, then close",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				write(c, good(id, body)+good(id, body))
				return false
			},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "after the end",
		},
		{
			name: "one byte of the body differs",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				if len(body) > 0 {
					body[len(body)-1]++
				} else {
					body = []byte("x")
				}
				return write(c, good(id, body))
			},
			cfg:  Config{PostRatio: 1},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "not the body",
		},
		{
			name: "body too short",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, good(id, body[:len(body)-1]))
			},
			cfg:  Config{PostRatio: 1, Seed: 3},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "bytes instead of",
		},
		{
			name: "body too long",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, good(id, append(body, 'x')))
			},
			cfg:  Config{PostRatio: .5},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "bytes instead of",
		},
		{
			name: "chunked body too long",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, chunked(id, append(body, 'x')))
			},
			cfg:  Config{PostRatio: 1},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "longer",
		},
		{
			name: "chunked body too short",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, chunked(id, body[:len(body)/2]))
			},
			cfg:  Config{PostRatio: 1, BodyMax: 1000, Seed: 3},
			want: func(r *Result) *int64 { return &r.WrongAnswer }, failed: 10, detail: "missing",
		},
		{
			name: "closes the idle connection without announcing it",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				write(c, good(id, body))
				return n < 2
			},
			cfg:  Config{KeepAlive: true, Think: 20 * time.Millisecond},
			want: func(r *Result) *int64 { return &r.EOFBeforeAnswer }, failed: 3, // each third
			detail: "awaiting the answer",
		},
		{
			name:   "closes without an answer",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool { return false },
			want:   func(r *Result) *int64 { return &r.EOFBeforeAnswer }, failed: 10,
		},
		{
			name: "closes within the header",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				write(c, "HTTP/1.1 200 OK\r\nX-Req")
				return false
			},
			want: func(r *Result) *int64 { return &r.EOFInAnswer }, failed: 10, detail: "header",
		},
		{
			name: "closes within the body",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				s := strings.Replace(good(id, nil), "Content-Length: 0", fmt.Sprint("Content-Length: ", len(body)), 1)
				write(c, s)
				return false
			},
			cfg:  Config{PostRatio: 1, Seed: 3},
			want: func(r *Result) *int64 { return &r.EOFInAnswer }, failed: 10, detail: "body",
		},
		{
			name: "resets",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				c.SetLinger(0)
				c.Close()
				return false
			},
			want: func(r *Result) *int64 { return &r.Reset }, failed: 10,
		},
		{
			name:   "hangs",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool { return true },
			cfg:    Config{Timeout: 10 * time.Millisecond},
			want:   func(r *Result) *int64 { return &r.Timeout }, failed: 10,
		},
		{
			name: "hangs within the answer",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, "HTTP/1.1 200 OK\r\n")
			},
			cfg:  Config{Timeout: 10 * time.Millisecond, KeepAlive: true},
			want: func(r *Result) *int64 { return &r.Timeout }, failed: 10,
		},
		{
			name: "not HTTP",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, "220 mail.example.org ESMTP\r\n")
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "ESMTP",
		},
		{
			name: "bad chunk",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				return write(c, strings.Replace(chunked(id, []byte("x")), "\r\n1\r\n", "\r\nq\r\n", 1))
			},
			want: func(r *Result) *int64 { return &r.Malformed }, failed: 10, detail: "chunk size",
		},
		{
			name: "bad status on a connection that stays",
			answer: func(c *net.TCPConn, n int, id string, body []byte) bool {
				if n%2 == 0 {
					return write(c, good(id, body))
				}
				return write(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
			},
			cfg:  Config{KeepAlive: true},
			want: func(r *Result) *int64 { return &r.BadStatus }, failed: 5, detail: "status 503",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Address = serveRaw(t, tt.answer)
			tt.cfg.MaxRequests = 10
			res := run(t, tt.cfg)
			if got := *tt.want(&res); got != tt.failed || res.Failed() != got || res.OK != 10-got {
				t.Errorf("want %d failures of that kind and no other: %v", tt.failed, res)
			}
			if res.Err() == nil {
				t.Error("Err is nil")
			}
			if len(res.FirstErrors) != int(tt.failed) || !strings.Contains(res.FirstErrors[0].Detail, tt.detail) {
				t.Errorf("samples %v, want %d with %q", res.FirstErrors, tt.failed, tt.detail)
			}
		})
	}
}

func chunked(id string, body []byte) string {
	var b strings.Builder
	b.WriteString("HTTP/1.1 200 OK\r\nX-Request-Id: " + id + "\r\nTransfer-Encoding: chunked\r\n\r\n")
	for len(body) > 0 {
		n := min(len(body), 700)
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
		body = body[n:]
	}
	return b.String() + "0\r\nTrailer: x\r\n\r\n"
}

// Unusual but correct answers are no faults.
func TestUnusualAnswers(t *testing.T) {
	answers := map[string]func(id string, body []byte) (text string, stay bool){
		"chunked": func(id string, body []byte) (string, bool) { return chunked(id, body), true },
		"interim": func(id string, body []byte) (string, bool) {
			return "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + good(id, body), true
		},
		"until the end": func(id string, body []byte) (string, bool) {
			return "HTTP/1.1 200 OK\r\nX-Request-Id: " + id + "\r\n\r\n" + string(body), false
		},
		"HTTP/1.0": func(id string, body []byte) (string, bool) {
			return strings.Replace(good(id, body), "1.1", "1.0", 1), false
		},
		"close among others": func(id string, body []byte) (string, bool) {
			return strings.Replace(good(id, body), "\r\n", "\r\nconnection: x, Close\r\n", 1), false
		},
		"no reason": func(id string, body []byte) (string, bool) {
			return strings.Replace(good(id, body), " OK", "", 1), true
		},
		"bare newlines": func(id string, body []byte) (string, bool) {
			head, _, _ := strings.Cut(good(id, body), "\r\n\r\n")
			return strings.ReplaceAll(head, "\r\n", "\n") + "\n\n" + string(body), true
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			stays := true
			addr := serveRaw(t, func(c *net.TCPConn, n int, id string, body []byte) bool {
				text, stay := answer(id, body)
				stays = stay
				c.Write([]byte(text))
				return stay
			})
			res := run(t, Config{Address: addr, KeepAlive: true, PostRatio: .7, BodyMax: 5000, MaxRequests: 20})
			if err := res.Err(); err != nil {
				t.Error(err)
			}
			if stays && res.Connects != 1 || !stays && res.AnnouncedReconnects != 19 {
				t.Errorf("connection stays: %v, but %v", stays, res)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	res := run(t, Config{Address: refusing(t), Workers: 2, MaxRequests: 10})
	if res.Refused != 10 || res.Failed() != 10 || res.Connects != 0 {
		t.Errorf("want 10 refused: %v", res)
	}
	if s := res.FirstErrors[0]; s.OnConn != 0 || s.Kind != "refused" {
		t.Errorf("sample %+v", s)
	}
}

func TestDialFaults(t *testing.T) {
	tests := []struct {
		err  error
		want func(*Result) *int64
	}{
		{os.NewSyscallError("connect", ownErrnos[0]), func(r *Result) *int64 { return &r.ClientFault }},
		{os.NewSyscallError("socket", ownErrnos[2]), func(r *Result) *int64 { return &r.ClientFault }},
		{os.NewSyscallError("connect", refusedErrnos[0]), func(r *Result) *int64 { return &r.Refused }},
		{os.NewSyscallError("connect", resetErrnos[0]), func(r *Result) *int64 { return &r.Reset }},
		{os.NewSyscallError("connect", timeoutErrnos[0]), func(r *Result) *int64 { return &r.Timeout }},
		{errors.New("no such host"), func(r *Result) *int64 { return &r.DialFailed }},
	}
	for _, tt := range tests {
		res := run(t, Config{MaxRequests: 3, Dial: func(context.Context) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: tt.err}
		}})
		if *tt.want(&res) != 3 || res.Failed()+res.ClientFault != 3 || res.Err() == nil {
			t.Errorf("%v: %v", tt.err, res)
		}
		if len(res.FirstErrors) != 3 {
			t.Errorf("%v: %d samples", tt.err, len(res.FirstErrors))
		}
	}
}

func TestDialTimeout(t *testing.T) {
	res := run(t, Config{MaxRequests: 1, Timeout: 5 * time.Millisecond, Dial: func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if res.Timeout != 1 {
		t.Errorf("want a timeout: %v", res)
	}
}

func TestTLSServerThatHangsUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			c.Close()
		}
	}()
	res := run(t, Config{Address: ln.Addr().String(), TLS: &tls.Config{InsecureSkipVerify: true}, MaxRequests: 3})
	if res.EOFBeforeAnswer+res.Reset != 3 || res.Connects != 0 {
		t.Errorf("want 3 closed connections: %v", res)
	}
}

// After an unannounced close the next connection is counted as replacing it.
func TestUnannouncedReconnect(t *testing.T) {
	addr := serveRaw(t, func(c *net.TCPConn, n int, id string, body []byte) bool {
		if n == 1 {
			c.Write([]byte(good(id, body)))
		}
		return n == 1
	})
	res := run(t, Config{Address: addr, KeepAlive: true, MaxRequests: 10})
	if res.EOFBeforeAnswer != 5 || res.UnannouncedReconnects != 4 || res.AnnouncedReconnects != 0 || res.Connects != 5 {
		t.Errorf("want every second request to fail and 4 reconnects: %v", res)
	}
	if s := res.FirstErrors[0]; s.OnConn != 2 || s.Generation != "1" || s.RequestID == "" {
		t.Errorf("sample %+v", s)
	}
}

// A server that refuses a large body early frees the sender, and the answer
// is still read.
func TestEarlyAnswerToLargeBody(t *testing.T) {
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	})
	res := run(t, Config{Address: addr, KeepAlive: true, PostRatio: 1, BodyMax: 8 << 20, MaxRequests: 3, Seed: 5})
	if res.BadStatus+res.Reset != 3 {
		t.Errorf("want 3 bad answers: %v", res)
	}
}

// A server that answers at once and never reads the body does not hold the
// worker until its timeout.
func TestAnswerToLargeBodyThatIsNotRead(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	over := make(chan bool)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(over)
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
		<-over
	})
	res := run(t, Config{Address: ln.Addr().String(), KeepAlive: true, PostRatio: 1, BodyMax: 64 << 20,
		MaxRequests: 1, Seed: 5, Timeout: time.Hour})
	if res.BadStatus != 1 || res.SentBytes < 16<<20 {
		t.Errorf("want one bad status for a large body: %v", res)
	}
}
