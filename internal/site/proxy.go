package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"syscall"
	"time"
)

// Forwarder passes requests on to another server.
type Forwarder struct {
	target    string
	transport *http.Transport
	proxy     *httputil.ReverseProxy
	log       *slog.Logger
}

// Proxy passes requests on to the server at rawurl, which is http://HOST:PORT,
// https://HOST:PORT, either with a path to put before that of the request, or
// unix:///PATH for a server on a Unix socket. The Host header is the client's,
// since the server usually builds links and checks the origin of WebSockets by
// it; only for https it is that of rawurl. X-Forwarded-For, -Host and -Proto
// are set anew, upgrades (WebSocket) work, and answers are passed on
// as they come. A server that cannot be reached is answered with 502; the
// details go to logger, which may be nil.
//
// A GenerationHeader of the server behind is dropped, so that the one set by
// Header tells who answered the client. The caller closes the Forwarder when
// no request uses it any more.
func Proxy(rawurl string, logger *slog.Logger) (*Forwarder, error) {
	target, socket, err := parseTarget(rawurl)
	if err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	f := &Forwarder{target: target.Redacted(), log: logger}
	if socket != "" {
		f.target = "unix://" + socket
	}
	f.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if socket != "" {
				network, addr = "unix", socket
			}
			return dialer.DialContext(ctx, network, addr)
		},
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // what the client asks for is what it gets
		MaxIdleConnsPerHost:   256,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
	f.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
			if target.Scheme == "http" {
				r.Out.Host = r.In.Host
			}
		},
		Transport:      f.transport,
		FlushInterval:  -1,
		ModifyResponse: ownGeneration,
		ErrorHandler:   f.fail,
		ErrorLog:       slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	return f, nil
}

func parseTarget(rawurl string) (target *url.URL, socket string, err error) {
	u, err := url.Parse(rawurl)
	if err != nil {
		var parse *url.Error // its text has the URL, and that may have a password
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return nil, "", fmt.Errorf("the URL to pass requests on to cannot be read: %w", err)
	}
	const want = "give one like http://127.0.0.1:9000, https://host or unix:///run/app.sock"
	switch {
	case u.RawQuery != "" || u.Fragment != "":
		return nil, "", fmt.Errorf("%q: a query or fragment cannot be passed on: %s", u.Redacted(), want)
	case u.Scheme == "unix" && u.Host == "" && len(u.Path) > 1:
		return &url.URL{Scheme: "http", Host: "localhost"}, u.Path, nil
	case (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "":
		return u, "", nil
	}
	return nil, "", fmt.Errorf("%q is no URL to pass requests on to: %s", u.Redacted(), want)
}

// generationKey is the context key of the answer's GenerationHeader.
type generationKey struct{}

func (f *Forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// ReverseProxy adds the headers of the answer to those that are set, and
	// forgets the latter when an interim answer (1xx) was passed on. So the
	// header is put into the answer instead.
	if gen := w.Header().Get(GenerationHeader); gen != "" {
		w.Header().Del(GenerationHeader)
		r = r.WithContext(context.WithValue(r.Context(), generationKey{}, gen))
	}
	// Without this net/http closes the body of the request when the answer
	// begins. If the transport has sent all of it by then, but not yet seen its
	// end, it takes that for an error and cuts the answer off. HTTP/2 has no
	// need of it, and says so.
	_ = http.NewResponseController(w).EnableFullDuplex()
	f.proxy.ServeHTTP(w, r)
}

// Close closes the idle connections to the server behind.
func (f *Forwarder) Close() error {
	f.transport.CloseIdleConnections()
	return nil
}

func ownGeneration(res *http.Response) error {
	setGeneration(res.Header, res.Request)
	return nil
}

func setGeneration(h http.Header, r *http.Request) {
	h.Del(GenerationHeader)
	if gen, ok := r.Context().Value(generationKey{}).(string); ok {
		h.Set(GenerationHeader, gen)
	}
}

// fail answers a request that could not be passed on. The client is told the
// kind of the failure, the log has the rest.
func (f *Forwarder) fail(w http.ResponseWriter, r *http.Request, err error) {
	setGeneration(w.Header(), r)
	if r.Context().Err() != nil {
		// The client has gone, nobody reads this.
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	f.log.Warn("request not passed on", "target", f.target, "method", r.Method, "path", r.URL.Path, "error", err)
	plain(w, http.StatusBadGateway, fmt.Sprintf(
		"the server behind this proxy gave no answer: %s. See that it is running and reachable.\n", kindOf(err)))
}

func kindOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return "nothing listens there"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "it closed the connection"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "it took too long"
	}
	return "it could not be reached or understood"
}
