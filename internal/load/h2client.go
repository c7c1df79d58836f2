package load

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// h2client makes the requests of several workers on one HTTP/2 connection,
// each on a stream of its own. A connection that takes no more streams is
// replaced at once, and finishes those that it has.
//
// A worker opens its stream and sends the body. Everything that comes is
// handled by the read of the connection, which also checks the answers.
type h2client struct {
	run *Run
	id  int

	mu      sync.Mutex // of the connections and streams too
	changed sync.Cond  // room on a connection, a window, a stream that is over
	workers int        // at work
	dialing bool
	conn    *h2conn          // that takes new streams, nil if there is none
	live    map[*h2conn]bool // those not closed
	conns   int              // made
	lost    ending           // how conn ended
	owed    *failure         // of a connection without a stream to charge it to
	peak    peak             // of the generations seen
	cuts    atomic.Int64     // writes cut
	aborted bool
}

// failure is how a request failed.
type failure struct {
	outcome outcome
	err     error
}

func newH2Client(r *Run, id, workers int) *h2client {
	cl := &h2client{run: r, id: id, workers: workers, live: make(map[*h2conn]bool)}
	cl.changed.L = &cl.mu
	return cl
}

// exchange implements client.
func (cl *h2client) exchange(w *worker) outcome {
	q := &w.batch[0]
	s := &h2stream{client: cl, q: q, done: make(chan struct{})}
	timeout := cl.run.cfg.Timeout
	timer := time.AfterFunc(timeout, s.expire)
	cl.open(w, s, time.Now().Add(timeout))
	s.sendBody()
	<-s.done
	timer.Stop()
	if s.outcome == ok && s.answer.gen != "" {
		w.sawGeneration(s.answer.gen, s.back)
	}
	w.count(q, s.outcome, s.err, s.endedAt)
	return s.outcome
}

// open opens s on a connection. If that is not possible then s is over when
// it returns.
func (cl *h2client) open(w *worker, s *h2stream, deadline time.Time) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for !s.over && s.conn == nil {
		switch {
		case cl.aborted:
			cl.end(s, aborted, errAborted)
		case cl.owed != nil:
			cl.end(s, cl.owed.outcome, fmt.Errorf("between requests: %w", cl.owed.err))
			cl.owed = nil
		case cl.conn != nil && cl.conn.hasRoom():
			cl.conn.open(s)
		case cl.conn == nil && !cl.dialing:
			cl.connect(w, s, deadline)
		default:
			cl.changed.Wait()
		}
	}
}

// connect makes the connection; others wait meanwhile. If it fails then s is
// over: the next one that needs a connection tries by itself.
func (cl *h2client) connect(w *worker, s *h2stream, deadline time.Time) {
	cl.dialing = true
	cl.mu.Unlock()
	conn, o, err := w.connect(deadline)
	cl.mu.Lock()
	cl.dialing = false
	cl.changed.Broadcast()
	switch {
	case err != nil:
		cl.end(s, o, err)
	case cl.aborted:
		conn.Close()
	default:
		w.connected(cl.lost)
		cl.lost = byClient
		cl.adopt(conn)
	}
}

func (cl *h2client) adopt(conn net.Conn) {
	cl.conns++
	c := newH2Conn(cl, conn, rand.New(rand.NewPCG(cl.run.cfg.Seed, ^(uint64(cl.conns)<<32|uint64(cl.id)))))
	cl.conn = c
	cl.live[c] = true
	cl.run.wg.Go(c.read) // a worker is still there, so nobody has stopped waiting
	cl.run.wg.Go(c.write)
}

// retire makes c take no more streams, and ends it with its last one.
func (cl *h2client) retire(c *h2conn, how ending) {
	if c.retired {
		return
	}
	c.retired = true
	if cl.conn == c {
		cl.conn = nil
	}
	cl.lost = how
	if len(c.streams) == 0 {
		c.close()
	}
	cl.changed.Broadcast()
}

// end ends s, if that has not happened yet.
func (cl *h2client) end(s *h2stream, o outcome, err error) {
	if s.over {
		return
	}
	s.over, s.outcome, s.err, s.endedAt = true, o, err, time.Now()
	close(s.done)
	if c := s.conn; c != nil {
		delete(c.streams, s.id)
		if c.retired && len(c.streams) == 0 {
			c.close()
		}
	}
	cl.changed.Broadcast()
}

func (cl *h2client) interrupt() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.aborted = true
	for c := range cl.live {
		cl.retire(c, byClient)
		for _, s := range c.streams {
			cl.end(s, aborted, errAborted)
		}
	}
	cl.changed.Broadcast()
}

func (cl *h2client) leave() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.workers--
	if cl.workers == 0 && cl.conn != nil {
		cl.retire(cl.conn, byClient)
	}
}

func (cl *h2client) addTo(r *Result) { r.Cut += cl.cuts.Load() }

// lose ends c because of err, a fault or an error of the connection.
func (cl *h2client) lose(c *h2conn, err error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if c.closed {
		return
	}
	o := malformed
	if f := new(fault); errors.As(err, &f) {
		_ = c.out.WriteGoAway(0, f.code, nil)
	} else {
		o = outcomeOfIO(cl.run.ctx, err, eofBeforeAnswer)
		err = fmt.Errorf("reading: %w", err)
	}
	how := byClient
	if o.connectionOver() {
		how = unannounced
	} else if len(c.streams) == 0 {
		cl.owed = &failure{o, err}
	}
	for _, s := range c.streams {
		if o == eofBeforeAnswer && s.begun {
			cl.end(s, eofInAnswer, err)
			continue
		}
		cl.end(s, o, err)
	}
	cl.retire(c, how)
	c.close()
}
