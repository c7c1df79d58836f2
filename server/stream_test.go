package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// echo answers each line, and says goodbye when its read is interrupted.
func echo(ctx context.Context, c net.Conn) {
	in := bufio.NewScanner(c)
	for in.Scan() {
		fmt.Fprintf(c, "%s\n", in.Text())
	}
	if in.Err() != nil {
		io.WriteString(c, "bye\n")
	}
}

func newStream(h func(context.Context, net.Conn)) *StreamServer {
	return &StreamServer{
		Handler:     h,
		StopTimeout: 60 * time.Second,
		KillTimeout: 30 * time.Second,
		OnDrain:     func(c net.Conn) { c.SetReadDeadline(time.Now()) },
	}
}

func TestStreamHandlersAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newStream(echo), newPipeListener()
		served := serve(t, srv, ln)
		c := ln.dial(t)
		c.send("one\n")
		if line, _ := c.br.ReadString('\n'); line != "one\n" {
			t.Errorf("got %q", line)
		}
		if got := srv.Counts(); got.Active != 1 || got.Open() != 1 {
			t.Errorf("counts %+v", got)
		}
		stop := stopping(srv)
		if line, _ := c.br.ReadString('\n'); line != "bye\n" {
			t.Errorf("got %q", line)
		}
		c.wantEOF()
		wantReport(t, stop(), Report{Finished: 1})
		if err := served(); err != ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestStreamContextEndsOnlyWhenKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var srv *StreamServer
		var told, ended time.Time
		srv = newStream(func(ctx context.Context, c net.Conn) {
			<-srv.Draining()
			told = time.Now()
			<-ctx.Done()
			ended = time.Now()
		})
		ln := newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1, Duration: 60 * time.Second})
		if d := ended.Sub(told); d != 60*time.Second {
			t.Errorf("ctx ended %v after the drain began", d)
		}
		c.wantEOF()
	})
}

func TestStreamHandlerThatMissesTheKillTimeoutIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		srv, ln := newStream(func(context.Context, net.Conn) { <-release }), newPipeListener()
		serve(t, srv, ln)
		ln.dial(t)
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1, Remaining: 1, Duration: 90 * time.Second})
		close(release)
	})
}

func TestStreamClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newStream(echo), newPipeListener()
		served := serve(t, srv, ln)
		c := ln.dial(t)
		synctest.Wait()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		c.wantEOF()
		served()
		if err := srv.Serve(newPipeListener()); err != ErrServerClosed {
			t.Errorf("Serve after Close: %v", err)
		}
		srv.Stop(t.Context())
	})
}

func TestStreamListenerTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newStream(echo), newPipeListener()
		served := serve(t, srv, ln)
		c := ln.dial(t)
		ln.Close()
		if err := served(); err != ErrListenerClosed {
			t.Errorf("Serve: %v", err)
		}
		c.send("still here\n")
		if line, _ := c.br.ReadString('\n'); line != "still here\n" {
			t.Errorf("got %q", line)
		}
		stop := stopping(srv)
		if line, _ := c.br.ReadString('\n'); line != "bye\n" {
			t.Errorf("got %q", line)
		}
		wantReport(t, stop(), Report{Finished: 1})
	})
}

// A lateListener has accepted a connection by the time it is closed.
type lateListener struct {
	*pipeListener
	late net.Conn
}

func (l *lateListener) Accept() (net.Conn, error) {
	c, err := l.pipeListener.Accept()
	if err != nil && l.late != nil {
		c, l.late = l.late, nil
		return c, nil
	}
	return c, err
}

func TestConnectionAcceptedAsTheDrainBeginsIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := newClient(t, near)
		srv := newServer(http.HandlerFunc(hello))
		serve(t, srv, &lateListener{newPipeListener(), far})
		synctest.Wait()
		stop := stopping(srv)
		resp, _ := c.get("/")
		wantClose(t, resp, true)
		wantReport(t, stop(), Report{Finished: 1})
	})
}

func TestStreamAcceptedAsTheDrainBeginsIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := newClient(t, near)
		srv := newStream(echo)
		serve(t, srv, &lateListener{newPipeListener(), far})
		synctest.Wait()
		stop := stopping(srv)
		if line, _ := c.br.ReadString('\n'); line != "bye\n" {
			t.Errorf("got %q", line)
		}
		wantReport(t, stop(), Report{Finished: 1})
	})
}

type busyListener struct {
	*pipeListener
	failures int
}

type temporaryError struct{ error }

func (temporaryError) Timeout() bool   { return false }
func (temporaryError) Temporary() bool { return true }

func (l *busyListener) Accept() (net.Conn, error) {
	if l.failures--; l.failures >= 0 {
		return nil, temporaryError{errors.New("too many open files")}
	}
	return l.pipeListener.Accept()
}

func TestAcceptIsTriedAgain(t *testing.T) {
	for name, srv := range map[string]interface {
		Serve(net.Listener) error
		Stop(context.Context) Report
	}{"stream": newStream(echo), "http": &Server{Server: http.Server{ErrorLog: discardLog}}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ln := &busyListener{newPipeListener(), 5}
				served := serve(t, srv, ln)
				ln.dial(t).Close()
				synctest.Wait()
				srv.Stop(t.Context())
				if err := served(); err != ErrServerClosed {
					t.Errorf("Serve: %v", err)
				}
			})
		})
	}
}

// A panic ends one connection. The others do not notice.
func TestStreamHandlerPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuilder
		srv, ln := newStream(func(ctx context.Context, c net.Conn) {
			line, _ := bufio.NewReader(c).ReadString('\n')
			switch line {
			case "panic\n":
				panic("on purpose")
			case "abort\n":
				panic(http.ErrAbortHandler)
			}
			io.WriteString(c, line)
		}), newPipeListener()
		srv.Logger = slog.New(slog.NewTextHandler(&log, nil))
		serve(t, srv, ln)
		loud, quiet, other := ln.dial(t), ln.dial(t), ln.dial(t)
		loud.send("panic\n")
		loud.wantEOF()
		if got := log.String(); !strings.Contains(got, "on purpose") || !strings.Contains(got, "stream_test.go") {
			t.Errorf("log has %q", got)
		}
		before := log.String()
		quiet.send("abort\n")
		quiet.wantEOF()
		if log.String() != before {
			t.Errorf("log has %q", log.String())
		}
		other.send("fine\n")
		if line, _ := other.br.ReadString('\n'); line != "fine\n" {
			t.Errorf("got %q", line)
		}
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{})
	})
}

func TestStreamServerWithoutHandler(t *testing.T) {
	var srv StreamServer
	ln := newPipeListener()
	if err := srv.Serve(ln); err != errNoHandler {
		t.Errorf("Serve: %v", err)
	}
	<-ln.gone
	wantReport(t, srv.Stop(t.Context()), Report{})
}
