package site

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	eventInterval = 100 * time.Millisecond
	// eventPatience is how long a client may take no bytes at all.
	eventPatience = 30 * time.Second
)

// events sends an event every eventInterval, with n only so many. Ids go on from the Last-Event-ID
// of a client that connects again, so they increase over generations too.
//
// When the drain begins a stream without n ends with an event "goodbye" and a retry
// time: an EventSource then connects again by itself, and its new connection
// is accepted by the successor. The times are spread, so that not all clients
// come at once.
func (s *site) events(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	left, err := strconv.Atoi(r.URL.Query().Get("n"))
	bounded := err == nil && left > 0
	id, _ := strconv.ParseUint(r.Header.Get("Last-Event-ID"), 10, 63) // 0 if there is none
	stream := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	// The deadline would outlive the stream on a keep-alive connection.
	defer stream.SetWriteDeadline(time.Time{})
	ticker := time.NewTicker(eventInterval)
	defer ticker.Stop()
	draining := s.cfg.Draining
	if bounded {
		draining = nil
	}
	for {
		id++
		// Not every ResponseWriter has deadlines; then the connection's rule.
		_ = stream.SetWriteDeadline(time.Now().Add(eventPatience))
		left--
		bye := !bounded && s.draining()
		if s.event(w, id, bye) != nil || stream.Flush() != nil || bye || bounded && left == 0 {
			return
		}
		select {
		case <-ticker.C:
		case <-draining:
		case <-r.Context().Done():
			return
		}
	}
}

// event writes one event, the last one of its stream if bye is true.
func (s *site) event(w http.ResponseWriter, id uint64, bye bool) error {
	data, err := json.Marshal(struct {
		Generation uint64 `json:"generation"`
		Sequence   uint64 `json:"sequence"`
	}{s.cfg.Generation(), id})
	if err != nil {
		return err
	}
	kind := ""
	if bye {
		kind = fmt.Sprintf("event: goodbye\nretry: %d\n", 100+rand.IntN(400))
	}
	_, err = fmt.Fprintf(w, "%sid: %d\ndata: %s\n\n", kind, id, data)
	return err
}
