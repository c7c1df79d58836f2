package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// newServer has timeouts that are told apart easily.
func newServer(h http.Handler) *Server {
	return &Server{
		Server:      http.Server{Handler: h},
		StopTimeout: 60 * time.Second,
		KillTimeout: 30 * time.Second,
		Linger:      20 * time.Second,
	}
}

func TestStopWithoutConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(nil)
		served := serve(t, srv, newPipeListener())
		synctest.Wait()
		report := srv.Stop(t.Context())
		wantReport(t, report, Report{})
		if report.Duration != 0 {
			t.Errorf("took %v", report.Duration)
		}
		if err := served(); err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestIdleConnectionLingersAndIsUsedOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		resp, _ := c.get("/1")
		wantClose(t, resp, false)
		stop := stopping(srv)
		time.Sleep(19 * time.Second)
		resp, body := c.get("/2")
		wantClose(t, resp, true)
		if body != "hello /2" {
			t.Errorf("body %q", body)
		}
		c.wantEOF()
		wantReport(t, stop(), Report{Finished: 1, Duration: 19 * time.Second})
	})
}

func TestIdleConnectionIsClosedAfterItsLinger(t *testing.T) {
	for _, tt := range []struct {
		name         string
		linger, want time.Duration
	}{
		{"set", 20 * time.Second, 20 * time.Second},
		{"zero means the stop timeout", 0, 60 * time.Second},
		{"longer than the stop timeout", time.Hour, 60 * time.Second},
		{"none", -1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
				srv.Linger = tt.linger
				serve(t, srv, ln)
				c := ln.dial(t)
				c.get("/")
				time.Sleep(time.Hour) // what was before the drain does not count
				report := srv.Stop(t.Context())
				c.wantEOF()
				wantReport(t, report, Report{Closed: 1, Duration: report.Duration})
				if report.Duration != tt.want {
					t.Errorf("took %v, want %v", report.Duration, tt.want)
				}
			})
		})
	}
}

// A response whose header was on its way before the drain says nothing of it;
// its connection then lingers from the moment it became idle.
func TestLingerBeginsWhenTheConnectionBecomesIdle(t *testing.T) {
	for busy, linger := range map[time.Duration]time.Duration{
		15 * time.Second:        20 * time.Second,
		2100 * time.Millisecond: time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			srv, ln := newServer(g), newPipeListener()
			srv.Linger = linger
			serve(t, srv, ln)
			c := ln.dial(t)
			c.sendGet("/")
			<-g.entered
			stop := stopping(srv)
			time.Sleep(busy)
			close(g.open)
			resp, _ := c.receive()
			wantClose(t, resp, false)
			c.wantEOF()
			wantReport(t, stop(), Report{Closed: 1, Duration: busy + linger})
		})
	}
}

func TestSilentNewConnectionDoesNotHoldTheStop(t *testing.T) {
	for linger, want := range map[time.Duration]time.Duration{
		0:                5 * time.Second,
		20 * time.Second: 5 * time.Second,
		time.Second:      time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			srv, ln := newServer(nil), newPipeListener()
			srv.Linger = linger
			serve(t, srv, ln)
			c := ln.dial(t)
			time.Sleep(time.Hour) // what was before the drain does not count
			report := srv.Stop(t.Context())
			c.wantEOF()
			wantReport(t, report, Report{Closed: 1, Duration: want})
		})
	}
}

func TestNewConnectionIsServedDuringTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		stop := stopping(srv)
		time.Sleep(4 * time.Second)
		resp, _ := c.get("/")
		wantClose(t, resp, true)
		wantReport(t, stop(), Report{Finished: 1, Duration: 4 * time.Second})
	})
}

// The linger time is long over when the rest of the request comes.
func TestRequestCutInTwoByTheDrainIsServed(t *testing.T) {
	for _, first := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
			serve(t, srv, ln)
			c := ln.dial(t)
			if !first {
				c.get("/before")
			}
			c.send("GET /cut HTTP/1.1\r\nHo")
			synctest.Wait()
			stop := stopping(srv)
			time.Sleep(50 * time.Second)
			c.send("st: test\r\n\r\n")
			resp, body := c.receive()
			wantClose(t, resp, true)
			if body != "hello /cut" {
				t.Errorf("body %q", body)
			}
			wantReport(t, stop(), Report{Finished: 1, Duration: 50 * time.Second})
		})
	}
}

