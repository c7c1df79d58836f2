package load

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Config says what load to make. The zero value of each field is usable
// except that Address (or Dial) and one of MaxRequests and Duration must be
// set.
type Config struct {
	// Network is tcp (the default), tcp4, tcp6 or unix.
	Network string
	// Address is where to dial, host:port or the path of a Unix socket.
	Address string
	// Dial replaces dialing Address. The connection is closed by the run.
	Dial func(ctx context.Context) (net.Conn, error)
	// TLS makes the connections TLS ones. Without a ServerName the host of
	// Address is verified. It is not modified.
	TLS *tls.Config

	// HTTP2 makes the load HTTP/2: with prior knowledge, or if TLS is set with
	// ALPN. Otherwise it is HTTP/1.1.
	HTTP2 bool

	// Workers is the number of clients at work at once, each with one connection
	// at a time. 0 means 1.
	Workers int
	// Streams is how many requests each HTTP/2 client has under way at once.
	// 0 means 4. Those above the server's own limit wait.
	Streams int
	// KeepAlive lets a worker use its connection until the server ends it.
	// Without it every request has a connection of its own, which HTTP/1.1 asks
	// the server to close, and which an HTTP/2 client closes itself.
	KeepAlive bool
	// Think is the longest pause before a request, of a worker or with HTTP2 of
	// each of its streams; the pause is uniformly random between nothing and
	// Think. 0 means no pauses.
	Think time.Duration
	// Rate makes the load open-loop: requests begin on a schedule of Rate per
	// second over all workers, whether or not earlier ones were answered, and
	// latency counts from the scheduled instant. 0 means as fast as answers
	// come.
	Rate float64
	// SourceAddrs spreads connections over that many source addresses, from
	// 127.0.0.1 up, so that closed connections in TIME_WAIT do not use up the
	// ephemeral ports. It needs a target in 127.0.0.0/8, and on systems other
	// than Linux those addresses must have been configured. 0 leaves the
	// choice to the kernel.
	SourceAddrs int

	// Path is the request path. Empty means /echo.
	Path string
	// Host is the Host header. Empty means Address, or "localhost".
	Host string
	// PostRatio is the share of requests, 0 to 1, that are POST with a random
	// body. The others are GET without one.
	PostRatio float64
	// BodyMax is the longest POST body in bytes; lengths are uniformly random
	// from 0. 0 means 4096.
	BodyMax int
	// PipelineRatio is the share of requests, 0 to 1, together with which the
	// next one to three are sent, in one write. It needs HTTP/1.1 and KeepAlive.
	PipelineRatio float64
	// CutRatio is the share of writes, 0 to 1, that are cut into pieces at random
	// bytes, in heads too. With HTTP/1.1 a write is a request, or several in a
	// pipeline; with HTTP/2 it is whatever frames are due.
	CutRatio float64
	// CutBytes is the longest piece. 1 cuts everywhere, which takes a write for
	// each byte. 0 means two to four pieces of any length.
	CutBytes int
	// CutPause is the longest pause between two pieces; each is uniformly random.
	// 0 means no pauses: then pieces may arrive as one.
	CutPause time.Duration
	// Timeout bounds a request from its first action, dialing included, to the
	// last byte of the answer; requests in one pipeline are bounded together.
	// 0 means 10 seconds.
	Timeout time.Duration
	// CloseWait is how long a client leaves a connection that is over to the
	// server: with HTTP/1.1 to close it, with HTTP/2 to take what is still to be
	// written. 0 means 5 seconds.
	CloseWait time.Duration

	// MaxRequests ends the run after that many requests. 0 means no bound.
	MaxRequests int64
	// Duration ends the run after that time; requests in flight are finished.
	// 0 means no bound.
	Duration time.Duration
	// Seed makes pauses, bodies and ids repeatable. 0 means a random seed,
	// which the Result tells.
	Seed uint64
}

const (
	maxSourceAddrs = 250
	maxBody        = 1 << 30
	maxTarget      = 4 << 10 // bytes of Path or Host, so that a header is one frame
	maxOpenStreams = 100     // which every HTTP/2 server should let a client open
)

