package load

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// inlineBytes is the longest request that is sent before the answer is read.
// Together with its echo it fits into the socket buffers.
const inlineBytes = 64 << 10

var errBehindClose = errors.New("pipelined behind an answer that closes the connection")

// h1client makes the requests of one worker, on at most one connection at a
// time.
type h1client struct {
	run      *Run
	br       *bufio.Reader
	cutter   cutter
	wire     []byte    // a batch of more than one request
	onConn   int       // requests made on the connection
	lost     ending    // how the previous connection ended
	peak     peak      // of the generations seen
	answer   answer    // to the request under way
	answered time.Time // when the last answer was there
	sendDone chan error
	cuts     atomic.Int64 // writes cut

	mu   sync.Mutex
	conn net.Conn // written by the worker only, under mu
}

func newH1Client(r *Run) *h1client {
	return &h1client{
		run:      r,
		br:       bufio.NewReaderSize(nil, 8<<10),
		cutter:   cutter{cfg: &r.cfg, ctx: r.ctx},
		sendDone: make(chan error, 1),
	}
}

// exchange implements client. A connection that cannot be used again is gone
// when it returns.
func (c *h1client) exchange(w *worker) outcome {
	cfg := &c.run.cfg
	deadline := time.Now().Add(cfg.Timeout)
	if c.conn == nil {
		if o, err := c.connect(w, deadline); err != nil {
			w.countAll(w.batch, o, err)
			return o
		}
	}
	for i := range w.batch {
		c.onConn++
		w.batch[i].onConn = c.onConn
	}
	c.conn.SetDeadline(deadline)
	if c.run.ctx.Err() != nil { // checked after the deadline is set, see interrupt
		c.disconnect(byClient)
		w.countAll(w.batch, aborted, errAborted)
		return aborted
	}

	at, o, err := c.sendAndRead(w)
	usable := o == ok || o == badStatus
	switch {
	case !usable && o.connectionOver():
		c.disconnect(unannounced)
	case !usable:
		c.disconnect(byClient)
	case !cfg.KeepAlive || c.answer.close:
		if e := c.awaitClose(w); e != nil && o == ok {
			o, err = wrongAnswer, e
		}
	case c.answer.spent:
		c.disconnect(byClient)
	}
	w.count(&w.batch[at], o, err, c.answered)
	if behind := w.batch[at+1:]; len(behind) > 0 {
		if usable && c.answer.close {
			o, err = behindClose, errBehindClose
		} else {
			o, err = o.behind(), fmt.Errorf("pipelined behind a request that failed: %w", err)
		}
		w.countAll(behind, o, err)
	}
	return o
}

func (c *h1client) connect(w *worker, deadline time.Time) (outcome, error) {
	c.onConn = 0
	conn, o, err := w.connect(deadline)
	if err != nil {
		for i := range w.batch {
			w.batch[i].onConn = 0
		}
		return o, err
	}
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	c.br.Reset(conn)
	w.connected(c.lost)
	c.lost = byClient
	return ok, nil
}

// sendAndRead sends w's batch and reads the answers. It counts them, up to the
// one at which it stops: the last one, or one that no other can follow. That
// one's place in the batch it returns, with its outcome.
func (c *h1client) sendAndRead(w *worker) (at int, o outcome, err error) {
	sending, err := c.send(w)
	if err != nil {
		return 0, outcomeOfIO(c.run.ctx, err, reset), fmt.Errorf("sending: %w", err)
	}
	last := len(w.batch) - 1
	for ; ; at++ {
		q := &w.batch[at]
		o, err = c.readAnswer(q)
		c.answered = time.Now()
		if o == ok && c.answer.gen != "" {
			w.sawGeneration(c.answer.gen, c.peak.above(c.answer.gen) && q.onConn == 1)
		}
		if at == last || o != ok && o != badStatus || c.answer.close || c.answer.spent {
			break
		}
		w.count(q, o, err, c.answered)
	}
	if !sending {
		return at, o, err
	}
	if at < last || o != ok {
		c.conn.SetDeadline(longAgo) // frees the sender
	}
	if e := <-c.sendDone; e != nil {
		c.answer.spent = true
		if at == last && o == ok {
			return at, otherError, fmt.Errorf("answered before the request was sent: %w", e)
		}
	}
	return at, o, err
}

