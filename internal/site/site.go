package site

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// Config says what the site shows. Its functions are called by many requests
// at once.
type Config struct {
	// Generation is that of the process. nil means always 0.
	Generation func() uint64
	// Started is when the process began. Zero means when New is called.
	Started time.Time
	// Counts returns the live connections by state. May be nil.
	Counts func() map[string]int64
	// Program and Build say what is running. Both may be empty.
	Program, Build string
	// Draining is closed when the drain begins: /events and /ws then say
	// goodbye. nil means never.
	Draining <-chan struct{}
}

// site is the handler that New returns.
type site struct {
	cfg    Config
	host   string
	pid    int
	routes map[string]route
	paths  []string // in the order in which they are listed
}

// route is one path of the site.
type route struct {
	about   string
	methods []string // nil: any
	serve   http.HandlerFunc
}

// New returns the demonstration site. Every answer carries GenerationHeader.
func New(cfg Config) http.Handler {
	if cfg.Generation == nil {
		cfg.Generation = func() uint64 { return 0 }
	}
	if cfg.Started.IsZero() {
		cfg.Started = time.Now()
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	s := &site{cfg: cfg, host: host, pid: os.Getpid(), routes: make(map[string]route)}
	read := []string{http.MethodGet, http.MethodHead}
	s.handle("/", "this page, which shows who answers", read, s.page)
	s.handle("/echo", "your request's body and X-Request-Id back", nil, s.echo)
	s.handle("/sleep?for=2s", "an answer after that time", read, s.sleep)
	s.handle("/bytes?n=1000000", "that many bytes", read, s.bytes)
	s.handle("/events", "server-sent events, ten a second", read, s.events)
	s.handle("/ws", "a WebSocket that sends each message back", []string{http.MethodGet}, s.webSocket)
	s.handle("/status.json", "what this page shows, as JSON", read, s.status)
	s.handle("/healthz", "200 as long as the process answers", read, s.healthz)
	return Header(cfg.Generation, s)
}

// handle adds a route. Its path may come with a sample query, for the list.
func (s *site) handle(sample, about string, methods []string, h http.HandlerFunc) {
	s.routes[pathOf(sample)] = route{about, methods, h}
	s.paths = append(s.paths, sample)
}

func pathOf(sample string) string {
	path, _, _ := strings.Cut(sample, "?")
	return path
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, ok := s.routes[r.URL.Path]
	switch {
	case !ok:
		plain(w, http.StatusNotFound, fmt.Sprintf("there is no %q here. The routes are:\n%s", r.URL.Path, s.list()))
	case route.methods != nil && !slices.Contains(route.methods, r.Method):
		w.Header().Set("Allow", strings.Join(route.methods, ", "))
		plain(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s takes %s, not %q\n",
			r.URL.Path, strings.Join(route.methods, " and "), r.Method))
	default:
		route.serve(w, r)
	}
}

// list has a line for each route.
func (s *site) list() string {
	var b strings.Builder
	for _, sample := range s.paths {
		fmt.Fprintf(&b, "  %-18s%s\n", sample, s.routes[pathOf(sample)].about)
	}
	return b.String()
}

func (s *site) draining() bool {
	select {
	case <-s.cfg.Draining:
		return true
	default:
		return false
	}
}

// plain answers with a text.
func plain(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprint(w, text)
}
