package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
)

// signals turns signals into channels.
type signals struct {
	a       *app
	program *program // that gets signals passed on, or nil
	in      chan os.Signal
	quit    chan struct{}
	done    sync.WaitGroup
	stop    chan struct{} // closed by the first SIGTERM or SIGINT
	upgrade chan struct{} // one token for each SIGUSR2, none for those that come meanwhile
}

// catchSignals catches signals until release.
func (a *app) catchSignals() *signals {
	s := &signals{
		a: a, in: make(chan os.Signal, 8), quit: make(chan struct{}),
		stop: make(chan struct{}), upgrade: make(chan struct{}, 1),
	}
	signal.Notify(s.in, append([]os.Signal{os.Interrupt, syscall.SIGTERM}, platformSignals()...)...)
	if p, ok := a.service.(*program); ok {
		s.program = p
		signal.Notify(s.in, programSignals()...)
	}
	s.done.Go(s.run)
	return s
}

func (s *signals) run() {
	stopping := false
	for {
		select {
		case <-s.quit:
			return
		case sig := <-s.in:
			switch {
			case isBrokenPipe(sig):
				// A log that nobody reads is no reason to end.
			case s.program != nil && slices.Contains(programSignals(), sig):
				s.program.signal(sig.(syscall.Signal))
			case isUpgrade(sig):
				select {
				case s.upgrade <- struct{}{}:
				default:
				}
			case stopping:
				// Whoever asks twice does not want to wait.
				s.a.console.clear()
				s.a.log.Error("second signal, this process ends without waiting for its connections", "signal", sig.String())
				os.Exit(exitFailure)
			default:
				stopping = true
				s.a.log.Info("stopping, a second signal ends this process at once", "signal", sig.String())
				s.a.console.say("stopping; a second signal ends this process at once")
				close(s.stop)
			}
		}
	}
}

// context is a context that ends with the first SIGTERM or SIGINT.
func (s *signals) context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	s.done.Go(func() {
		select {
		case <-s.stop:
			cancel()
		case <-s.quit:
		}
	})
	return ctx, cancel
}

// release lets signals do what they did before.
func (s *signals) release() {
	signal.Stop(s.in)
	close(s.quit)
	s.done.Wait()
}
