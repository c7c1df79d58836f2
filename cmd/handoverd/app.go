package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// app is a process that serves: it waits for ownership, serves, hands over or
// stops, and drains.
type app struct {
	opts    *options
	console *console
	log     *slog.Logger
	service service
	watch   *watcher
	notify  *notifier
	child   *launcher
	receipt *receipts

	gen      *handover.Generation // set once, before anything is served
	failures chan error           // that serving cannot go on after; has room for one
}

// newApp prepares all that can be prepared without touching an owner.
func newApp(o *options, c *console, child *launcher) (*app, error) {
	level := &slog.HandlerOptions{Level: o.level(c.terminal)}
	var handler slog.Handler = slog.NewTextHandler(c, level)
	if o.logFormat.value == "json" {
		handler = slog.NewJSONHandler(c, level)
	}
	a := &app{opts: o, console: c, log: slog.New(handler), child: child, failures: make(chan error, 1)}
	a.notify = &notifier{log: a.log}
	a.watch = newWatcher(a)
	var err error
	a.receipt, err = newReceipts(a, o.receipt)
	return a, err
}

// run serves until a successor has taken over or a stop was asked for, and
// all connections have ended.
func (a *app) run(ctx context.Context, mode handover.Mode) error {
	var err error
	if a.service, err = a.newService(); err != nil {
		return err
	}
	defer a.service.close()
	sig := a.catchSignals()
	defer sig.release()
	ctx, cancel := sig.context(ctx)
	defer cancel()

	a.watch.start()
	defer a.watch.end()
	if a.gen, err = a.takeOverOrStart(ctx, mode); err != nil {
		return err
	}
	defer a.gen.Close()
	if err := a.begin(ctx); err != nil {
		a.service.abandon()
		return err
	}
	a.service.owned()
	a.log.Info("serving", "generation", a.gen.Number(), "sockets", len(a.gen.Sockets()))
	a.console.say("generation %d serves %s", a.gen.Number(), socketList(a.gen.Sockets()))
	failure := a.await(sig)
	a.drain()
	a.park(sig)
	if failure != nil {
		return failure
	}
	return a.outcome()
}

// begin takes the sockets, gets ready, and becomes their owner.
func (a *app) begin(ctx context.Context) error {
	if err := a.service.begin(); err != nil {
		return err
	}
	if err := a.open(a.gen.Number() == 1); err != nil {
		return err
	}
	if err := a.service.prepare(ctx); err != nil {
		return err
	}
	return a.gen.Ready(ctx)
}

// takeOverOrStart is handover.Start, repeated while the owner says "later" and
// --wait says that there is time.
func (a *app) takeOverOrStart(ctx context.Context, mode handover.Mode) (*handover.Generation, error) {
	cfg := handover.Config{
		Socket: a.opts.socket, Mode: mode,
		Program: "handoverd", Build: buildVersion(),
		Revision: a.opts.revision, Force: a.opts.force,
		AllowUIDs:    a.opts.allowed.uids,
		ForeignNetns: a.opts.foreignNetns.value == "allow",
		ReadyTimeout: time.Duration(a.opts.readyTimeout),
		Probation:    a.opts.probation.orNone(),
		AliveTimeout: time.Duration(a.opts.aliveTimeout),
		StepTimeout:  time.Duration(a.opts.stepTimeout),
		Unclaimed:    a.opts.unclaimedPolicy(),
		Record:       a.receipt != nil,
		Stats:        a.service.stats,
		NoMove:       a.opts.noMigrate || !a.opts.moves(),
		Lend:         a.opts.holds,
		Holder:       a.opts.holder,
		OnEvent:      a.watch.event,
		Logger:       a.log,
	}
	give, level := time.Now().Add(time.Duration(a.opts.wait)), slog.LevelInfo
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		gen, err := handover.Start(ctx, cfg)
		var refused *handover.RefusedError
		left := time.Until(give)
		text := ""
		switch {
		case err == nil || left <= 0:
			return gen, err
		case errors.As(err, &refused) && refused.Code.Temporary():
			text = refused.Message
		case errors.Is(err, handover.ErrNoHolder):
			text = "the holder is not there yet"
		default:
			return nil, err
		}
		a.log.Log(ctx, level, "not now", "error", err, "trying_for", left.Round(time.Millisecond))
		level = slog.LevelDebug // once is enough
		a.console.show(progress{subject: "wait", text: fmt.Sprintf("%s, trying for %v more", text, left.Round(time.Second))})
		t := time.NewTimer(min(pause, left))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// await returns when the drain has to begin, with what made serving fail.
func (a *app) await(sig *signals) (failure error) {
	for {
		select {
		case <-a.gen.Superseded():
			return failure
		case <-sig.stop:
			a.giveUp()
			<-a.gen.Superseded()
		case failure = <-a.failures:
			a.log.Error("serving failed, this process ends", "error", failure)
			a.giveUp()
			<-a.gen.Superseded()
		case <-sig.upgrade:
			a.upgrade()
		}
	}
}

// stopPatience is how long it may take until ownership is settled. It is made
// of steps that package handover bounds.
const stopPatience = time.Minute

// giveUp ends ownership, to whose favour ever. Where ownership is on its way
// already Stop leaves it to that, which may fail, so that it is asked again.
func (a *app) giveUp() {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	for ctx.Err() == nil {
		if err := a.gen.Stop(ctx); err != nil {
			a.log.Warn("stop", "error", err)
		}
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-a.gen.Superseded():
			t.Stop()
			return
		case <-t.C:
		}
	}
	a.log.Error("ownership could not be settled", "within", stopPatience)
	a.gen.Close()
}

// drain finishes what is open and tells whoever wants to know.
func (a *app) drain() {
	a.watch.draining()
	report := a.service.drain(context.Background())
	a.watch.drained()
	level := slog.LevelInfo
	if !report.Clean() {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, "drained", "generation", a.gen.Number(), "report", report)
	a.console.say("%v", report)
	if err := a.gen.Drained(report); err != nil {
		a.log.Warn("report not delivered", "error", err)
	}
	if err := a.gen.Close(); err != nil {
		a.log.Warn("close", "error", err)
	}
}

// park keeps this process, without sockets, until it is told to end: an engine
// that restarts whatever exits would start the old version again, which would
// take over back.
func (a *app) park(sig *signals) {
	cause := a.gen.Cause()
	if a.opts.afterDrain.value != "park" || !errors.Is(cause, handover.ErrSuperseded) && !errors.Is(cause, handover.ErrRolledBack) {
		return
	}
	a.log.Info("parked: SIGTERM ends this process", "cause", cause)
	a.console.say("parked; SIGTERM ends this process")
	<-sig.stop
}

// outcome is nil when this process has done what it was there for.
func (a *app) outcome() error {
	cause := a.gen.Cause()
	if errors.Is(cause, handover.ErrSuperseded) || errors.Is(cause, handover.ErrStopRequested) {
		return a.service.outcome()
	}
	return cause
}
