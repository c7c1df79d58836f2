package load

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Run is load being made. Its methods are safe for concurrent use.
type Run struct {
	cfg     Config
	ctx     context.Context
	dialers []net.Dialer
	pool    []byte // random bytes that bodies are cut from; read only
	started time.Time
	workers []*worker
	clients []client

	tickets  atomic.Int64 // requests begun
	halted   atomic.Bool
	haltOnce sync.Once
	halt     chan struct{} // closed when no new request may begin

	wg    sync.WaitGroup // the workers, and what HTTP/2 connections need
	done  chan struct{}  // closed when final is set
	final Result
}

// Start begins to make load and returns at once; it does not wait for a
// connection. Its error is about cfg only.
//
// The end of ctx aborts the run: requests in flight are cut off and counted
// as Aborted. To finish them use Stop. The caller must call Wait or Stop, or
// end ctx, for the run to be over before its bound is reached.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	cfg, err := cfg.prepared()
	if err != nil {
		return nil, err
	}
	r := &Run{
		cfg:     cfg,
		ctx:     ctx,
		dialers: cfg.dialers(),
		pool:    randomPool(cfg),
		started: time.Now(),
		halt:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	for id := range cfg.Workers {
		r.addClient(id)
	}
	for _, w := range r.workers {
		r.wg.Go(w.work)
	}
	go r.watch()
	return r, nil
}

// addClient makes a client and its workers.
func (r *Run) addClient(id int) {
	var c client = newH1Client(r)
	n := 1
	if r.cfg.HTTP2 {
		n = r.cfg.Streams
		c = newH2Client(r, id, n)
	}
	r.clients = append(r.clients, c)
	for i := range n {
		r.workers = append(r.workers, newWorker(r, c, id, i, n))
	}
}

// watch ends the run at its bounds and closes done when the last worker has
// ended.
func (r *Run) watch() {
	unwatch := context.AfterFunc(r.ctx, r.abort)
	var timer *time.Timer
	if r.cfg.Duration > 0 {
		timer = time.AfterFunc(time.Until(r.started.Add(r.cfg.Duration)), r.haltNow)
	}
	r.wg.Wait()
	unwatch()
	if timer != nil {
		timer.Stop()
	}
	r.final = r.collect()
	close(r.done)
}

func (r *Run) haltNow() {
	r.haltOnce.Do(func() {
		r.halted.Store(true)
		close(r.halt)
	})
}

func (r *Run) abort() {
	r.haltNow()
	for _, c := range r.clients {
		c.interrupt()
	}
}

// Stop lets no further request begin, waits for those in flight and returns
// the final counts. Calling it again returns the same.
func (r *Run) Stop() Result {
	r.haltNow()
	return r.Wait()
}

// Wait waits until the run has reached its bound, was stopped, or aborted,
// and returns the final counts.
func (r *Run) Wait() Result {
	<-r.done
	var res Result
	res.Merge(r.final) // a copy of its own for each caller
	return res
}

// Done is closed when the run is over.
func (r *Run) Done() <-chan struct{} { return r.done }

// Snapshot returns the counts so far. It costs the workers next to nothing.
func (r *Run) Snapshot() Result {
	select {
	case <-r.done:
		return r.Wait()
	default:
		return r.collect()
	}
}

func (r *Run) collect() Result {
	res := Result{Started: r.started, Seed: r.cfg.Seed}
	for _, w := range r.workers {
		w.addTo(&res)
	}
	for _, c := range r.clients {
		c.addTo(&res)
	}
	res.Workers = len(r.clients)
	res.Elapsed = time.Since(r.started)
	return res
}

// poolSlack is how far into the pool a body may begin.
const poolSlack = 4096

func randomPool(cfg Config) []byte {
	if cfg.PostRatio == 0 {
		return nil
	}
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(cfg.Seed >> (i % 8 * 8))
	}
	pool := make([]byte, cfg.BodyMax+poolSlack)
	rand.NewChaCha8(seed).Read(pool)
	return pool
}
