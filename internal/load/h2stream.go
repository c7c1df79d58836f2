package load

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/net/http2"
)

// h2stream is one request and its answer. The mu of its client guards it
// until it is over.
type h2stream struct {
	client *h2client
	conn   *h2conn // nil until it is opened
	id     uint32
	q      *request

	window int64  // bytes that may still be sent
	taken  uint32 // bytes of the server's window that are to be granted again
	sent   bool   // the whole request is
	served bool   // the server sends no more

	answer   answer
	begun    bool // something of it has come
	headed   bool // its header has come
	interims int
	have     int64 // bytes of its body that have come
	back     bool  // see sawGeneration

	done    chan struct{} // closed when it is over
	over    bool
	outcome outcome
	err     error
	endedAt time.Time
}

// sendBody sends the body of the request as far as the server lets it.
func (s *h2stream) sendBody() {
	cl := s.client
	cl.mu.Lock()
	defer cl.mu.Unlock()
	c := s.conn
	for body := s.q.body; !s.over && len(body) > 0; {
		n := min(int64(len(body)), s.window, c.window, frameBytes)
		if n <= 0 || len(c.pending) > maxPending {
			cl.changed.Wait()
			continue
		}
		s.window -= n
		c.window -= n
		s.sent = n == int64(len(body))
		_ = c.out.WriteData(s.id, s.sent, body[:n])
		body = body[n:]
	}
}

// expire ends s if it is not over yet, and lets no further request depend on
// a server that is as slow.
func (s *h2stream) expire() {
	cl := s.client
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if s.over {
		return
	}
	c := s.conn
	if c == nil {
		c = cl.conn // for room on which it has waited
	}
	s.give(timedOut, fmt.Errorf("no whole answer within %v", cl.run.cfg.Timeout))
	if c != nil {
		cl.retire(c, byClient)
	}
}

// give ends s from this side. The server is told unless it knows.
func (s *h2stream) give(o outcome, err error) {
	if c := s.conn; c != nil && !(s.sent && s.served) {
		_ = c.out.WriteRSTStream(s.id, http2.ErrCodeCancel)
		if !s.served {
			c.cancelled[s.id] = true
		}
	}
	s.client.end(s, o, err)
}

// header takes a header of the answer: interim, final, or trailers.
func (s *h2stream) header(f *http2.MetaHeadersFrame) {
	s.begun = true
	s.served = f.StreamEnded()
	switch {
	case f.Truncated:
		s.give(malformed, fmt.Errorf("%w: header longer than %d bytes", errMalformed, maxHeaderBytes))
		return
	case s.headed && !s.served:
		s.give(malformed, fmt.Errorf("%w: a second header", errMalformed))
		return
	case s.headed:
		s.finish()
		return
	}
	a := &s.answer
	if err := a.takeFields(f); err != nil {
		s.give(malformed, err)
		return
	}
	if a.status < 200 {
		s.interims++
		if s.served || s.interims > maxInterim || a.status == 101 {
			s.give(malformed, fmt.Errorf("%w: %d interim answers, the last has status %d", errMalformed, s.interims, a.status))
		}
		return
	}
	s.headed = true
	if a.status == 200 {
		if err := a.checkID(s.q); err != nil {
			s.give(wrongAnswer, err)
			return
		}
		if n := int64(len(s.q.body)); a.length >= 0 && a.length != n {
			s.give(wrongAnswer, fmt.Errorf("%w: %d bytes instead of %d", errWrongBody, a.length, n))
			return
		}
		c := s.conn
		s.back = s.client.peak.above(a.gen) && !c.answered
		c.answered = true
	}
	if s.served {
		s.finish()
	}
}

// data takes a piece of the body.
func (s *h2stream) data(b []byte, end bool) {
	s.served = end
	want := s.q.body
	switch left := int64(len(want)) - s.have; {
	case !s.headed:
		s.give(malformed, fmt.Errorf("%w: body before the header", errMalformed))
		return
	case s.answer.status != 200: // no interest in it
		if s.have+int64(len(b)) > maxSkip {
			s.give(badStatus, fmt.Errorf("status %d", s.answer.status))
			return
		}
	case int64(len(b)) > left:
		s.give(wrongAnswer, fmt.Errorf("%w: longer by at least %d bytes", errWrongBody, int64(len(b))-left))
		return
	case !bytes.Equal(b, want[s.have:s.have+int64(len(b))]):
		s.give(wrongAnswer, fmt.Errorf("%w: differs within bytes %d to %d of %d",
			errWrongBody, s.have, s.have+int64(len(b)), len(want)))
		return
	}
	s.have += int64(len(b))
	if end {
		s.finish()
	}
}

// finish judges the answer, which has come to its end.
func (s *h2stream) finish() {
	switch missing := int64(len(s.q.body)) - s.have; {
	case s.answer.status != 200:
		s.give(badStatus, fmt.Errorf("status %d", s.answer.status))
	case missing > 0:
		s.give(wrongAnswer, fmt.Errorf("%w: its last %d bytes are missing", errWrongBody, missing))
	default:
		s.give(ok, nil)
	}
}

// takeFields reads the header of an HTTP/2 answer.
func (a *answer) takeFields(f *http2.MetaHeadersFrame) error {
	*a = answer{length: lengthByEOF}
	text := f.PseudoValue("status")
	status, err := strconv.ParseUint(text, 10, 16)
	if err != nil || status < 100 || status > 999 || len(text) != 3 {
		return fmt.Errorf("%w: status %.60q", errMalformed, text)
	}
	a.status = int(status)
	for _, h := range f.RegularFields() {
		switch {
		case is([]byte(h.Name), requestIDHeader):
			a.id = append(a.id[:0], h.Value...)
			a.ids++
		case is([]byte(h.Name), generationHeader):
			a.gen = h.Value
		case is([]byte(h.Name), "Content-Length"):
			n, err := strconv.ParseUint(h.Value, 10, 62)
			if err != nil || a.length >= 0 && a.length != int64(n) {
				return fmt.Errorf("%w: content length %.60q", errMalformed, h.Value)
			}
			a.length = int64(n)
		}
	}
	return nil
}