// send sends w's batch, or if that may take until the answer is read, has a
// goroutine do it that tells sendDone.
func (c *h1client) send(w *worker) (sending bool, err error) {
	wire := w.batch[0].bytes
	if len(w.batch) > 1 {
		c.wire = c.wire[:0]
		for i := range w.batch {
			c.wire = append(c.wire, w.batch[i].bytes...)
		}
		wire = c.wire
	}
	cfg := &c.run.cfg
	switch {
	case cfg.CutRatio > 0 && w.rng.Float64() < cfg.CutRatio:
		c.cuts.Add(1)
		c.cutter.cutBatch(w.rng, w.batch)
	case len(wire) <= inlineBytes:
		_, err := c.conn.Write(wire)
		return false, err
	default:
		c.cutter.whole(len(wire))
	}
	go c.sendPieces(w, c.conn, wire)
	return true, nil
}

// sendPieces has w.rng to itself until it tells sendDone.
func (c *h1client) sendPieces(w *worker, conn net.Conn, wire []byte) {
	c.sendDone <- c.cutter.write(w.rng, conn, wire)
}

// readAnswer reads the answer to q and checks it. On ok and badStatus the
// connection stands at the end of the answer.
func (c *h1client) readAnswer(q *request) (outcome, error) {
	a := &c.answer
	if o, err := c.readHead(); err != nil {
		return o, err
	}
	if a.status != 200 {
		if err := a.skipBody(c.br); err != nil {
			a.spent = true
		}
		return badStatus, fmt.Errorf("status %d", a.status)
	}
	if err := a.checkID(q); err != nil {
		return wrongAnswer, err
	}
	if err := a.matchBody(c.br, q.body); err != nil {
		switch {
		case errors.Is(err, errWrongBody):
			return wrongAnswer, err
		case errors.Is(err, errMalformed):
			return malformed, err
		}
		return outcomeOfIO(c.run.ctx, err, eofInAnswer), fmt.Errorf("reading the body: %w", err)
	}
	return ok, nil
}

func (c *h1client) readHead() (outcome, error) {
	if _, err := c.br.Peek(1); err != nil {
		return outcomeOfIO(c.run.ctx, err, eofBeforeAnswer), fmt.Errorf("awaiting the answer: %w", err)
	}
	err := c.answer.readHead(c.br)
	switch {
	case err == nil:
		return ok, nil
	case errors.Is(err, errMalformed):
		return malformed, err
	}
	return outcomeOfIO(c.run.ctx, err, eofInAnswer), fmt.Errorf("reading the header: %w", err)
}

// awaitClose lets the server close a connection that has served its last
// answer, so that TIME_WAIT stays on the server's side, and closes it. It
// returns an error if more bytes come instead.
func (c *h1client) awaitClose(w *worker) error {
	how := byClient
	if c.run.cfg.KeepAlive {
		how = announced
	}
	defer c.disconnect(how)
	c.conn.SetReadDeadline(time.Now().Add(c.run.cfg.CloseWait))
	if c.run.ctx.Err() != nil { // checked after the deadline is set, see interrupt
		return nil
	}
	b, err := c.br.Peek(1)
	if len(b) > 0 {
		return fmt.Errorf("%w: bytes after the end of an answer that closes the connection", errWrongBody)
	}
	if isTimeout(err) && c.run.ctx.Err() == nil {
		w.mu.Lock()
		w.counts.LeftOpen++
		w.mu.Unlock()
	}
	return nil
}

// interrupt makes blocked calls on the connection return. A worker sets its
// deadline first and looks at the context then, so one of the two is seen.
func (c *h1client) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.SetDeadline(longAgo)
	}
}

func (c *h1client) leave() { c.disconnect(byClient) }

func (c *h1client) addTo(r *Result) { r.Cut += c.cuts.Load() }

func (c *h1client) disconnect(how ending) {
	if c.conn == nil {
		return
	}
	c.conn.Close()
	c.mu.Lock()
	c.conn = nil
	c.mu.Unlock()
	c.lost = how
}