// prepared returns a copy of c with its defaults filled in, or says what is
// wrong with it.
func (c Config) prepared() (Config, error) {
	c.Network = cmp.Or(c.Network, "tcp")
	c.Path = cmp.Or(c.Path, "/echo")
	c.Workers = cmp.Or(c.Workers, 1)
	c.BodyMax = cmp.Or(c.BodyMax, 4096)
	if c.HTTP2 {
		c.Streams = cmp.Or(c.Streams, 4)
	}
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.CloseWait = cmp.Or(c.CloseWait, 5*time.Second)
	for c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if c.Host == "" {
		c.Host = "localhost"
		if c.Network != "unix" && c.Address != "" {
			c.Host = c.Address
		}
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("load: %w", err)
	}
	if c.TLS != nil {
		c.TLS = c.TLS.Clone()
		if c.TLS.ServerName == "" && !c.TLS.InsecureSkipVerify {
			c.TLS.ServerName = hostOnly(c.Host)
		}
		if c.HTTP2 {
			c.TLS.NextProtos = []string{"h2"}
		}
	}
	return c, nil
}

func (c Config) check() error {
	switch {
	case c.Address == "" && c.Dial == nil:
		return errors.New("neither Address nor Dial is set")
	case c.MaxRequests <= 0 && c.Duration <= 0:
		return errors.New("the run has no end: set MaxRequests or Duration")
	case c.MaxRequests < 0 || c.Duration < 0 || c.Think < 0 || c.Timeout < 0 || c.CloseWait < 0 || c.CutPause < 0 || c.CutBytes < 0:
		return errors.New("MaxRequests, Duration, Think, Timeout, CloseWait, CutPause and CutBytes must not be negative")
	case c.Workers < 0:
		return fmt.Errorf("%d workers: must not be negative", c.Workers)
	case !(c.Rate >= 0 && c.Rate <= 1e9):
		return fmt.Errorf("rate %v: must be between 0 and 1e9 per second", c.Rate)
	case !isShare(c.PostRatio) || !isShare(c.PipelineRatio) || !isShare(c.CutRatio):
		return fmt.Errorf("post ratio %v, pipeline ratio %v, cut ratio %v: must be between 0 and 1",
			c.PostRatio, c.PipelineRatio, c.CutRatio)
	case c.PipelineRatio > 0 && (c.HTTP2 || !c.KeepAlive):
		return errors.New("PipelineRatio needs HTTP/1.1 and KeepAlive")
	case c.Streams < 0 || c.Streams > maxOpenStreams || c.Streams > 0 && !c.HTTP2:
		return fmt.Errorf("%d streams: must be between 0 and %d, and needs HTTP2", c.Streams, maxOpenStreams)
	case c.BodyMax < 0 || c.BodyMax > maxBody:
		return fmt.Errorf("longest body %d: must be between 0 and %d", c.BodyMax, maxBody)
	case !strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, " \r\n"):
		return fmt.Errorf("path %q: must begin with / and have no spaces", c.Path)
	case strings.ContainsAny(c.Host, " \r\n"):
		return fmt.Errorf("host %q: must have no spaces", c.Host)
	case max(len(c.Path), len(c.Host)) > maxTarget:
		return fmt.Errorf("path or host longer than %d bytes", maxTarget)
	}
	switch c.Network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return fmt.Errorf("network %q: must be tcp, tcp4, tcp6 or unix", c.Network)
	}
	if c.SourceAddrs != 0 {
		return c.checkSources()
	}
	return nil
}

func isShare(x float64) bool { return x >= 0 && x <= 1 } // and not NaN

func (c Config) checkSources() error {
	if c.SourceAddrs < 0 || c.SourceAddrs > maxSourceAddrs {
		return fmt.Errorf("%d source addresses: must be between 0 and %d", c.SourceAddrs, maxSourceAddrs)
	}
	ap, err := netip.ParseAddrPort(c.Address)
	if c.Dial != nil || err != nil || !ap.Addr().Is4() || !ap.Addr().IsLoopback() {
		return fmt.Errorf("source addresses need a target like 127.0.0.1:8080, not %q", c.Address)
	}
	return nil
}

// dialers returns one dialer per source address, or a single one that leaves
// the choice to the kernel.
func (c Config) dialers() []net.Dialer {
	plain := net.Dialer{Timeout: c.Timeout, KeepAlive: -1}
	if c.SourceAddrs == 0 {
		return []net.Dialer{plain}
	}
	all := make([]net.Dialer, c.SourceAddrs)
	for i := range all {
		all[i] = plain
		all[i].LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i))}
		all[i].Control = portAtConnect
	}
	return all
}

func hostOnly(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return hostport
}
