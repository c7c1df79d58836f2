package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

const (
	// refusedPause keeps a worker that cannot connect from spinning.
	refusedPause = time.Millisecond
	// closeWait is how long a worker lets the server close a connection that
	// has ended, so that TIME_WAIT stays on the server's side.
	closeWait = 250 * time.Millisecond
)

var longAgo = time.Unix(1, 0)

// errAborted is the error of a request that was not begun because the run's
// context had ended.
var errAborted = errors.New("the run's context has ended")

// worker is one client: a sequence of requests on at most one connection at a
// time.
type worker struct {
	run   *Run
	id    int
	rng   *rand.Rand
	timer *time.Timer

	br       *bufio.Reader
	onConn   int       // requests made on the connection
	lost     ending    // how the previous connection ended
	seq      int       // requests made
	dials    int       // connections tried
	request  request   // buffers of the request under way
	answer   answer    // and of its answer
	lastGen  string    // of the last answer
	highest  uint64    // generation seen
	answered time.Time // when the last whole answer was there
	sendDone chan error

	mu     sync.Mutex
	conn   net.Conn // written by the worker only, under mu
	counts Result
}

// ending is how a connection came to its end.
type ending uint8

const (
	byClient    ending = iota // this side closed it, or there was none
	announced                 // the answer said so
	unannounced               // it was found closed or reset
)

func newWorker(r *Run, id int) *worker {
	return &worker{
		run:      r,
		id:       id,
		rng:      rand.New(rand.NewPCG(r.cfg.Seed, uint64(id))),
		br:       bufio.NewReaderSize(nil, 8<<10),
		sendDone: make(chan error, 1),
	}
}

func (w *worker) work() {
	defer w.disconnect(byClient)
	for {
		begin, more := w.next()
		if !more {
			return
		}
		w.seq++
		o, err := w.exchange()
		w.count(o, err, w.answered.Sub(begin))
		if o == aborted {
			return
		}
		if o == refused || o == dialFailed || o == clientFault {
			w.pause(refusedPause)
		}
	}
}

// next waits until the worker's next request is due and returns the instant
// at which it counts as begun, or false if there is none.
func (w *worker) next() (time.Time, bool) {
	r := w.run
	if r.cfg.Think > 0 {
		w.pause(time.Duration(w.rng.Int64N(int64(r.cfg.Think) + 1)))
	}
	if r.halted.Load() {
		return time.Time{}, false
	}
	ticket := r.tickets.Add(1)
	if r.cfg.MaxRequests > 0 && ticket > r.cfg.MaxRequests {
		return time.Time{}, false
	}
	if r.cfg.Rate == 0 {
		return time.Now(), true
	}
	due := r.started.Add(time.Duration(float64(ticket-1) / r.cfg.Rate * float64(time.Second)))
	w.pause(time.Until(due))
	return due, !r.halted.Load()
}

// pause waits for d or until the run is halted.
func (w *worker) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	if w.timer == nil {
		w.timer = time.NewTimer(d)
	} else {
		w.timer.Reset(d)
	}
	select {
	case <-w.timer.C:
	case <-w.run.halt:
		w.timer.Stop()
	}
}

// exchange makes one request and reads and checks its answer. A connection
// that cannot be used again is gone when it returns.
func (w *worker) exchange() (outcome, error) {
	cfg := &w.run.cfg
	w.request.build(w)
	deadline := time.Now().Add(cfg.Timeout)
	if w.conn == nil {
		if o, err := w.connect(deadline); err != nil {
			return o, err
		}
	}
	w.onConn++
	w.conn.SetDeadline(deadline)
	if w.run.ctx.Err() != nil { // checked after the deadline is set, see interrupt
		w.disconnect(byClient)
		return aborted, errAborted
	}

	o, err := w.sendAndRead()
	if err == nil && w.answer.gen != "" {
		w.sawGeneration(w.answer.gen)
	}
	if o != ok && o != badStatus {
		how := byClient
		if o.connectionOver() {
			how = unannounced
		}
		w.disconnect(how)
		return o, err
	}
	w.answered = time.Now()
	if !cfg.KeepAlive || w.answer.close {
		if e := w.awaitClose(); e != nil && o == ok {
			return wrongAnswer, e
		}
	} else if w.answer.spent {
		w.disconnect(byClient)
	}
	return o, err
}

// connect makes the worker's connection.
func (w *worker) connect(deadline time.Time) (outcome, error) {
	w.onConn = 0
	conn, err := w.dial(deadline)
	if err != nil {
		return outcomeOfDial(w.run.ctx, err), err
	}
	conn.SetDeadline(deadline)
	var secure *tls.Conn
	if w.run.cfg.TLS != nil {
		secure = tls.Client(conn, w.run.cfg.TLS)
		conn = secure
	}
	w.mu.Lock()
	w.conn = conn
	w.mu.Unlock()
	if secure != nil {
		if err := w.handshake(secure); err != nil {
			o := outcomeOfIO(w.run.ctx, err, eofBeforeAnswer)
			if o == otherError {
				o = dialFailed
			}
			w.disconnect(byClient)
			return o, fmt.Errorf("TLS handshake: %w", err)
		}
	}
	w.br.Reset(conn)
	w.mu.Lock()
	w.counts.Connects++
	switch w.lost {
	case announced:
		w.counts.AnnouncedReconnects++
	case unannounced:
		w.counts.UnannouncedReconnects++
	}
	w.mu.Unlock()
	w.lost = byClient
	return ok, nil
}

