package load

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"
)

const (
	requestIDHeader  = "X-Request-Id"
	generationHeader = "Handoverd-Generation"
	contentType      = "application/octet-stream"
)

// request is one request. Its buffers are used again for the next one.
type request struct {
	begin  time.Time
	bytes  []byte // as they go over the wire; with HTTP/2 the body only
	id     []byte
	body   []byte // part of bytes
	post   bool
	onConn int // 1 for the first request of its connection, 0 if there was none
}

// build makes w's next request, with an id that no other request has.
func (q *request) build(w *worker, begin time.Time) {
	cfg := &w.run.cfg
	q.begin = begin
	q.onConn = 0
	q.id = requestID{worker: uint64(w.id), seq: uint64(w.seq), run: cfg.Seed}.append(q.id[:0])
	q.post = cfg.PostRatio > 0 && w.rng.Float64() < cfg.PostRatio
	n := 0
	if q.post {
		n = w.rng.IntN(cfg.BodyMax + 1)
	}
	q.bytes = q.bytes[:0]
	if !cfg.HTTP2 {
		q.buildHead(cfg, n)
	}
	if n > 0 {
		from := w.rng.IntN(poolSlack)
		q.bytes = append(q.bytes, w.run.pool[from:from+n]...)
		// No two bodies begin alike, so that one echoed to the wrong request is
		// noticed.
		var random [8]byte
		binary.BigEndian.PutUint64(random[:], w.rng.Uint64())
		copy(q.bytes[len(q.bytes)-n:], random[:])
	}
	q.body = q.bytes[len(q.bytes)-n:]
}

// buildHead appends the head of a request with n bytes of body.
func (q *request) buildHead(cfg *Config, n int) {
	b := append(q.bytes, q.method()...)
	b = append(b, ' ')
	b = append(b, cfg.Path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, cfg.Host...)
	b = append(b, "\r\n"+requestIDHeader+": "...)
	b = append(b, q.id...)
	if !cfg.KeepAlive {
		b = append(b, "\r\nConnection: close"...)
	}
	if q.post {
		b = append(b, "\r\nContent-Type: "+contentType+"\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(n), 10)
	}
	q.bytes = append(b, "\r\n\r\n"...)
}

func (q *request) method() string {
	if q.post {
		return "POST"
	}
	return "GET"
}

// requestID is what the X-Request-Id of a request consists of. seq counts the
// requests of a worker from 1; run is the run's seed.
type requestID struct{ worker, seq, run uint64 }

func (id requestID) append(b []byte) []byte {
	b = strconv.AppendUint(append(b, 'w'), id.worker, 10)
	b = strconv.AppendUint(append(b, '-'), id.seq, 10)
	var run [8]byte
	binary.BigEndian.PutUint64(run[:], id.run)
	return hex.AppendEncode(append(b, '-'), run[:])
}

// parseRequestID is the reverse of append.
func parseRequestID(s string) (id requestID, ok bool) {
	worker, rest, _ := strings.Cut(strings.TrimPrefix(s, "w"), "-")
	seq, run, _ := strings.Cut(rest, "-")
	var errs [3]error
	id.worker, errs[0] = strconv.ParseUint(worker, 10, 64)
	id.seq, errs[1] = strconv.ParseUint(seq, 10, 64)
	id.run, errs[2] = strconv.ParseUint(run, 16, 64)
	// Only one text means an id.
	return id, errors.Join(errs[:]...) == nil && s == string(id.append(nil))
}
