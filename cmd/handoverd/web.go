package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

// web is the service that answers HTTP by itself: the built-in site, files, or
// a proxy. Packets are sent back.
type web struct {
	a       *app
	srv     *server.Server
	content *content

	serving   sync.WaitGroup
	drainEnds atomic.Int64 // Unix nanoseconds; 0 before the drain
}

func newWeb(a *app) (*web, error) {
	o := a.opts
	w := &web{a: a, srv: &server.Server{
		Server: http.Server{
			ReadHeaderTimeout: time.Minute,
			ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
			Protocols:         protocols(),
		},
		StopTimeout: o.drainTimeout.orNone(),
		KillTimeout: o.killTimeout.orNone(),
		Linger:      o.linger.orDefault(),
	}}
	if o.tlsCert != "" {
		cert, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		w.srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	}
	var err error
	w.content, err = w.newContent()
	return w, err
}

// protocols are all that net/http speaks. HTTP/2 on a plaintext listener is for
// clients that know beforehand; there is no upgrade to it.
func protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

func (w *web) check(name, network string) error { return w.a.opts.mayServe(name, network) }

func (w *web) begin() error {
	w.srv.Handler = w.content.handler(w.a.gen.Number)
	return w.shareTickets()
}

// take claims a socket and begins to serve it. Nothing is accepted before
// ownership is ours.
func (w *web) take(l listenSpec, packet bool) error {
	if packet {
		pc, err := w.a.gen.ListenPacket(l.name, l.network, l.address)
		if err != nil {
			return listenError(l, err)
		}
		w.serving.Go(func() { w.echo(l.name, pc) })
		return nil
	}
	ln, err := w.a.gen.Listen(l.name, l.network, l.address)
	if err != nil {
		return listenError(l, err)
	}
	w.serving.Go(func() { w.accept(l.name, ln) })
	return nil
}

// accept serves a stream listener until it is given up.
func (w *web) accept(name string, ln net.Listener) {
	w.a.log.Info("listening", "name", name, "network", ln.Addr().Network(), "address", ln.Addr().String())
	var err error
	if w.srv.TLSConfig != nil {
		err = w.srv.ServeTLS(ln, "", "")
	} else {
		err = w.srv.Serve(ln)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		w.a.fail(fmt.Errorf("listener %s: %w", name, err))
	}
}

// maxPacket is the longest datagram there is.
const maxPacket = 64 << 10

// echo sends each packet back to where it came from.
func (w *web) echo(name string, pc net.PacketConn) {
	w.a.log.Info("listening", "name", name, "network", pc.LocalAddr().Network(), "address", pc.LocalAddr().String())
	defer pc.Close()
	buf := make([]byte, maxPacket)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			w.a.fail(fmt.Errorf("listener %s: %w", name, err))
			return
		}
		if _, err := pc.WriteTo(buf[:n], from); err != nil {
			w.a.log.Debug("packet not answered", "listener", name, "error", err)
		}
	}
}

func (w *web) prepare(context.Context) error { return nil }
func (w *web) abandon()                      { w.srv.Close() }
func (w *web) owned()                        {}

func (w *web) drain(ctx context.Context) report {
	w.drainEnds.Store(time.Now().Add(time.Duration(w.a.opts.drainTimeout)).UnixNano())
	return w.srv.Stop(ctx)
}

func (w *web) outcome() error { return nil }

// close is called when the listeners are closed, which ends what serves them.
func (w *web) close() {
	w.serving.Wait()
	w.content.close()
}

func (w *web) stats() handover.Stats {
	c := w.srv.Counts()
	st := handover.Stats{Connections: connections(c), Ended: ended(c), Oldest: c.Oldest}
	if ends := w.drainEnds.Load(); ends != 0 {
		st.Remaining = max(0, time.Until(time.Unix(0, ends)))
	}
	return st
}

// connections counts the open ones. In a drain it does not matter whether one
// that is waited for has ever been used.
func connections(c server.Counts) map[string]int64 {
	if c.Draining {
		return map[string]int64{
			"active": int64(c.Active), "lingering": int64(c.Lingering), "hijacked": int64(c.Hijacked),
		}
	}
	return map[string]int64{
		"new": int64(c.New), "active": int64(c.Active), "idle": int64(c.Idle), "hijacked": int64(c.Hijacked),
	}
}

// ended counts those that a drain has brought to their end.
func ended(c server.Counts) map[string]int64 {
	if !c.Draining {
		return nil
	}
	return map[string]int64{
		"moved": int64(c.Moved), "finished": int64(c.Finished), "closed": int64(c.Closed), "killed": int64(c.Killed),
	}
}
