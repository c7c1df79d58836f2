package load

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
)

const (
	requestIDHeader  = "X-Request-Id"
	generationHeader = "Handoverd-Generation"

	// inlineBody is the longest body that is sent before the answer is read.
	// Together with its echo it fits into the socket buffers.
	inlineBody = 64 << 10
)

// request is one request as it goes over the wire. Its buffers are used again
// for the next one.
type request struct {
	bytes []byte // the whole request
	id    []byte
	body  []byte // part of bytes
	post  bool
}

// build makes w's next request, with an id that no other request has.
func (q *request) build(w *worker) {
	cfg := &w.run.cfg
	q.id = append(q.id[:0], 'w')
	q.id = strconv.AppendInt(q.id, int64(w.id), 10)
	q.id = append(q.id, '-')
	q.id = strconv.AppendInt(q.id, int64(w.seq), 10)
	q.id = append(q.id, '-')
	var random [8]byte
	binary.BigEndian.PutUint64(random[:], w.rng.Uint64())
	q.id = hex.AppendEncode(q.id, random[:])

	q.post = cfg.PostRatio > 0 && w.rng.Float64() < cfg.PostRatio
	method := "GET "
	if q.post {
		method = "POST "
	}
	b := append(q.bytes[:0], method...)
	b = append(b, cfg.Path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, cfg.Host...)
	b = append(b, "\r\n"+requestIDHeader+": "...)
	b = append(b, q.id...)
	if !cfg.KeepAlive {
		b = append(b, "\r\nConnection: close"...)
	}
	n := 0
	if q.post {
		n = w.rng.IntN(cfg.BodyMax + 1)
		b = append(b, "\r\nContent-Type: application/octet-stream\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(n), 10)
	}
	b = append(b, "\r\n\r\n"...)
	if n > 0 {
		from := w.rng.IntN(poolSlack)
		b = append(b, w.run.pool[from:from+n]...)
		// No two bodies begin alike, so that one echoed to the wrong request is
		// noticed.
		binary.BigEndian.PutUint64(random[:], w.rng.Uint64())
		copy(b[len(b)-n:], random[:])
	}
	q.bytes = b
	q.body = b[len(b)-n:]
}
