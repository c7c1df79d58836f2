package main

import (
	"io"
	"net/http"
	"time"

	"github.com/handoverd/handoverd/internal/site"
)

// content is what is served.
type content struct {
	handler func(generation func() uint64) http.Handler
	closer  io.Closer // may be nil
}

func (c *content) close() {
	if c.closer != nil {
		c.closer.Close()
	}
}

// newContent makes the handler that the flags ask for.
func (w *web) newContent() (*content, error) {
	withHeader := func(h http.Handler) func(func() uint64) http.Handler {
		return func(gen func() uint64) http.Handler { return site.Header(gen, h) }
	}
	switch {
	case w.a.opts.root != "":
		files, err := site.Static(w.a.opts.root)
		if err != nil {
			return nil, err
		}
		return &content{withHeader(files), files}, nil
	case w.a.opts.proxy != "":
		forwarder, err := site.Proxy(w.a.opts.proxy, w.a.log)
		if err != nil {
			return nil, usagef("--proxy: %w", err)
		}
		return &content{withHeader(forwarder), forwarder}, nil
	}
	started := time.Now()
	return &content{handler: func(gen func() uint64) http.Handler {
		return site.New(site.Config{
			Generation: gen, Started: started,
			Counts:  func() map[string]int64 { return connections(w.srv.Counts()) },
			Program: "handoverd", Build: buildVersion(),
			Draining: w.srv.Draining(),
		})
	}}, nil
}
