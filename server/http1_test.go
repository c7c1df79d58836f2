package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestHijackedConnectionIsToldAndWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conns sync.Map
		h := func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conns.Store(c, r.URL.Path)
			io.WriteString(c, "hijacked\n")
		}
		srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
		srv.OnHijackedDrain = func(c net.Conn) {
			path, ok := conns.Load(c)
			if !ok {
				t.Error("hook got a connection that Hijack did not return")
			}
			fmt.Fprintf(c, "bye %v\n", path)
			if path == "/polite" {
				time.Sleep(10 * time.Second)
				c.Close()
			}
		}
		serve(t, srv, ln)
		polite, rude := ln.dial(t), ln.dial(t)
		for path, c := range map[string]*client{"polite": polite, "rude": rude} {
			c.sendGet("/" + path)
			if line, _ := c.br.ReadString('\n'); line != "hijacked\n" {
				t.Fatalf("got %q", line)
			}
		}
		synctest.Wait()
		if got := srv.Counts(); got.Hijacked != 2 || got.Open() != 2 {
			t.Errorf("counts %+v", got)
		}
		stop := stopping(srv)
		if line, _ := polite.br.ReadString('\n'); line != "bye /polite\n" {
			t.Errorf("got %q", line)
		}
		if line, _ := rude.br.ReadString('\n'); line != "bye /rude\n" {
			t.Errorf("got %q", line)
		}
		time.Sleep(11 * time.Second)
		if got := srv.Counts(); got.Hijacked != 1 {
			t.Errorf("counts after one has closed %+v", got)
		}
		wantReport(t, stop(), Report{Finished: 1, Killed: 1, Hijacked: 2, Duration: 60 * time.Second})
		rude.wantEOF()
	})
}

func TestHijackedHandlerWatchesDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var srv *Server
		srv = newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _, _ := http.NewResponseController(w).Hijack()
			defer c.Close()
			<-srv.Draining()
			io.WriteString(c, "going away\n")
		}))
		ln := newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.sendGet("/")
		synctest.Wait()
		stop := stopping(srv)
		if line, _ := c.br.ReadString('\n'); line != "going away\n" {
			t.Errorf("got %q", line)
		}
		wantReport(t, stop(), Report{Finished: 1, Hijacked: 1})
		if d := stop().Duration; d != 0 {
			t.Errorf("took %v", d)
		}
	})
}

// The connection has been killed by the time its handler hijacks it, and the
// handler does not close it.
func TestKilledConnectionIsHijacked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(61 * time.Second)
			if _, _, err := http.NewResponseController(w).Hijack(); err != nil {
				t.Error(err)
			}
		}
		srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
		serve(t, srv, ln)
		ln.dial(t).sendGet("/")
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Killed: 1, Hijacked: 1, Duration: 61 * time.Second})
	})
}

// A handler may go on after the connection it has hijacked is closed.
func TestHandlerOutlivesItsHijackedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := func(w http.ResponseWriter, r *http.Request) {
			c, _, _ := http.NewResponseController(w).Hijack()
			c.Close()
			time.Sleep(45 * time.Second)
		}
		srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.sendGet("/")
		c.wantEOF()
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Duration: 45 * time.Second})
	})
}

func TestChunkedUploadInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%d bytes, %v", len(b), err)
		}
		srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		synctest.Wait()
		stop := stopping(srv)
		for range 30 {
			time.Sleep(time.Second)
			c.send("5\r\nhello\r\n")
		}
		c.send("0\r\n\r\n")
		if _, body := c.receive(); body != "155 bytes, <nil>" {
			t.Errorf("got %q", body)
		}
		c.Close()
		wantReport(t, stop(), Report{Finished: 1, Duration: 30 * time.Second})
	})
}

func TestServerSentEventsWatchDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var srv *Server
		srv = newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for n := 0; ; n++ {
				fmt.Fprintf(w, "data: %d\n\n", n)
				w.(http.Flusher).Flush()
				select {
				case <-time.After(time.Second):
				case <-srv.Draining():
					io.WriteString(w, "event: bye\n\n")
					return
				}
			}
		}))
		ln := newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.sendGet("/")
		time.AfterFunc(2500*time.Millisecond, func() { stopping(srv) })
		if _, body := c.receive(); body != "data: 0\n\ndata: 1\n\ndata: 2\n\nevent: bye\n\n" {
			t.Errorf("got %q", body)
		}
		wantReport(t, srv.Stop(t.Context()), Report{Closed: 1, Duration: 20 * time.Second})
	})
}

func TestExpectContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			g.entered <- struct{}{}
			<-g.open
			io.Copy(w, r.Body)
		})), newPipeListener()
		serve(t, srv, ln)
		before, during := ln.dial(t), ln.dial(t)
		head := "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
		before.send("%s", head)
		<-g.entered
		stop := stopping(srv)
		synctest.Wait()
		during.send("%s", head)
		close(g.open)
		for c, last := range map[*client]bool{before: false, during: true} {
			if resp, _ := c.receive(); resp.StatusCode != http.StatusContinue {
				t.Fatalf("got %v", resp.Status)
			}
			c.send("hello")
			resp, body := c.receive()
			if body != "hello" {
				t.Errorf("got %q", body)
			}
			wantClose(t, resp, last)
		}
		before.Close()
		wantReport(t, stop(), Report{Finished: 2})
	})
}

// Of pipelined requests those are answered that come before the answer which
// closes the connection. The ones after it never reach a handler, so their
// client may repeat them.
func TestPipelinedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		var seen []string
		srv, ln := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = append(seen, r.URL.Path)
			g.ServeHTTP(w, r)
		})), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		go c.send("%s", "GET /1 HTTP/1.1\r\nHost: t\r\n\r\nGET /2 HTTP/1.1\r\nHost: t\r\n\r\nGET /3 HTTP/1.1\r\nHost: t\r\n\r\n")
		<-g.entered
		stop := stopping(srv)
		synctest.Wait()
		close(g.open)
		resp, body := c.receive()
		wantClose(t, resp, false)
		if body != "hello /1" {
			t.Errorf("got %q", body)
		}
		resp, body = c.receive()
		wantClose(t, resp, true)
		if body != "hello /2" {
			t.Errorf("got %q", body)
		}
		c.wantEOF()
		wantReport(t, stop(), Report{Finished: 1})
		if !slices.Equal(seen, []string{"/1", "/2"}) {
			t.Errorf("handler saw %v", seen)
		}
	})
}

func TestSlowReaderOfALargeResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, repeat("x", 1<<20)) }
		srv, ln := newServer(http.HandlerFunc(h)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.br = bufio.NewReaderSize(slowReader{c.Conn}, 1<<16)
		c.sendGet("/")
		synctest.Wait()
		stop := stopping(srv)
		if _, body := c.receive(); len(body) != 1<<20 {
			t.Errorf("got %d bytes", len(body))
		}
		c.Close()
		report := stop()
		wantReport(t, report, Report{Finished: 1})
		if report.Duration < 20*time.Second || report.Duration > 40*time.Second {
			t.Errorf("took %v: the reader was not slow, or not waited for", report.Duration)
		}
	})
}

type slowReader struct{ r io.Reader }

func (r slowReader) Read(b []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return r.r.Read(b)
}

type ctxKey struct{}

