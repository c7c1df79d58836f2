package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/handoverd/handoverd/handover"
)

// A service is what a generation does with its sockets. Its methods are called
// in this order, take once for each socket, and close last, whatever happened.
type service interface {
	// check tells whether the service goes with a socket.
	check(name, network string) error
	// begin is told that the generation is there.
	begin() error
	// take claims one socket. Nothing is accepted yet.
	take(l listenSpec, packet bool) error
	// prepare returns when the service could serve.
	prepare(ctx context.Context) error
	// abandon ends a service that never came to own its sockets.
	abandon()
	// owned is called when ownership is ours.
	owned()
	// drain finishes what is open, and reports.
	drain(ctx context.Context) report
	// outcome is what to end with after a drain, if not with what has led to it.
	outcome() error
	// stats tells of connections, at any time.
	stats() handover.Stats
	// close releases everything.
	close()
}

// A report is what a service tells at its end. It encodes as JSON.
type report interface {
	fmt.Stringer
	// Clean tells whether nothing had to be killed.
	Clean() bool
}

// newService makes the service that the flags ask for.
func (a *app) newService() (service, error) {
	switch {
	case a.opts.holds:
		return &holding{a: a}, nil
	case len(a.opts.argv) > 0:
		return newProgram(a)
	}
	return newWeb(a)
}

// fail ends this process for what a service cannot go on after.
func (a *app) fail(err error) {
	select {
	case a.failures <- err:
	default: // one is enough
	}
}

// holding is the service of a holder: it only keeps its sockets, for others.
type holding struct {
	a       *app
	sockets []*handover.Held
}

func (*holding) check(string, string) error    { return nil }
func (*holding) begin() error                  { return nil }
func (*holding) prepare(context.Context) error { return nil }
func (*holding) abandon()                      {}
func (*holding) close()                        {}
func (*holding) outcome() error                { return nil }
func (*holding) stats() handover.Stats         { return handover.Stats{} }

func (h *holding) take(l listenSpec, _ bool) error {
	s, err := h.a.hold(l)
	if err == nil {
		h.sockets = append(h.sockets, s)
	}
	return err
}

// owned keeps copies in the service manager, if it is to.
func (h *holding) owned() {
	if !h.a.opts.fdStore {
		return
	}
	for _, s := range h.sockets {
		if err := h.a.notify.store(s); err != nil {
			h.a.log.Warn("socket not kept by the service manager", "name", s.Name, "error", err)
		}
	}
}

// hold gets a socket that nobody accepts from here.
func (a *app) hold(l listenSpec) (*handover.Held, error) {
	s, err := a.gen.Hold(l.name, l.network, l.address)
	if err != nil {
		return nil, listenError(l, err)
	}
	a.log.Info("listening", "name", l.name, "network", s.Network, "address", s.Address)
	return s, nil
}

func (*holding) drain(context.Context) report { return held{} }

// held is the report of a holder.
type held struct {
	Holder bool `json:"holder"`
}

func (held) String() string { return "a holder, with no connections of its own" }
func (held) Clean() bool    { return true }

// errNoSockets tells what a service without any can do.
var errNoSockets = errors.New("the predecessor has no sockets to hand over: name the ones to open with --listen")
