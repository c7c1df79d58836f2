package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	keepAliveClients = 50
	roundTrip        = 20 * time.Millisecond
	maxThink         = 20 * time.Millisecond
)

// Fifty clients make one request after the other, and never one of them twice.
// When a response closes their connection, or they see it closed before they
// send, they go on with the next server. A drain in the middle fails no request,
// with no delay on the way and with a round trip of 20 ms.
func TestDrainFailsNoRequestOfKeepAliveClients(t *testing.T) {
	for name, oneWay := range map[string]time.Duration{"loopback": 0, "round trip": roundTrip / 2} {
		t.Run(name, func(t *testing.T) {
			h := http.HandlerFunc(hello)
			old := &Server{Server: http.Server{Handler: h}, Linger: 30 * time.Second}
			fleet := startFleet(t, old, h, oneWay)
			fleet.halfway()
			fleet.moved.Store(true)
			report := old.Stop(t.Context())
			fleet.halfway()
			done, failed := fleet.stop()
			t.Logf("%d requests, %v", done, report)
			for _, err := range failed {
				t.Errorf("request failed: %v", err)
			}
			wantReport(t, report, Report{Finished: keepAliveClients})
		})
	}
}

// This shows that the test above can fail: where it stops the Server, this one
// shuts a http.Server down. Its clients, too, look whether their connection is
// closed before they send.
func TestShutdownFailsRequestsOfKeepAliveClients(t *testing.T) {
	h := http.HandlerFunc(hello)
	old := &http.Server{Handler: h}
	fleet := startFleet(t, old, h, roundTrip/2)
	fleet.halfway()
	fleet.moved.Store(true)
	if err := old.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	fleet.halfway()
	done, failed := fleet.stop()
	t.Logf("%d requests, %d failed", done, len(failed))
	if len(failed) == 0 {
		t.Error("http.Server.Shutdown failed no request: the test is too mild")
	}
}

// A fleet is the clients, and the two servers that they use one after the other.
type fleet struct {
	t        testing.TB
	addrs    [2]string
	moved    atomic.Bool // new connections go to the second server
	quit     chan struct{}
	clients  sync.WaitGroup
	begun    atomic.Int64 // clients that have had an answer
	requests atomic.Int64

	mu     sync.Mutex
	failed []error
}

func startFleet(t *testing.T, old interface{ Serve(net.Listener) error }, h http.Handler, oneWay time.Duration) *fleet {
	f := &fleet{t: t, quit: make(chan struct{})}
	next := &Server{Server: http.Server{Handler: h}}
	t.Cleanup(func() { next.Close() })
	for i, srv := range []interface{ Serve(net.Listener) error }{old, next} {
		ln := listenTCP(t)
		go srv.Serve(ln)
		f.addrs[i] = ln.Addr().String()
		if oneWay > 0 {
			f.addrs[i] = startRelay(t, f.addrs[i], oneWay)
		}
	}
	for range keepAliveClients {
		f.clients.Go(f.client)
	}
	return f
}

// halfway waits until every client is connected, and then for some more requests.
func (f *fleet) halfway() {
	f.t.Helper()
	eventually(f.t, "all clients are connected", func() bool { return f.begun.Load() == keepAliveClients })
	want := f.requests.Load() + 10*keepAliveClients
	eventually(f.t, "the clients make requests", func() bool { return f.requests.Load() >= want })
}

func (f *fleet) stop() (int64, []error) {
	close(f.quit)
	f.clients.Wait()
	return f.requests.Load(), f.failed
}

func (f *fleet) client() {
	var c net.Conn
	var br *bufio.Reader
	begin := sync.OnceFunc(func() { f.begun.Add(1) })
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for {
		select {
		case <-f.quit:
			return
		case <-time.After(rand.N(maxThink)):
		}
		if c != nil && seenClosed(c, br) {
			c.Close()
			c = nil
		}
		if c == nil {
			var err error
			if c, err = net.Dial("tcp", f.addr()); err != nil {
				f.fail(err)
				return
			}
			br = bufio.NewReader(c)
		}
		last, err := ask(c, br)
		f.requests.Add(1)
		begin()
		if err != nil {
			f.fail(err)
		}
		if err != nil || last {
			c.Close()
			c = nil
		}
	}
}

func (f *fleet) addr() string {
	if f.moved.Load() {
		return f.addrs[1]
	}
	return f.addrs[0]
}

func (f *fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = append(f.failed, err)
}

func ask(c net.Conn, br *bufio.Reader) (last bool, err error) {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "GET /x HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return false, err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello /x" {
		err = fmt.Errorf("wrong answer %q", body)
	}
	return resp.Close, err
}

// seenClosed reports whether the end of the connection has arrived here.
func seenClosed(c net.Conn, br *bufio.Reader) bool {
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := br.Peek(1)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// startRelay passes connections on to addr and delays everything on its way,
// the end of the connection included.
func startRelay(t *testing.T, addr string, oneWay time.Duration) string {
	ln := listenTCP(t)
	ctx, cancel := context.WithCancel(context.Background())
	var pipes sync.WaitGroup
	pipes.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				near.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { near.Close(); far.Close() })
			var both sync.WaitGroup
			both.Go(func() { delay(near, far, oneWay) })
			both.Go(func() { delay(far, near, oneWay) })
			pipes.Go(func() {
				both.Wait()
				stop()
				near.Close()
				far.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		cancel()
		pipes.Wait()
	})
	return ln.Addr().String()
}

// delay copies from src to dst, each piece d after it has come.
func delay(dst, src net.Conn, d time.Duration) {
	type piece struct {
		due  time.Time
		data []byte // nil at the end
	}
	pieces := make(chan piece, 1000)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 4096)
			n, err := src.Read(buf)
			if n > 0 {
				pieces <- piece{time.Now().Add(d), buf[:n]}
			}
			if err != nil {
				pieces <- piece{due: time.Now().Add(d)}
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if p.data == nil {
			dst.(*net.TCPConn).CloseWrite()
		} else {
			dst.Write(p.data)
		}
	}
}
