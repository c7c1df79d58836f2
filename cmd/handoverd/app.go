package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

// app is a process that serves: it waits for ownership, serves, hands over or
// stops, and drains.
type app struct {
	opts    *options
	console *console
	log     *slog.Logger
	srv     *server.Server
	watch   *watcher
	notify  *notifier
	child   *launcher
	receipt *receipts

	gen       *handover.Generation // set once, before anything is served
	failures  chan error           // of accepting; has room for one of each listener
	serving   sync.WaitGroup
	drainEnds atomic.Int64 // Unix nanoseconds; 0 before the drain
}

// newApp prepares all that can be prepared without touching an owner.
func newApp(o *options, c *console, child *launcher) (*app, error) {
	level := &slog.HandlerOptions{Level: o.level(c.terminal)}
	var handler slog.Handler = slog.NewTextHandler(c, level)
	if o.logFormat.value == "json" {
		handler = slog.NewJSONHandler(c, level)
	}
	a := &app{opts: o, console: c, log: slog.New(handler), child: child}
	a.notify = &notifier{log: a.log}
	a.srv = &server.Server{
		Server: http.Server{
			ReadHeaderTimeout: time.Minute,
			ErrorLog:          slog.NewLogLogger(handler, slog.LevelWarn),
			Protocols:         protocols(),
		},
		StopTimeout: o.drainTimeout.orNone(),
		KillTimeout: o.killTimeout.orNone(),
		Linger:      o.linger.orDefault(),
	}
	if o.tlsCert != "" {
		cert, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		a.srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	}
	a.watch = newWatcher(a)
	var err error
	a.receipt, err = newReceipts(a, o.receipt)
	return a, err
}

// protocols are all that net/http speaks. HTTP/2 on a plaintext listener is for
// clients that know beforehand; there is no upgrade to it.
func protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

// run serves until a successor has taken over or a stop was asked for, and
// all connections have ended.
func (a *app) run(ctx context.Context, mode handover.Mode) error {
	content, err := a.newContent()
	if err != nil {
		return err
	}
	defer content.close()
	sig := a.catchSignals()
	defer sig.release()
	ctx, cancel := sig.context(ctx)
	defer cancel()

	a.watch.start()
	defer a.watch.end()
	if a.gen, err = a.takeOverOrStart(ctx, mode); err != nil {
		return err
	}
	defer a.serving.Wait()
	defer a.gen.Close()
	a.srv.Handler = content.handler(a.gen.Number)
	if err := a.shareTickets(); err != nil {
		return err
	}
	if err := a.open(a.gen.Number() == 1); err != nil {
		return err
	}
	if err := a.gen.Ready(ctx); err != nil {
		a.srv.Close()
		return err
	}
	a.log.Info("serving", "generation", a.gen.Number(), "sockets", len(a.gen.Sockets()))
	a.console.say("generation %d serves %s", a.gen.Number(), socketList(a.gen.Sockets()))
	failure := a.await(sig)
	a.drain()
	if failure != nil {
		return failure
	}
	return a.outcome()
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
		Unclaimed:    a.opts.unclaimedPolicy(),
		Record:       a.receipt != nil,
		Stats:        a.stats,
		NoMove:       a.opts.noMigrate,
		OnEvent:      a.watch.event,
		Logger:       a.log,
	}
	give, level := time.Now().Add(time.Duration(a.opts.wait)), slog.LevelInfo
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		gen, err := handover.Start(ctx, cfg)
		var refused *handover.RefusedError
		left := time.Until(give)
		if !errors.As(err, &refused) || !refused.Code.Temporary() || left <= 0 {
			return gen, err
		}
		a.log.Log(ctx, level, "the owner refuses for now", "error", err, "trying_for", left.Round(time.Millisecond))
		level = slog.LevelDebug // once is enough
		a.console.show(progress{subject: "wait", text: fmt.Sprintf("%s, trying for %v more", refused.Message, left.Round(time.Second))})
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
	a.drainEnds.Store(time.Now().Add(time.Duration(a.opts.drainTimeout)).UnixNano())
	a.watch.draining()
	report := a.srv.Stop(context.Background())
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

// outcome is nil when this process has done what it was there for.
func (a *app) outcome() error {
	cause := a.gen.Cause()
	if errors.Is(cause, handover.ErrSuperseded) || errors.Is(cause, handover.ErrStopRequested) {
		return nil
	}
	return cause
}

// stats tells package handover of the connections. It runs at any time.
func (a *app) stats() handover.Stats {
	c := a.srv.Counts()
	st := handover.Stats{Connections: connections(c), Ended: ended(c), Oldest: c.Oldest}
	if ends := a.drainEnds.Load(); ends != 0 {
		st.Remaining = max(0, time.Until(time.Unix(0, ends)))
	}
	return st
}

// connections counts the open ones. In a drain it does not matter whether one
// that is waited for has ever been used.
func connections(c server.Counts) map[string]int64 {
	if c.Draining {
		return map[string]int64{
			"active": int64(c.Active), "lingering": int64(c.Lingering), "hijacked": int64(c.Hijacked),
		}
	}
	return map[string]int64{
		"new": int64(c.New), "active": int64(c.Active), "idle": int64(c.Idle), "hijacked": int64(c.Hijacked),
	}
}

// ended counts those that a drain has brought to their end.
func ended(c server.Counts) map[string]int64 {
	if !c.Draining {
		return nil
	}
	return map[string]int64{
		"moved": int64(c.Moved), "finished": int64(c.Finished), "closed": int64(c.Closed), "killed": int64(c.Killed),
	}
}