func (w *worker) handshake(c *tls.Conn) error {
	if w.run.ctx.Err() != nil {
		c.SetDeadline(longAgo)
	}
	return c.Handshake() // bounded by the deadline of the connection
}

func (w *worker) dial(deadline time.Time) (net.Conn, error) {
	r := w.run
	w.dials++
	if r.cfg.Dial != nil {
		ctx, cancel := context.WithDeadline(r.ctx, deadline)
		defer cancel()
		return r.cfg.Dial(ctx)
	}
	return r.dialers[(w.id+w.dials)%len(r.dialers)].DialContext(r.ctx, r.cfg.Network, r.cfg.Address)
}

// sendAndRead writes the request and reads the answer.
func (w *worker) sendAndRead() (outcome, error) {
	if len(w.request.body) <= inlineBody {
		if _, err := w.conn.Write(w.request.bytes); err != nil {
			return outcomeOfIO(w.run.ctx, err, reset), fmt.Errorf("sending: %w", err)
		}
		return w.readAnswer()
	}
	// The answer may have to be read for the request to be taken.
	go w.send(w.conn)
	o, err := w.readAnswer()
	if o != ok {
		w.conn.SetDeadline(longAgo) // frees the sender
	}
	if e := <-w.sendDone; e != nil {
		w.answer.spent = true
		if o == ok {
			return otherError, fmt.Errorf("answered before the request was sent: %w", e)
		}
	}
	return o, err
}

func (w *worker) send(c net.Conn) {
	_, err := c.Write(w.request.bytes)
	w.sendDone <- err
}

// readAnswer reads the answer and checks that it is the one for the request.
// On ok and badStatus the connection stands at the end of the answer.
func (w *worker) readAnswer() (outcome, error) {
	a := &w.answer
	if o, err := w.readHead(); err != nil {
		return o, err
	}
	if a.status != 200 {
		// Who answers without echoing has no reason to know the id.
		if err := a.skipBody(w.br); err != nil {
			a.spent = true
		}
		return badStatus, fmt.Errorf("status %d", a.status)
	}
	if !bytes.Equal(a.id, w.request.id) || a.ids != 1 {
		return wrongAnswer, fmt.Errorf("%s header is %q (seen %d times)", requestIDHeader, a.id, a.ids)
	}
	if err := a.matchBody(w.br, w.request.body); err != nil {
		switch {
		case errors.Is(err, errWrongBody):
			return wrongAnswer, err
		case errors.Is(err, errMalformed):
			return malformed, err
		}
		return outcomeOfIO(w.run.ctx, err, eofInAnswer), fmt.Errorf("reading the body: %w", err)
	}
	return ok, nil
}

func (w *worker) readHead() (outcome, error) {
	if _, err := w.br.Peek(1); err != nil {
		return outcomeOfIO(w.run.ctx, err, eofBeforeAnswer), fmt.Errorf("awaiting the answer: %w", err)
	}
	err := w.answer.readHead(w.br)
	switch {
	case err == nil:
		return ok, nil
	case errors.Is(err, errMalformed):
		return malformed, err
	}
	return outcomeOfIO(w.run.ctx, err, eofInAnswer), fmt.Errorf("reading the header: %w", err)
}

// awaitClose lets the server close a connection that has served its last
// answer, and closes it. It returns an error if more bytes come instead.
func (w *worker) awaitClose() error {
	how := byClient
	if w.run.cfg.KeepAlive {
		how = announced
	}
	defer w.disconnect(how)
	if w.run.ctx.Err() != nil {
		return nil
	}
	w.conn.SetReadDeadline(time.Now().Add(closeWait))
	b, err := w.br.Peek(1)
	if len(b) > 0 {
		return fmt.Errorf("%w: bytes after the end of an answer that closes the connection", errWrongBody)
	}
	if isTimeout(err) && w.run.ctx.Err() == nil {
		w.mu.Lock()
		w.counts.LeftOpen++
		w.mu.Unlock()
	}
	return nil
}

// interrupt makes blocked calls on the connection return. A worker sets its
// deadline first and looks at the context then, so one of the two is seen.
func (w *worker) interrupt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		w.conn.SetDeadline(longAgo)
	}
}

func (w *worker) disconnect(how ending) {
	if w.conn == nil {
		return
	}
	w.conn.Close()
	w.mu.Lock()
	w.conn = nil
	w.mu.Unlock()
	w.lost = how
}

func (w *worker) sawGeneration(gen string) {
	w.lastGen = gen
	n, err := strconv.ParseUint(gen, 10, 64)
	back := err == nil && n < w.highest && w.onConn == 1
	if err == nil {
		w.highest = max(w.highest, n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.saw(gen, time.Now())
	if back {
		w.counts.WentBack++
	}
}

// count notes how a request ended.
func (w *worker) count(o outcome, err error, latency time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Requests++
	*w.counts.counter(o)++
	if w.request.post {
		w.counts.Posts++
		w.counts.SentBytes += int64(len(w.request.body))
	}
	if o == ok {
		w.counts.Latency.Record(latency)
		return
	}
	if o == aborted {
		return
	}
	w.counts.addSample(Sample{
		Time:       time.Now(),
		Worker:     w.id,
		Kind:       o.String(),
		Generation: w.lastGen,
		RequestID:  string(w.request.id),
		OnConn:     w.onConn,
		Detail:     err.Error(),
	})
}

func (w *worker) addTo(r *Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.add(&w.counts)
}
