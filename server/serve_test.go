package server

import (
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Serve may be called again and again, with a new listener each time. What it
// has set up goes when it has ended and its connections have.
func TestServeAgainAndAgainDoesNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(http.HandlerFunc(hello))
		once := func() (*client, func() error) {
			ln := newPipeListener()
			served := serve(t, srv, ln)
			c := ln.dial(t)
			c.get("/")
			ln.Close()
			served()
			return c, served
		}
		kept, _ := once()
		for range 20 {
			c, _ := once()
			c.Close()
			synctest.Wait()
		}
		if n := len(srv.fronts); n > 2 {
			t.Errorf("%d are kept", n)
		}
		srv.SetKeepAlivesEnabled(false)
		kept.wantEOF() // it was not forgotten
		srv.Stop(t.Context())
	})
}

// Whoever calls Serve, dials, counts and stops, all at the same time: every
// connection that was accepted is answered, and everything ends.
func TestStopRacesServe(t *testing.T) {
	for range 30 {
		srv := &Server{Server: http.Server{Handler: http.HandlerFunc(hello)}, Linger: 50 * time.Millisecond}
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				for range 3 {
					ln := listenTCP(t)
					all.Go(func() {
						c, err := net.Dial("tcp", ln.Addr().String())
						if err != nil {
							return // closed before
						}
						defer c.Close()
						c.SetDeadline(time.Now().Add(10 * time.Second))
						c.Write([]byte("GET / HTTP/1.1\r\nHost: test\r\n\r\n"))
						c.Read(make([]byte, 4096))
					})
					if i == 0 {
						all.Go(func() { time.Sleep(time.Millisecond); ln.Close() })
					}
					if err := srv.Serve(ln); err != ErrServerClosed && err != ErrListenerClosed {
						t.Errorf("Serve: %v", err)
					}
					srv.Counts()
				}
			})
		}
		for range 2 {
			all.Go(func() {
				time.Sleep(2 * time.Millisecond)
				if report := srv.Stop(t.Context()); !report.Clean() {
					t.Errorf("report %+v", report)
				}
			})
		}
		all.Wait()
	}
}
