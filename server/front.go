package server

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
)

// A front is what one call of Serve runs.
//
// Its http.Server is never shut down: as soon as it is, net/http drops requests
// that it has just read. But only a shutdown makes HTTP/2 connections say
// GOAWAY. So HTTP/2 is set up on a second http.Server that accepts nothing, and
// the first one hands its HTTP/2 connections over to the second's functions.
// To shut down the second then sends the GOAWAYs and touches nothing else.
type front struct {
	server *Server
	http   *http.Server
	h2     *http.Server
	next   http.Handler
	hook   func(net.Conn, http.ConnState) // the user's own; may be nil
	framed protoFunc                      // serves HTTP/2 on any net.Conn; may be nil

	open  atomic.Int64 // connections
	ended atomic.Bool  // Serve has returned

	mu        sync.Mutex
	conns     map[*h2Conn]struct{}
	leaving   bool // the drain has begun
	farewells int  // under way
}

// A protoFunc serves a protocol that was agreed on in TLS.
type protoFunc = func(*http.Server, *tls.Conn, http.Handler)

func (s *Server) newFront(useTLS bool) (*front, error) {
	h2, err := newHTTP2(&s.Server, useTLS)
	if err != nil {
		return nil, err
	}
	f := &front{server: s, http: new(http.Server), h2: h2, next: s.Handler, hook: s.ConnState}
	if f.next == nil {
		f.next = http.DefaultServeMux
	}
	copyConfig(f.http, &s.Server)
	f.http.TLSConfig = s.TLSConfig.Clone()
	f.http.Handler = f
	f.http.ConnState = f.connState
	f.http.ConnContext = f.connContext
	if _, own := s.TLSNextProto[protoTLS]; !own {
		f.framed = h2.TLSNextProto[protoUnencrypted]
		f.conns = make(map[*h2Conn]struct{})
	}
	if h2.TLSNextProto != nil {
		f.http.TLSNextProto = make(map[string]protoFunc)
		for proto, serve := range h2.TLSNextProto {
			f.http.TLSNextProto[proto] = f.nextProto(proto, serve)
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.fronts = slices.DeleteFunc(s.fronts, (*front).isOver)
	if s.noReuse {
		f.http.SetKeepAlivesEnabled(false)
	}
	s.fronts = append(s.fronts, f)
	return f, nil
}

// isOver reports whether nothing is left to do.
func (f *front) isOver() bool { return f.ended.Load() && f.open.Load() == 0 }

// newHTTP2 makes the http.Server that HTTP/2 belongs to. net/http sets it up,
// by its own rules, in the first moments of a Serve.
func newHTTP2(config *http.Server, useTLS bool) (*http.Server, error) {
	h2 := new(http.Server)
	copyConfig(h2, config)
	h2.BaseContext = nil
	h2.TLSConfig = config.TLSConfig.Clone()
	h2.TLSNextProto = maps.Clone(config.TLSNextProto)
	var err error
	if useTLS {
		if h2.TLSConfig == nil {
			h2.TLSConfig = new(tls.Config)
		}
		h2.TLSConfig.GetCertificate = noCertificate // so that it needs no files
		err = h2.ServeTLS(noListener{}, "", "")
	} else {
		err = h2.Serve(noListener{})
	}
	if errors.Is(err, errNoListener) {
		return h2, nil
	}
	return nil, err
}

var errNoListener = errors.New("server: not a listener")

// A noListener accepts nothing.
type noListener struct{}

func (noListener) Accept() (net.Conn, error) { return nil, errNoListener }
func (noListener) Close() error              { return nil }
func (noListener) Addr() net.Addr            { return &net.TCPAddr{} }

func noCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errNoListener }

// copyConfig copies the exported fields, those of a future Go included.
func copyConfig(dst, src *http.Server) {
	d, s := reflect.ValueOf(dst).Elem(), reflect.ValueOf(src).Elem()
	for i := range s.NumField() {
		if s.Type().Field(i).IsExported() {
			d.Field(i).Set(s.Field(i))
		}
	}
}

func (f *front) serve(ln *listener) error {
	defer f.ended.Store(true)
	if !f.server.reg.addListener(ln) {
		ln.Close()
		return ErrServerClosed
	}
	defer f.server.reg.removeListener(ln)
	return f.http.Serve(ln)
}

func (f *front) serveTLS(ln *listener, certFile, keyFile string) error {
	defer f.ended.Store(true)
	if !f.server.reg.addListener(ln) {
		ln.Close()
		return ErrServerClosed
	}
	defer f.server.reg.removeListener(ln)
	defer ln.Close() // ServeTLS does not, if it cannot read the files
	return f.http.ServeTLS(ln, certFile, keyFile)
}

// connContext lets handlers' requests find their connection, if that may move.
func (f *front) connContext(ctx context.Context, c net.Conn) context.Context {
	if hook := f.server.ConnContext; hook != nil {
		if ctx = hook(ctx, unwrap(c)); ctx == nil {
			return nil // net/http says what it thinks of that
		}
	}
	if e := f.server.reg.lookup(c); e != nil && e.pass.mover != nil {
		ctx = context.WithValue(ctx, entryKey{}, e)
	}
	return ctx
}

// shutdownHTTP2 makes all HTTP/2 connections send net/http's GOAWAY.
func (f *front) shutdownHTTP2() { f.h2.Shutdown(context.Background()) }

// ServeHTTP announces the close on net/http's own ResponseWriter, so that the
// handler gets that one, with all that it can do.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reg := &f.server.reg
	n := reg.running.of(r)
	ph := reg.enter(n)
	defer reg.leave(n)
	switch ph {
	case serving:
	case stopped:
		panic(http.ErrAbortHandler) // its connection has gone already
	default:
		if f.announces(r, reg.late()) {
			w.Header().Set("Connection", "close")
		}
	}
	f.next.ServeHTTP(w, r)
	if ph == serving && reg.phase.Load() != serving && f.announces(r, false) {
		// If the handler has written nothing, it is not too late.
		if h := w.Header(); h["Connection"] == nil {
			h.Set("Connection", "close")
		}
	}
}