// All hooks of http.Server are called as ever, and see the connections that
// the listener gave.
func TestUsersHooksAreCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var got []string
		note := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, s)
		}
		type mine struct{ net.Conn }
		ln := newPipeListener()
		ln.wrap = func(c net.Conn) net.Conn { return mine{c} }
		srv := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			note(fmt.Sprint("handler ", r.Context().Value(ctxKey{})))
		}))
		srv.ConnState = func(c net.Conn, st http.ConnState) {
			if _, ok := c.(mine); !ok {
				t.Errorf("ConnState saw a %T", c)
			}
			note(st.String())
		}
		srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			if _, ok := c.(mine); !ok {
				t.Errorf("ConnContext saw a %T", c)
			}
			return context.WithValue(ctx, ctxKey{}, fmt.Sprint(ctx.Value(ctxKey{}), "+conn"))
		}
		srv.BaseContext = func(l net.Listener) context.Context {
			return context.WithValue(t.Context(), ctxKey{}, "base")
		}
		srv.RegisterOnShutdown(func() { note("shutdown") })
		srv.Server.RegisterOnShutdown(func() { note("shutdown") })
		serve(t, srv, ln)
		ln.dial(t).get("/")
		synctest.Wait()
		srv.Stop(t.Context())
		want := []string{"new", "active", "handler base+conn", "idle", "shutdown", "shutdown", "closed"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestStopWaitsForTheUsersHookOfTheLastClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		srv.ConnState = func(_ net.Conn, st http.ConnState) {
			if st == http.StateClosed {
				time.Sleep(10 * time.Second)
			}
		}
		serve(t, srv, ln)
		ln.dial(t).get("/")
		wantReport(t, srv.Stop(t.Context()), Report{Closed: 1, Duration: 30 * time.Second})
	})
}

func TestHookThatHangsIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(nil)
		hang := make(chan struct{})
		srv.RegisterOnShutdown(func() { <-hang })
		serve(t, srv, newPipeListener())
		synctest.Wait()
		wantReport(t, srv.Stop(t.Context()), Report{Remaining: 1, Duration: 90 * time.Second})
		close(hang)
	})
}

func TestSetKeepAlivesEnabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		serve(t, srv, ln)
		c := ln.dial(t)
		c.get("/")
		synctest.Wait()
		srv.SetKeepAlivesEnabled(false)
		c.wantEOF()
		resp, _ := ln.dial(t).get("/")
		wantClose(t, resp, true)
		later := newPipeListener()
		serve(t, srv, later)
		resp, _ = later.dial(t).get("/")
		wantClose(t, resp, true)
		srv.SetKeepAlivesEnabled(true)
		resp, _ = later.dial(t).get("/")
		wantClose(t, resp, false)
		srv.Stop(t.Context())
	})
}

// A method that a future Go adds to http.Server would be promoted, and would
// act on an http.Server that serves nothing.
func TestNoMethodOfHTTPServerIsPromoted(t *testing.T) {
	known := []string{"Close", "ListenAndServe", "ListenAndServeTLS", "RegisterOnShutdown",
		"Serve", "ServeTLS", "SetKeepAlivesEnabled", "Shutdown"}
	var got []string
	for m := range reflect.TypeFor[*http.Server]().Methods() {
		got = append(got, m.Name)
	}
	if !slices.Equal(got, known) {
		t.Errorf("http.Server has the methods %v, this package replaces %v", got, known)
	}
}

func TestWholeConfigurationIsCopied(t *testing.T) {
	var from, to http.Server
	v := reflect.ValueOf(&from).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); v.Type().Field(i).IsExported() {
			switch f.Kind() {
			case reflect.Int, reflect.Int64:
				f.SetInt(int64(i + 1))
			case reflect.Bool:
				f.SetBool(true)
			case reflect.String:
				f.SetString("set")
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
			case reflect.Map:
				f.Set(reflect.MakeMap(f.Type()))
			case reflect.Func:
				f.Set(reflect.MakeFunc(f.Type(), nil))
			case reflect.Interface:
				f.Set(reflect.ValueOf(http.NotFoundHandler()))
			default:
				t.Fatalf("do not know how to set %v", v.Type().Field(i))
			}
		}
	}
	copyConfig(&to, &from)
	w := reflect.ValueOf(&to).Elem()
	for i := range w.NumField() {
		if w.Type().Field(i).IsExported() && w.Field(i).IsZero() {
			t.Errorf("%s was not copied", w.Type().Field(i).Name)
		}
	}
}
