package handover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// Start takes over from the owner of the control socket, or starts the first
// generation of a new set, as Config.Mode says. Then call Listen,
// ListenPacket, State and File for what the application needs, and Ready.
//
// ctx covers the call only. Errors: ErrNoOwner, ErrOwned, a *RefusedError,
// ErrStuck, ErrPredecessorDied, ErrForeignNetns, ErrUntrustedOwner, or one that
// names the path or limit that is in the way. After an error nothing is held,
// and an owner serves as before. The caller ends the generation with Close.
func Start(ctx context.Context, cfg Config) (*Generation, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	g, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	return g, nil
}

// launch starts a generation's goroutines.
func (g *Generation) launch() {
	go g.run()
	if g.control != nil {
		g.wg.Go(g.acceptControl)
	}
	if g.pred != nil {
		g.pred.link.startReader()
		g.wg.Go(g.pred.follow)
	}
}

// startOrTakeOver finds out whether there is an owner. Between an owner's
// lock and its bound path, and between its last close and its unlinking,
// there are instants in which it is there and not there: those are waited out.
func startOrTakeOver(ctx context.Context, cfg Config) (*Generation, error) {
	if err := checkPath(cfg.Socket); err != nil {
		return nil, err
	}
	if cfg.Holder != "" && cfg.Holder == cfg.Socket {
		return nil, errors.New("the holder's control socket and this set's own are the same path: a holder is asked at its own, and services hand over at theirs")
	}
	if cfg.Mode != StartOnly {
		var rehearsal sync.WaitGroup
		rehearsal.Go(rehearseSuccessor)
		defer rehearsal.Wait()
	}
	give := time.NewTimer(cfg.StepTimeout)
	defer give.Stop()
	var last, early error
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		g, err := tryStart(ctx, cfg)
		switch {
		case errors.Is(err, errTryAgain):
		case errors.Is(err, errBeforeWelcome) && early == nil:
			// It has just been superseded; the next one is there at once.
			early = err
		case err != nil && early != nil:
			return nil, fmt.Errorf("%w; before that: %w", err, early)
		default:
			return g, err
		}
		last = err
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-give.C:
			t.Stop()
			return nil, last
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// errBeforeWelcome marks an owner that closed before it said anything.
var errBeforeWelcome = fmt.Errorf("%w, or was superseded", ErrPredecessorDied)

// errTryAgain marks a state of the control path that passes.
var errTryAgain = errors.New("not settled within the time for one step")

func tryStart(ctx context.Context, cfg Config) (*Generation, error) {
	conn, err := scm.Dial(ctx, "unixpacket", cfg.Socket)
	switch {
	case err == nil && cfg.Mode == StartOnly:
		conn.Close()
		return nil, fmt.Errorf("%w: %s; take over from it, stop it, or choose another path", ErrOwned, cfg.Socket)
	case err == nil:
		g, err := takeOver(ctx, cfg, conn)
		if errors.Is(err, ErrPredecessorDied) && cfg.Mode == TakeOverOrStart {
			return nil, fmt.Errorf("%w: %w", errTryAgain, err)
		}
		return g, err
	case errors.Is(err, syscall.EAGAIN):
		return nil, fmt.Errorf("%w: %w: its queue is full", errTryAgain, ErrStuck)
	case errors.Is(err, fs.ErrPermission):
		return nil, errNotPermitted(err)
	case errors.Is(err, syscall.EPROTOTYPE):
		return nil, fmt.Errorf("%s is a socket of another kind: it does not belong to this package", cfg.Socket)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("control socket: %w", err)
	}
	lockFD, held, err := lockPath(cfg.Socket)
	switch {
	case held:
		return nil, fmt.Errorf("%w: another process holds %s.lock and does not listen on %s", errTryAgain, cfg.Socket, cfg.Socket)
	case cfg.Mode == TakeOverOnly:
		if err == nil {
			removeLock(lockFD, cfg.Socket)
			closeFD(lockFD)
		}
		return nil, fmt.Errorf("%w: no live process listens on %s", ErrNoOwner, cfg.Socket)
	case err != nil:
		return nil, err
	}
	g, err := coldStart(ctx, cfg, lockFD)
	if err != nil && g == nil {
		removeLock(lockFD, cfg.Socket)
		closeFD(lockFD)
	}
	return g, err
}

func errNotPermitted(err error) error {
	return fmt.Errorf("%w: %w: run as the user who owns it", ErrNotPermitted, err)
}

// coldStart makes generation 1. With an error the lock stays the caller's.
func coldStart(ctx context.Context, cfg Config, lockFD int) (*Generation, error) {
	_, err := idOf(cfg.Socket)
	crashed := err == nil
	var borrowed map[string]*socket
	if cfg.Holder != "" {
		if borrowed, err = borrow(ctx, cfg); err != nil {
			return nil, err
		}
	}
	g := newGeneration(cfg, 1)
	g.crashed = crashed
	fail := func(err error) (*Generation, error) {
		for _, s := range borrowed {
			s.closeDescriptor()
		}
		g.netns.close()
		g.word.close()
		g.cancel()
		return nil, err
	}
	ln, id, err := bindControl(ctx, cfg.Socket)
	if err != nil {
		return fail(fmt.Errorf("control socket: %w", err))
	}
	if g.control, err = newControlSocket(ln, cfg.Socket, id, lockFD, g.controlGate); err != nil {
		unlinkOurs(cfg.Socket, id)
		ln.Close()
		return fail(fmt.Errorf("control socket: %w", err))
	}
	if g.word, err = newWord(settled(1, 0)); err == nil {
		err = g.netns.openOwn()
	}
	if err != nil {
		unlinkOurs(cfg.Socket, id)
		ln.Close()
		return fail(err)
	}
	if borrowed != nil {
		g.inherited = borrowed
	}
	g.controlGate.open()
	g.launch()
	g.log.Info("first generation", "socket", cfg.Socket, "pid", os.Getpid())
	return g, nil
}

// openOwn opens the namespace of this process, to be the set's.
func (h *netnsHandle) openOwn() error {
	fd, err := openNetns()
	if err != nil {
		return err
	}
	info, err := inspect(fd)
	if err != nil {
		closeFD(fd)
		return err
	}
	*h = netnsHandle{fd: fd, item: item{Name: nameNetns, Kind: kindNetns, Cookie: info.cookie}}
	return nil
}
