package site

import (
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"runtime"
	"sync"
	"time"
)

// Status is what /status.json answers.
type Status struct {
	Generation  uint64           `json:"generation"`
	PID         int              `json:"pid"`
	Host        string           `json:"host"`
	Program     string           `json:"program"`
	Build       string           `json:"build"`
	Go          string           `json:"go"`
	Started     time.Time        `json:"started"`
	Uptime      float64          `json:"uptime_seconds"`
	Draining    bool             `json:"draining"`
	Connections map[string]int64 `json:"connections"`
}

func (s *site) now() Status {
	st := Status{
		Generation:  s.cfg.Generation(),
		PID:         s.pid,
		Host:        s.host,
		Program:     s.cfg.Program,
		Build:       s.cfg.Build,
		Go:          runtime.Version(),
		Started:     s.cfg.Started.UTC(),
		Uptime:      max(time.Since(s.cfg.Started), 0).Seconds(),
		Draining:    s.draining(),
		Connections: map[string]int64{},
	}
	if s.cfg.Counts != nil {
		if c := s.cfg.Counts(); c != nil {
			st.Connections = c
		}
	}
	return st
}

func (s *site) status(w http.ResponseWriter, r *http.Request) {
	b, err := json.MarshalIndent(s.now(), "", "  ")
	if err != nil {
		plain(w, http.StatusInternalServerError, "the status cannot be written as JSON: "+err.Error()+"\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(append(b, '\n'))
}

func (s *site) healthz(w http.ResponseWriter, r *http.Request) {
	plain(w, http.StatusOK, "ok\n")
}

//go:embed page.html
var pageText string

// Not at the start of the program, which somebody waits for.
var pageTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("page").Parse(pageText))
})

func (s *site) page(w http.ResponseWriter, r *http.Request) {
	nonce := rand.Text()
	type line struct{ Path, About string }
	data := struct {
		Status
		Nonce  string
		Routes []line
	}{Status: s.now(), Nonce: nonce}
	for _, sample := range s.paths {
		path := pathOf(sample)
		data.Routes = append(data.Routes, line{sample, s.routes[path].about})
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; style-src 'nonce-"+nonce+
		"'; script-src 'nonce-"+nonce+"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	// The page is small: an error here means that the client has gone.
	_ = pageTemplate().Execute(w, data)
}
