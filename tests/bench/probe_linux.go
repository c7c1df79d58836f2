package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// probePause is between two questions of a probe. Without it, it and the server
// that answers would keep a processor busy, for which the new process has to wait.
const probePause = time.Millisecond

// A probe asks on new connections until a generation answers.
type probe struct {
	site *site
	want int

	found chan struct{} // closed when it has
	ctx   context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup

	// Known when it is over.
	answered time.Time
	requests int64
	failed   map[string]int64
}

func newProbe(s *site, want int) *probe {
	p := &probe{site: s, want: want, found: make(chan struct{}), failed: make(map[string]int64)}
	p.ctx, p.end = context.WithCancel(context.Background())
	return p
}

func (p *probe) start() { p.wg.Go(p.ask) }

func (p *probe) ask() {
	for p.ctx.Err() == nil {
		got, err := p.site.ask(p.ctx, "/echo")
		if p.ctx.Err() != nil {
			return
		}
		p.requests++
		switch {
		case err == nil && got == p.want:
			p.answered = time.Now()
			close(p.found)
			return
		case errors.Is(err, syscall.ECONNREFUSED):
			p.failed["refused"]++
		case errors.Is(err, syscall.ECONNRESET):
			p.failed["reset"]++
		case err != nil:
			p.failed["other"]++
		}
		time.Sleep(probePause)
	}
}

// wait waits until the generation has answered.
func (p *probe) wait(ctx context.Context) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-p.found:
		return nil
	case <-timeout.C:
		return fmt.Errorf("generation %d of %s does not answer within %v", p.want, p.site.name, patience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *probe) stop() {
	p.end()
	p.wg.Wait()
}