// The first half of the second request comes with the first, so that it is read
// long before its connection is called idle.
func TestPipelinedRequestCutInTwoByTheDrainIsServed(t *testing.T) {
	for _, cut := range []int{1, 3, 4, 5, 20} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			srv, ln := newServer(g), newPipeListener()
			serve(t, srv, ln)
			c := ln.dial(t)
			const request = "GET /x HTTP/1.1\r\nHost: test\r\n\r\n"
			go c.send("%s", request+request[:cut])
			<-g.entered
			synctest.Wait()
			close(g.open)
			resp, _ := c.receive()
			wantClose(t, resp, false)
			synctest.Wait()
			stop := stopping(srv)
			time.Sleep(50 * time.Second)
			c.send("%s", request[cut:])
			resp, _ = c.receive()
			wantClose(t, resp, true)
			wantReport(t, stop(), Report{Finished: 1, Duration: 50 * time.Second})
		})
	}
}

func TestUnfinishedRequestIsKilledAtTheStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.send("GET /never HTTP/1.1\r\nHo")
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1, Duration: 60 * time.Second})
	})
}

func TestActiveRequestFinishesItsWholeBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := func(w http.ResponseWriter, r *http.Request) {
			for range 40 {
				io.WriteString(w, repeat("x", 5000))
				time.Sleep(time.Second)
			}
		}
		srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.sendGet("/")
		synctest.Wait()
		stop := stopping(srv)
		if _, body := c.receive(); len(body) != 200_000 {
			t.Errorf("got %d bytes", len(body))
		}
		c.Close()
		wantReport(t, stop(), Report{Finished: 1, Duration: 40 * time.Second})
	})
}

func TestHandlerThatMissesTheKillTimeoutIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		srv, ln := newServer(g), newPipeListener()
		serve(t, srv, ln)
		ln.dial(t).sendGet("/")
		<-g.entered
		report := srv.Stop(t.Context())
		wantReport(t, report, Report{Killed: 1, Remaining: 1, Duration: 90 * time.Second})
		if report.Clean() {
			t.Error("report is clean")
		}
		close(g.open)
		synctest.Wait()
		if n := srv.Counts().Open(); n != 0 {
			t.Errorf("%d connections open after the handler returned", n)
		}
		if again := srv.Stop(t.Context()); again != report {
			t.Errorf("report has changed to %+v", again)
		}
	})
}

func TestHandlerThatMindsItsContextEndsWhenKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
		serve(t, srv, ln)
		ln.dial(t).sendGet("/")
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1, Duration: 60 * time.Second})
	})
}

// A blockedConn does not close until it is released.
type blockedConn struct {
	net.Conn
	release chan struct{}
}

func (c *blockedConn) Close() error {
	<-c.release
	return c.Conn.Close()
}

func TestCloseThatBlocksDoesNotHoldTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		release := make(chan struct{})
		ln.wrap = func(c net.Conn) net.Conn { return &blockedConn{c, release} }
		stuck := ln.dial(t)
		ln.wrap = nil
		fine := ln.dial(t)
		stuck.get("/")
		fine.get("/")
		synctest.Wait()
		stop := stopping(srv)
		time.Sleep(20*time.Second + 1)
		fine.wantEOF()
		wantReport(t, stop(), Report{Closed: 2, Stuck: 1, Duration: 90 * time.Second})
		close(release)
		synctest.Wait()
		if n := srv.Counts().Open(); n != 0 {
			t.Errorf("%d connections open after Close returned", n)
		}
	})
}

func TestListenerCloseThatBlocksDoesNotHoldTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(nil)
		ln := &blockedListener{newPipeListener(), make(chan struct{})}
		served := serve(t, srv, ln)
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Stuck: 1, Duration: 90 * time.Second})
		close(ln.release)
		if err := served(); err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
}

type blockedListener struct {
	*pipeListener
	release chan struct{}
}

func (l *blockedListener) Close() error {
	<-l.release
	return l.pipeListener.Close()
}

func TestSecondStopJoinsTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		ln.dial(t).get("/")
		synctest.Wait()
		first := stopping(srv)
		time.Sleep(7 * time.Second)
		second := stopping(srv)
		wantReport(t, first(), Report{Closed: 1, Duration: 20 * time.Second})
		if first() != second() {
			t.Errorf("reports differ: %v, %v", first(), second())
		}
	})
}

func TestStopBeforeServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(nil), newPipeListener()
		wantReport(t, srv.Stop(t.Context()), Report{})
		if err := srv.Serve(ln); err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
		if err := srv.ServeTLS(newPipeListener(), "", ""); err != http.ErrServerClosed {
			t.Errorf("ServeTLS: %v", err)
		}
		if err := srv.ListenAndServe(); err != http.ErrServerClosed {
			t.Errorf("ListenAndServe: %v", err)
		}
		if err := srv.ListenAndServeTLS("", ""); err != http.ErrServerClosed {
			t.Errorf("ListenAndServeTLS: %v", err)
		}
		select {
		case <-ln.gone:
		default:
			t.Error("Serve has not closed its listener")
		}
	})
}

func TestStopFromInsideAHandlerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var srv *Server
		reports := make(chan Report, 1)
		srv = newServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			reports <- srv.Stop(context.Background())
		}))
		ln := newPipeListener()
		serve(t, srv, ln)
		ln.dial(t).sendGet("/")
		wantReport(t, <-reports, Report{Killed: 1, Remaining: 1, Duration: 90 * time.Second})
	})
}

func TestEndOfContextKillsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		srv, ln := newServer(g), newPipeListener()
		serve(t, srv, ln)
		active, idle := ln.dial(t), ln.dial(t)
		active.sendGet("/")
		<-g.entered
		_ = idle
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		time.AfterFunc(10*time.Second, func() { close(g.open) })
		err := srv.Shutdown(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1, Closed: 1, Duration: 10 * time.Second})
	})
}

func TestShutdownOfACleanDrainIsNoError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		ln.dial(t).get("/")
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseClosesAtOnceAndDoesNotWaitForHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		srv, ln := newServer(g), newPipeListener()
		served := serve(t, srv, ln)
		c := ln.dial(t)
		c.sendGet("/")
		<-g.entered
		before := time.Now()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(before); d != 0 {
			t.Errorf("Close took %v", d)
		}
		c.wantEOF()
		if err := served(); err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
		close(g.open)
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1})
	})
}

// The listener is taken away by somebody else before Stop is called.
func TestListenerTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		served := serve(t, srv, ln)
		c := ln.dial(t)
		ln.Close()
		err := served()
		if err != ErrListenerClosed || !errors.Is(err, net.ErrClosed) || !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		time.Sleep(time.Hour)
		resp, _ := c.get("/still")
		wantClose(t, resp, false)
		synctest.Wait()
		stop := stopping(srv)
		time.Sleep(time.Second)
		resp, _ = c.get("/last")
		wantClose(t, resp, true)
		wantReport(t, stop(), Report{Finished: 1, Duration: time.Second})
	})
}

func TestSeveralListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(http.HandlerFunc(hello))
		var served []func() error
		for range 3 {
			ln := newPipeListener()
			served = append(served, serve(t, srv, ln))
			ln.dial(t).get("/")
		}
		synctest.Wait()
		if got := srv.Counts(); got.Idle != 3 || got.Open() != 3 {
			t.Errorf("counts %+v", got)
		}
		wantReport(t, srv.Stop(t.Context()), Report{Closed: 3, Duration: 20 * time.Second})
		for _, f := range served {
			if err := f(); err != http.ErrServerClosed {
				t.Errorf("Serve: %v", err)
			}
		}
	})
}

// The last connection closes at the very moment the stop timeout is over.
func TestStopTimeoutRacesTheLastClose(t *testing.T) {
	for range 1000 {
		synctest.Test(t, func(t *testing.T) {
			h := func(http.ResponseWriter, *http.Request) { time.Sleep(60 * time.Second) }
			srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
			serve(t, srv, ln)
			stuck := ln.dial(t)
			stuck.sendGet("/")
			c := ln.dial(t)
			c.get("/")
			synctest.Wait()
			time.AfterFunc(60*time.Second, func() { stuck.Close() })
			report := srv.Stop(t.Context())
			if report.Connections() != 2 || report.Remaining != 0 || report.Stuck != 0 {
				t.Fatalf("report %+v", report)
			}
			if report.Duration > 61*time.Second {
				t.Fatalf("took %v", report.Duration)
			}
		})
	}
}

func TestCountsDuringTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		mux := http.NewServeMux()
		mux.Handle("/wait", g)
		mux.HandleFunc("/", hello)
		srv, ln := newServer(mux), newPipeListener()
		serve(t, srv, ln)
		if got := srv.Counts(); got != (Counts{}) {
			t.Errorf("counts %+v", got)
		}
		ln.dial(t).get("/")
		ln.dial(t)
		ln.dial(t).sendGet("/wait")
		<-g.entered
		synctest.Wait()
		stop := stopping(srv)
		time.Sleep(3 * time.Second)
		want := Counts{New: 1, Active: 1, Idle: 1, Oldest: 3 * time.Second, Draining: true, Lingering: 2}
		if got := srv.Counts(); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
		time.Sleep(3 * time.Second)
		want = Counts{Active: 1, Idle: 1, Oldest: 6 * time.Second, Draining: true, Lingering: 1, Closed: 1}
		if got := srv.Counts(); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
		close(g.open)
		report := stop()
		if got, want := srv.Counts(), (Counts{Draining: true, Finished: report.Finished, Closed: report.Closed, Killed: report.Killed}); got != want {
			t.Errorf("counts after Stop %+v", got)
		}
	})
}
