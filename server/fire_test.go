package server

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Servers are stopped in all ways at once while clients come and go, with
// timeouts about as long as a request. Whatever comes first, the stops agree
// on one report, and nothing is left.
func TestStopUnderFire(t *testing.T) {
	for range 150 {
		srv := h2cServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch rand.N(4) {
			case 0:
				c, _, err := http.NewResponseController(w).Hijack()
				if err == nil && rand.N(2) == 0 {
					c.Close()
				}
			case 1:
				select {
				case <-r.Context().Done():
				case <-time.After(rand.N(3 * time.Millisecond)):
				}
			}
			io.WriteString(w, "hello")
		}))
		srv.ErrorLog = discardLog
		srv.StopTimeout, srv.KillTimeout, srv.Linger = time.Duration(1+rand.N(3_000_000)), time.Minute, time.Duration(1+rand.N(1_000_000))
		srv.OnHijackedDrain = func(c net.Conn) { io.WriteString(c, "bye") }
		ln := listenTCP(t)
		served := serve(t, srv, ln)

		var clients, stops sync.WaitGroup
		over := make(chan struct{})
		for range 6 {
			clients.Go(func() { fireAt(ln.Addr().String(), over) })
		}
		eventually(t, "somebody is connected", func() bool { return srv.Counts().Open() > 0 })
		reports := make(chan Report, 3)
		for i := range 3 {
			stops.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if i == 2 && rand.N(2) == 0 {
					srv.Close()
				}
				reports <- srv.Stop(ctx)
			})
		}
		stops.Wait()
		close(over)
		first := <-reports
		if second, third := <-reports, <-reports; first != second || first != third {
			t.Fatalf("reports differ: %v, %v, %v", first, second, third)
		}
		if first.Remaining != 0 || first.Stuck != 0 {
			t.Fatalf("report %+v", first)
		}
		if c := srv.Counts(); c.Open() != 0 {
			t.Fatalf("open after Stop: %+v", c)
		}
		if err := served(); err != ErrServerClosed {
			t.Fatalf("Serve: %v", err)
		}
		clients.Wait()
	}
}

// fireAt makes requests, some of them broken off, until nobody listens any more
// or it is over: somebody else may listen there by then.
func fireAt(addr string, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		default:
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		request := "GET / HTTP/1.1\r\nHost: test\r\n\r\n"
		for range rand.N(4) {
			io.WriteString(c, request)
			c.Read(make([]byte, 1000))
		}
		io.WriteString(c, request[:rand.N(len(request))])
		c.Close()
	}
}