// announces reports whether the answer to r is to say that the connection is to
// close. It need not, if the connection can go on elsewhere and it is not late.
// With HTTP/2 net/http would refuse at once what comes after it. And what a proxy
// adds for an upgrade must stay the only value.
func (f *front) announces(r *http.Request, late bool) bool {
	if r.ProtoMajor >= 2 {
		return f.framed == nil
	}
	if e := f.server.reg.entryOf(r.Context()); e != nil && e.movable() && !late {
		return false
	}
	return r.Header["Upgrade"] == nil
}

// connState is net/http's hook. The registry hears of the end of a connection
// after the user's hook, so that Stop does not return before it.
func (f *front) connState(nc net.Conn, st http.ConnState) {
	switch st {
	case http.StateNew:
		f.open.Add(1)
	case http.StateClosed, http.StateHijacked:
		f.open.Add(-1)
	}
	reg := &f.server.reg
	e := reg.lookup(nc)
	if f.hook != nil {
		if st == http.StateClosed && e != nil {
			defer reg.setState(e, nc, st)
			e = nil
		}
		defer f.hook(unwrap(nc), st)
	}
	if e != nil {
		reg.setState(e, nc, st)
	}
}

// nextProto wraps the function that serves a protocol other than HTTP/1.
// HTTP/2 reports its states itself; of any other protocol nothing is known but
// that the connection is in use.
func (f *front) nextProto(proto string, serve protoFunc) protoFunc {
	reg := &f.server.reg
	return func(hs *http.Server, c *tls.Conn, h http.Handler) {
		nc := net.Conn(c)
		if u, ok := c.NetConn().(interface{ UnencryptedNetConn() net.Conn }); ok {
			nc = u.UnencryptedNetConn()
		}
		e := reg.lookup(nc)
		switch {
		case proto != protoTLS && proto != protoUnencrypted:
			if e != nil {
				reg.setState(e, nc, http.StateActive)
			}
		default:
			if e != nil {
				e.muxed.Store(true)
				e.pass.forget()
			}
			if f.framed != nil {
				f.serveHTTP2(hs, nc, h)
				return
			}
		}
		serve(hs, c, h)
	}
}

// unwrap returns the connection that the user's listener gave, or the *tls.Conn
// on it, if c is ours.
func unwrap(c net.Conn) net.Conn {
	if h, ok := c.(interface{ unframed() net.Conn }); ok {
		c = h.unframed()
	}
	if t, ok := c.(tracked); ok {
		return t.tracked().raw
	}
	return c
}
