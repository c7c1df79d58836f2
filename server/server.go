package server

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// A Server is an http.Server that can be stopped without failing a request.
//
// The embedded http.Server is its configuration: it is read when Serve is
// called, is not changed, and never serves by itself. Each Serve runs an
// http.Server of its own that is made from it, and that is the one a handler
// finds under http.ServerContextKey. All methods of http.Server are replaced by
// this type's; do not call those of the embedded one.
//
// The zero value is ready to use. A Server must not be copied after first use,
// and not be used again after it has been stopped.
type Server struct {
	http.Server

	// StopTimeout is how long Stop waits for connections to finish. Zero
	// means one minute, less than zero that it does not wait.
	StopTimeout time.Duration

	// KillTimeout is how long Stop waits, once it has told all that is left
	// to close, for that to happen and for handlers to return. Zero means
	// one minute, less than zero that it does not wait. The whole Stop takes
	// at most StopTimeout and KillTimeout together, whatever blocks.
	KillTimeout time.Duration

	// Linger is how long during a drain an idle connection stays open,
	// waiting to be used once more. It should be longer than the round trip
	// to the slowest client: a request that is on its way when its
	// connection is closed is lost. Zero means until the stop timeout is
	// over, less than zero not at all.
	Linger time.Duration

	// OnHijackedDrain is called, if it is not nil, for each connection that
	// a handler has hijacked when the drain begins, with the net.Conn that
	// Hijack returned, each time in a goroutine of its own: to tell a
	// WebSocket client that the server is going away, for instance. It may
	// be called before the hijacker has even finished its handshake, so a
	// handler that has its connection in hand does better to watch Draining.
	// That is also the way for what is hijacked later, during the drain.
	OnHijackedDrain func(net.Conn)

	reg registry

	mu         sync.Mutex
	fronts     []*front
	onShutdown []func()
	noReuse    bool // SetKeepAlivesEnabled(false) was called
}

// Serve accepts connections on ln and serves them, until Stop, Shutdown or
// Close is called. It always returns an error: ErrServerClosed at the beginning
// of a stop, so the program must wait for Stop to return before it exits, or
// ErrListenerClosed if ln was closed by somebody else, after which the
// connections that are open are served on and still need a Stop. It closes ln
// when it returns. It may be called several times, each with its own listener.
func (s *Server) Serve(ln net.Listener) error {
	f, err := s.newFront(false)
	if err != nil {
		ln.Close()
		return err
	}
	times := timeouts{s.IdleTimeout, s.ReadHeaderTimeout, s.ReadTimeout}
	if times.idle == 0 {
		times.idle = times.read
	}
	if times.header == 0 {
		times.header = times.read
	}
	return f.serve(&listener{Listener: ln, reg: &s.reg, times: times, frugal: s.alone(ln)})
}

// ServeTLS is Serve for connections that speak TLS. The files may be empty if
// TLSConfig has a certificate.
func (s *Server) ServeTLS(ln net.Listener, certFile, keyFile string) error {
	f, err := s.newFront(true)
	if err != nil {
		ln.Close()
		return err
	}
	return f.serveTLS(&listener{Listener: ln, reg: &s.reg, opaque: true, frugal: s.alone(ln)}, certFile, keyFile)
}

// alone reports whether nobody but this package can know the bare connections that
// ln accepts, and set deadlines on them.
func (s *Server) alone(ln net.Listener) bool {
	if s.ConnState != nil || s.ConnContext != nil || s.OnHijackedDrain != nil {
		return false
	}
	switch ln.(type) {
	case *net.TCPListener, *net.UnixListener, Mover:
		return true
	}
	return false
}

// ListenAndServe listens on the TCP address s.Addr, ":http" if it is empty, and
// calls Serve.
func (s *Server) ListenAndServe() error {
	ln, err := s.listen(":http")
	if err != nil {
		return err
	}
	return s.Serve(ln)
}

// ListenAndServeTLS listens on the TCP address s.Addr, ":https" if it is empty,
// and calls ServeTLS.
func (s *Server) ListenAndServeTLS(certFile, keyFile string) error {
	ln, err := s.listen(":https")
	if err != nil {
		return err
	}
	return s.ServeTLS(ln, certFile, keyFile)
}

func (s *Server) listen(addr string) (net.Listener, error) {
	if s.reg.phase.Load() != serving {
		return nil, ErrServerClosed
	}
	if s.Addr != "" {
		addr = s.Addr
	}
	return net.Listen("tcp", addr)
}

// Stop drains the server and says what became of its connections.
//
// It closes the listeners. From then on every HTTP/1 response that begins tells
// its client to close the connection; HTTP/2 connections get a GOAWAY and
// finish their streams; idle ones linger. Once StopTimeout is over, or ctx
// ends, whatever is left is closed. Then Stop waits at most KillTimeout for
// handlers to return. If some do not, the report says so.
//
// A second call joins the first and returns the same report. A call before
// Serve makes Serve return at once. A call from inside a handler waits for that
// very handler: it is killed like any other that does not end, and counted
// among those that remain; start Stop in a goroutine instead.
func (s *Server) Stop(ctx context.Context) Report {
	return s.reg.stop(ctx, s.plan)
}

// Shutdown is Stop for those who know only http.Server. It returns an error if
// something had to be cut off or is still running; the error holds the
// report's text and wraps that of ctx, if it ended. Unlike http.Server's it
// closes what is left when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	report := s.Stop(ctx)
	if report.Clean() {
		return nil
	}
	return &stopError{report: report, cause: ctx.Err()}
}

// Close closes the listeners and all connections at once, hijacked ones too. It
// does not wait for handlers, but a later Stop does. It returns an error that
// came from closing a listener.
func (s *Server) Close() error { return s.reg.close(s.plan) }

// Counts says how many connections are open now, also during a drain. It looks
// at each of them.
func (s *Server) Counts() Counts { return s.reg.counts() }

// Draining returns a channel that is closed when the drain begins. Handlers
// that would go on for long, such as those of event streams and WebSockets,
// watch it in order to say goodbye.
func (s *Server) Draining() <-chan struct{} { return s.reg.drainBegan() }

// RegisterOnShutdown registers a function to call, in a goroutine of its own,
// when the drain begins. Stop waits for it.
func (s *Server) RegisterOnShutdown(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onShutdown = append(s.onShutdown, f)
}

// SetKeepAlivesEnabled controls whether connections are used for more than one
// request, as http.Server's does: to disable that closes idle connections at
// once. A drain does not need it.
func (s *Server) SetKeepAlivesEnabled(v bool) {
	s.mu.Lock()
	s.noReuse = !v
	fronts := slices.Clone(s.fronts)
	s.mu.Unlock()
	for _, f := range fronts { // without the lock: this may close connections
		f.http.SetKeepAlivesEnabled(v)
	}
}

// plan gathers what a drain needs to know.
func (s *Server) plan() plan {
	p := makePlan(s.StopTimeout, s.KillTimeout, s.Linger)
	p.onDrain, p.state = s.OnHijackedDrain, http.StateHijacked
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.fronts {
		p.atStart = append(p.atStart, f.goAway)
	}
	// This runs what others, golang.org/x/net/http2 for one, have registered
	// on the embedded http.Server.
	p.atStart = append(p.atStart, func() { s.Server.Shutdown(context.Background()) })
	p.atStart = append(p.atStart, s.onShutdown...)
	return p
}
