package server

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// testTLS returns the configurations of a TLS server and of its clients.
func testTLS(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	ts := httptest.NewUnstartedServer(nil)
	ts.StartTLS()
	defer ts.Close()
	pool := ts.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return &tls.Config{Certificates: ts.TLS.Certificates},
		&tls.Config{RootCAs: pool, ServerName: "example.com"}
}

func serveTLS(t testing.TB, srv *Server, ln net.Listener) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }()
	t.Cleanup(func() {
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("ServeTLS: %v", err)
		}
	})
}

func (l *pipeListener) dialTLS(t testing.TB, config *tls.Config) *client {
	t.Helper()
	tc := tls.Client(l.dial(t).Conn, config)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return newClient(t, tc)
}

// One connection has shaken hands and is silent: it may be about to be used,
// like an idle one. One idles for too long, one is
// used once more, one has its request cut in two.
func TestTLS(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
		srv.TLSConfig, srv.ErrorLog = serverTLS, discardLog // one handshake will fail
		serveTLS(t, srv, ln)
		silent, idle, used, cut := ln.dialTLS(t, clientTLS), ln.dialTLS(t, clientTLS), ln.dialTLS(t, clientTLS), ln.dialTLS(t, clientTLS)
		idle.get("/")
		used.get("/")
		cut.get("/")
		synctest.Wait()
		cut.send("GET /cut HTTP/1.1\r\n")
		// One has not even begun a handshake, one begins it late.
		mute, late := ln.dial(t), ln.dial(t)
		synctest.Wait()
		if got := srv.Counts(); got.New != 3 || got.Idle != 3 {
			t.Errorf("counts %+v", got)
		}
		// Somebody must read the farewell of TLS, there is no buffer.
		for _, c := range []*client{silent, idle, mute, late} {
			go io.Copy(io.Discard, c.Conn)
		}
		stop := stopping(srv)
		time.Sleep(4 * time.Second)
		go late.Write([]byte{0x16})
		time.Sleep(2 * time.Second)
		if got := srv.Counts(); got.New != 2 || got.Idle != 3 {
			t.Errorf("counts when the mute one is closed %+v", got)
		}
		resp, _ := used.get("/2")
		wantClose(t, resp, true)
		used.wantEOF()
		time.Sleep(24 * time.Second)
		if got := srv.Counts(); got.Open() != 1 {
			t.Errorf("counts when the others are closed %+v", got)
		}
		cut.send("Host: test\r\n\r\n")
		resp, _ = cut.receive()
		wantClose(t, resp, true)
		cut.wantEOF()
		wantReport(t, stop(), Report{Finished: 2, Closed: 4, Duration: 30 * time.Second})
	})
}

// Connections from a user's own TLS listener cannot be wrapped. That one of
// them was hijacked and closed is found out all the same.
func TestUsersOwnTLSListener(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	srv := &Server{Server: http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hijack" {
			c, _, _ := http.NewResponseController(w).Hijack()
			io.WriteString(c, "bye\n")
			c.Close()
			return
		}
		hello(w, r)
	})}}
	ln := listenTCP(t)
	served := serve(t, srv, tls.NewListener(ln, serverTLS))
	dial := func() *client {
		return newClient(t, tls.Client(dialTCP(t, ln.Addr().String()).Conn, clientTLS))
	}
	idle := dial()
	idle.get("/")
	hijacked := dial()
	hijacked.sendGet("/hijack")
	if line, _ := hijacked.br.ReadString('\n'); line != "bye\n" {
		t.Errorf("got %q", line)
	}
	hijacked.wantEOF()
	eventually(t, "idle alone is open", func() bool {
		c := srv.Counts()
		return c.Idle == 1 && c.Open() == 1
	})
	stop := stopping(srv)
	<-srv.Draining()
	resp, _ := idle.get("/")
	wantClose(t, resp, true)
	wantReport(t, stop(), Report{Finished: 1})
	served()
}

func TestServeTLSNamesAMissingFile(t *testing.T) {
	srv := &Server{}
	ln := listenTCP(t)
	err := srv.ServeTLS(ln, filepath.Join(t.TempDir(), "none.pem"), "")
	if !os.IsNotExist(err) {
		t.Errorf("ServeTLS: %v", err)
	}
	if _, err := ln.Accept(); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("listener is still open: %v", err)
	}
	wantReport(t, srv.Stop(t.Context()), Report{})
}
