package main

import (
	"crypto/tls"
	"time"

	"github.com/handoverd/handoverd/internal/load"
	"github.com/handoverd/handoverd/tests/bench/report"
)

// A loadKind is what clients do while a server is upgraded.
type loadKind struct {
	report.Load

	tls, http2 bool
	every      int  // rounds in which it is made: each, each second one, ...
	timeline   bool // the latency is looked at closely
	config     load.Config
	workers    map[report.Group]int // instead of those of config
}

// quiet has no clients but the one that looks for the new process.
const quiet = "quiet"

// loads are all of them. Clients never retry.
func loads() []*loadKind {
	const think = 20 * time.Millisecond
	return []*loadKind{
		{Load: report.Load{Name: quiet, About: "nobody, but one client that asks on new connections from the trigger on, one a millisecond after the other, to see when the new process answers", Plain: true}, every: 1},
		{Load: report.Load{Name: "pauses", About: "64 clients that keep their connections and pause for 0 to 20 ms before each request (24 with gunicorn)", Keeps: true, Plain: true}, every: 1, timeline: true,
			config: load.Config{Workers: 64, KeepAlive: true, Think: think}, workers: map[report.Group]int{report.Pythons: 24}},
		{Load: report.Load{Name: "busy", About: "16 clients that keep their connections and never pause", Keeps: true, Plain: true}, every: 1,
			config: load.Config{Workers: 16, KeepAlive: true}},
		{Load: report.Load{Name: "connections", About: "16 clients that make a new connection for each request, with pauses of 0 to 10 ms", Plain: true}, every: 2,
			config: load.Config{Workers: 16, Think: think / 2, SourceAddrs: 64}},
		{Load: report.Load{Name: "posts", About: "32 clients that keep their connections and POST up to 16 KiB, with pauses of 0 to 20 ms (24 with gunicorn)", Keeps: true, Plain: true}, every: 2,
			config: load.Config{Workers: 32, KeepAlive: true, Think: think, PostRatio: 1, BodyMax: 16 << 10}, workers: map[report.Group]int{report.Pythons: 24}},
		{Load: report.Load{Name: "tls", About: "32 clients with TLS that keep their connections, with pauses of 0 to 20 ms", Keeps: true}, tls: true, every: 2,
			config: load.Config{Workers: 32, KeepAlive: true, Think: think}},
		{Load: report.Load{Name: "http2", About: "8 clients with HTTP/2 over TLS, each with 4 requests at once, with pauses of 0 to 20 ms", Keeps: true}, tls: true, http2: true, every: 2,
			config: load.Config{Workers: 8, KeepAlive: true, Think: think, HTTP2: true, Streams: 4}},
	}
}

// on is the load's configuration against a service.
func (k *loadKind) on(s *site, group report.Group) load.Config {
	c := k.config
	c.Address = s.addr
	c.Duration = 2 * time.Minute // it is stopped long before
	if n := k.workers[group]; n > 0 {
		c.Workers = n
	}
	if k.tls {
		c.TLS = &tls.Config{InsecureSkipVerify: true} // a certificate that was made a moment ago
	}
	return c
}
