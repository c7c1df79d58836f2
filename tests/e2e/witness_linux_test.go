package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/site"
)

// A sighting is one answer on a connection of its own: somewhere between begin
// and end a generation has accepted it.
type sighting struct {
	begin, end time.Time
	generation uint64
}

// A witness sees who accepts connections, all the time.
type witness struct {
	t       testing.TB
	stop    chan struct{}
	stopped sync.Once
	wg      sync.WaitGroup

	mu   sync.Mutex
	seen []sighting
	cut  []error // of connections that were not answered, and not refused
	errs []error // of connections that were not made
}

// watch starts a witness of the listener web, with a client of its own for each
// eye.
func (b *bench) watch(eyes int) *witness {
	b.t.Helper()
	w := &witness{t: b.t, stop: make(chan struct{})}
	b.t.Cleanup(w.close)
	address := b.address("web")
	for range eyes {
		w.wg.Go(func() { w.look(b, address) })
	}
	return w
}

func (w *witness) close() {
	w.stopped.Do(func() { close(w.stop) })
	w.wg.Wait()
}

func (w *witness) look(b *bench, address string) {
	// It leaves the processors to those whom it looks at.
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		select {
		case <-w.stop:
			tick.Stop()
			return
		case <-tick.C:
		}
		w.once(b, address)
	}
}

func (w *witness) once(b *bench, address string) {
	s := sighting{begin: time.Now()}
	note := func(all *[]error, err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		*all = append(*all, err)
	}
	c, err := b.client.dial("tcp", address)
	if err != nil {
		note(&w.errs, err)
		return
	}
	raw := newRawConn(b.t, c)
	defer raw.Close()
	_, err = io.WriteString(raw, "GET /healthz HTTP/1.1\r\nHost: witness\r\nConnection: close\r\n\r\n")
	var res *http.Response
	if err == nil {
		res, err = http.ReadResponse(raw.br, nil)
	}
	if err != nil {
		note(&w.cut, err)
		return
	}
	res.Body.Close()
	s.end = time.Now()
	s.generation, err = strconv.ParseUint(res.Header.Get(site.GenerationHeader), 10, 64)
	if err != nil {
		note(&w.cut, err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, s)
}

// end ends the witness. It checks that each connection was made, and that
// never two generations accepted at a time. cut is the number of connections
// that were made and not answered, which only a death explains.
func (w *witness) end(rolledBack ...uint64) (cut int) {
	w.t.Helper()
	w.close()
	for _, err := range w.errs {
		w.t.Errorf("witness: %v", err)
	}
	if err := overlap(w.seen, rolledBack); err != nil {
		w.t.Error(err)
	}
	w.t.Logf("witness: %d connections answered, %d cut off", len(w.seen), len(w.cut))
	return len(w.cut)
}

// overlap tells of two generations that cannot have accepted one after the
// other. Between the first end and the last begin of its sightings a generation
// has accepted at both ends of that time: whoever else accepts in there has to
// be a successor that was rolled back, and whose number nobody has again.
func overlap(seen []sighting, rolledBack []uint64) error {
	spans := map[uint64]span{}
	for _, s := range seen {
		p, ok := spans[s.generation]
		if !ok || s.end.Before(p.from) {
			p.from = s.end
		}
		if s.begin.After(p.to) {
			p.to = s.begin
		}
		spans[s.generation] = p
	}
	for _, s := range seen {
		for generation, p := range spans {
			if generation == s.generation || !p.holds(s) {
				continue
			}
			if s.generation > generation && slices.Contains(rolledBack, s.generation) {
				continue
			}
			return fmt.Errorf("generation %d accepted a connection of %v to %v, while generation %d accepted at %v and at %v",
				s.generation, clock(s.begin), clock(s.end), generation, clock(p.from), clock(p.to))
		}
	}
	return nil
}

func clock(t time.Time) string { return t.Format("15:04:05.000000") }

// A span is a time at whose both ends a generation has accepted.
type span struct{ from, to time.Time }

// holds tells whether all of a sighting was within the span.
func (p span) holds(s sighting) bool { return s.begin.After(p.from) && s.end.Before(p.to) }

func TestOverlap(t *testing.T) {
	zero := time.Now()
	// at makes sightings of a generation, of a millisecond each.
	at := func(generation uint64, times ...int) (all []sighting) {
		for _, ms := range times {
			begin := zero.Add(time.Duration(ms) * time.Millisecond)
			all = append(all, sighting{begin, begin.Add(time.Millisecond), generation})
		}
		return all
	}
	long := sighting{zero, zero.Add(time.Second), 1} // may have been accepted at any time of it
	for _, tt := range []struct {
		name       string
		seen       []sighting
		rolledBack []uint64
		wrong      bool
	}{
		{"one after the other", slices.Concat(at(1, 0, 10), at(2, 20, 30)), nil, false},
		{"a slow answer", slices.Concat(at(1, 0, 10), at(2, 20, 30), []sighting{long}), nil, false},
		{"back and forth", slices.Concat(at(1, 0, 20), at(2, 10, 30)), nil, true},
		{"one within the other", slices.Concat(at(1, 0, 20), at(2, 10)), nil, true},
		{"a rollback", slices.Concat(at(1, 0, 20), at(2, 10), at(3, 30)), []uint64{2}, false},
		{"after a rollback", slices.Concat(at(1, 0, 20), at(2, 10, 30)), []uint64{2}, true},
		{"another one's rollback", slices.Concat(at(1, 0, 20), at(3, 10)), []uint64{2}, true},
	} {
		if err := overlap(tt.seen, tt.rolledBack); (err != nil) != tt.wrong {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
