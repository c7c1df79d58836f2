package load

import (
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
	// maxBehind is how many requests are pipelined behind another at most.
	maxBehind = 3
)

var longAgo = time.Unix(1, 0)

// errAborted is the error of a request that was not begun because the run's
// context had ended.
var errAborted = errors.New("the run's context has ended")

// client owns connections, and makes the requests of its workers on them: an
// h1client those of one worker, an h2client those of several.
type client interface {
	// exchange makes the requests of w's batch, counts each, and returns how
	// the last one ended.
	exchange(w *worker) outcome
	// interrupt makes exchange return. The run's context has ended.
	interrupt()
	// leave tells that a worker has ended. The last one closes the connection.
	leave()
	// addTo adds what the workers have not counted.
	addTo(r *Result)
}

// worker makes a sequence of requests, and counts how they end.
type worker struct {
	run    *Run
	client client
	id     int // of the client
	seq    int // of the last request
	step   int // from one seq to the next: the workers of a client take turns
	rng    *rand.Rand
	timer  *time.Timer
	dials  int // connections tried

	requests [1 + maxBehind]request
	batch    []request // those of requests that are sent together
	lastGen  string    // of the last answer

	mu     sync.Mutex
	counts Result
}

// ending is how a connection came to its end.
type ending uint8

const (
	byClient    ending = iota // this side closed it, or there was none
	announced                 // the answer, or a GOAWAY, said so
	unannounced               // it was found closed or reset
)

// newWorker returns number index of the workers workers of c.
func newWorker(r *Run, c client, id, index, workers int) *worker {
	return &worker{
		run:    r,
		client: c,
		id:     id,
		seq:    index + 1 - workers,
		step:   workers,
		rng:    rand.New(rand.NewPCG(r.cfg.Seed, uint64(index)<<32|uint64(id))),
	}
}

func (w *worker) work() {
	defer w.client.leave()
	for w.gather() {
		switch w.client.exchange(w) {
		case aborted:
			return
		case refused, dialFailed, clientFault:
			w.pause(refusedPause)
		}
	}
}

// gather builds the next batch. It reports false if no request is left.
func (w *worker) gather() bool {
	cfg := &w.run.cfg
	if cfg.Think > 0 {
		w.pause(time.Duration(w.rng.Int64N(int64(cfg.Think) + 1)))
	}
	size := 1
	if cfg.PipelineRatio > 0 && w.rng.Float64() < cfg.PipelineRatio {
		size += 1 + w.rng.IntN(maxBehind)
	}
	n := 0
	for ; n < size; n++ {
		begin, more := w.next()
		if !more {
			break
		}
		w.seq += w.step
		w.requests[n].build(w, begin)
	}
	w.batch = w.requests[:n]
	return n > 0
}

// next waits until the worker's next request is due and returns the instant
// at which it counts as begun, or false if there is none.
func (w *worker) next() (time.Time, bool) {
	r := w.run
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

// connect makes a connection, up to and including the TLS handshake.
func (w *worker) connect(deadline time.Time) (net.Conn, outcome, error) {
	r := w.run
	ctx, cancel := context.WithDeadline(r.ctx, deadline)
	defer cancel()
	conn, err := w.dial(ctx)
	if err != nil {
		return nil, outcomeOfDial(r.ctx, err), err
	}
	conn = &resetConn{Conn: conn}
	if r.cfg.TLS == nil {
		return conn, ok, nil
	}
	secure := tls.Client(conn, r.cfg.TLS)
	err = secure.HandshakeContext(ctx)
	if p := secure.ConnectionState().NegotiatedProtocol; err == nil && r.cfg.HTTP2 && p != "h2" {
		err = fmt.Errorf("the server chose protocol %q, not HTTP/2", p)
	}
	if err != nil {
		conn.Close()
		o := outcomeOfIO(r.ctx, err, eofBeforeAnswer)
		switch {
		case r.ctx.Err() != nil:
			o = aborted
		case o == otherError:
			o = dialFailed
		}
		return nil, o, fmt.Errorf("TLS handshake: %w", err)
	}
	return secure, ok, nil
}

func (w *worker) dial(ctx context.Context) (net.Conn, error) {
	r := w.run
	w.dials++
	if r.cfg.Dial != nil {
		return r.cfg.Dial(ctx)
	}
	return r.dialers[(w.id+w.dials)%len(r.dialers)].DialContext(ctx, r.cfg.Network, r.cfg.Address)
}

// peak is the highest generation that a client has seen.
type peak uint64

// above notes gen, and reports whether a higher one was seen before.
func (p *peak) above(gen string) bool {
	n, err := strconv.ParseUint(gen, 10, 64)
	if err != nil {
		return false
	}
	before := *p
	*p = max(before, peak(n))
	return before > peak(n)
}

// connected counts a connection that replaces one with the ending lost.
func (w *worker) connected(lost ending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Connects++
	switch lost {
	case announced:
		w.counts.AnnouncedReconnects++
	case unannounced:
		w.counts.UnannouncedReconnects++
	}
}

// sawGeneration counts an answer of gen. back tells that it is the first on
// its connection, and that the client has seen a higher generation before.
func (w *worker) sawGeneration(gen string, back bool) {
	w.lastGen = gen
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.saw(gen, time.Now())
	if back {
		w.counts.WentBack++
	}
}

// count notes how q ended, and when.
func (w *worker) count(q *request, o outcome, err error, end time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Requests++
	*w.counts.counter(o)++
	if q.post {
		w.counts.Posts++
		w.counts.SentBytes += int64(len(q.body))
	}
	if len(w.batch) > 1 {
		w.counts.Pipelined++
	}
	if o == ok {
		w.counts.Latency.Record(end.Sub(q.begin))
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
		RequestID:  string(q.id),
		OnConn:     q.onConn,
		Detail:     err.Error(),
	})
}

// countAll notes that all of some requests ended in the same way.
func (w *worker) countAll(requests []request, o outcome, err error) {
	for i := range requests {
		w.count(&requests[i], o, err, time.Time{})
	}
}

func (w *worker) addTo(r *Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.add(&w.counts)
}
