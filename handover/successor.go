package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// receiver gathers what an owner hands over.
type receiver struct {
	cfg     Config
	path    string // of the control socket
	link    *link
	intent  string
	welcome frameWelcome
	proc    *process
	netns   cookie // of this process
	steps   steps

	conversions *conversions // nil for a few sockets

	sockets  map[string]*socket
	states   map[string]int
	reserved map[Kind]*socket
}

// takeOver receives everything that the owner behind conn hands over. It
// consumes conn. With an error nothing stays open.
func takeOver(ctx context.Context, cfg Config, conn *scm.Conn) (*Generation, error) {
	r := newReceiver(cfg, cfg.Socket, conn, intentTakeover)
	r.steps.connected = time.Now()
	g, err := r.run(ctx)
	if err != nil {
		if r.welcome.Count > 0 { // tell why
			r.link.sendWithin(100*time.Millisecond, frameSimple{Type: typeRollback, Message: shorten(err.Error())})
		}
		r.discard()
		return nil, err
	}
	return g, nil
}

func newReceiver(cfg Config, path string, conn *scm.Conn, intent string) *receiver {
	return &receiver{
		cfg: cfg, path: path, link: newLink(conn, scm.MaxFDs), intent: intent,
		sockets: map[string]*socket{}, states: map[string]int{}, reserved: map[Kind]*socket{},
	}
}

// errUntrusted explains whose a control socket is.
func errUntrusted(path string, uid uint32) error {
	if uid == overflowUID && !uidsAllMapped() {
		return fmt.Errorf("%w: %s belongs to a user without a mapping in this user namespace (the kernel shows uid %d): run in the user namespace of the owner", ErrUntrustedOwner, path, uid)
	}
	return fmt.Errorf("%w: %s belongs to uid %d, and sockets from there could be anything: run as that user, or allow that uid", ErrUntrustedOwner, path, uid)
}

func (r *receiver) discard() {
	for _, s := range r.sockets {
		s.closeDescriptor()
	}
	for _, fd := range r.states {
		closeFD(fd)
	}
	for _, s := range r.reserved {
		closeFD(s.fd)
	}
	r.proc.close()
	r.link.close()
}

func (r *receiver) run(ctx context.Context) (*Generation, error) {
	if err := r.receive(ctx); err != nil {
		return nil, err
	}
	return r.generation()
}

// receive says hello and receives everything.
func (r *receiver) receive(ctx context.Context) error {
	cred, err := r.link.conn.PeerCred()
	if err != nil {
		return err
	}
	if r.cfg.permits(cred.UID) != nil {
		return errUntrusted(r.path, cred.UID)
	}
	if r.netns, err = ownNetnsCookie(); err != nil {
		return err
	}
	if err := r.hello(ctx); err != nil {
		return err
	}
	at(r.welcome.Next, "successor/welcome")
	r.steps.welcomed = time.Now()
	const worthwhile = 8
	if r.welcome.Count >= worthwhile {
		r.conversions = startConversions(r.welcome.Count)
		defer r.conversions.finish()
	}
	for got := 0; got < r.welcome.Count; {
		n, err := r.batch(ctx, got)
		if err != nil {
			return err
		}
		got += n
	}
	return nil
}

// step bounds one step; its error tells a slow owner from an impatient caller.
func (r *receiver) step(ctx context.Context, what string, f func(context.Context) error) error {
	sctx, cancel := context.WithTimeout(ctx, r.cfg.StepTimeout)
	defer cancel()
	err := f(sctx)
	var refused *RefusedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, ErrForeignNetns):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: no %s within %v; if the owner is stopped, continue it, else end it and start afresh", ErrStuck, what, r.cfg.StepTimeout)
	case gone(err) && r.welcome.Count == 0:
		return fmt.Errorf("%w (%s: %w)", errBeforeWelcome, what, err)
	case gone(err):
		return fmt.Errorf("%w (%s: %w)", ErrPredecessorDied, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (r *receiver) hello(ctx context.Context) error {
	hello := frameHello{
		Type: typeHello, Protocols: r.cfg.protocols, Intent: r.intent,
		Program: r.cfg.Program, Build: r.cfg.Build, PID: os.Getpid(),
		Revision: r.cfg.Revision, Force: r.cfg.Force, Probation: millis(r.cfg.Probation),
		Moves: !r.cfg.NoMove,
	}
	if err := r.step(ctx, "hello", func(ctx context.Context) error { return r.link.send(ctx, hello) }); err != nil {
		return err
	}
	at(0, "successor/hello")
	return r.step(ctx, "welcome", func(ctx context.Context) error {
		f, fds, err := r.link.recv(ctx)
		// The one descriptor that may come is the owner's pidfd.
		if len(fds) == 1 && err == nil {
			if r.proc, err = watchReceived(fds[0]); err != nil {
				return fmt.Errorf("the owner's pidfd: %w", err)
			}
		} else {
			closeAll(fds)
		}
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *frameRefuse:
			return &RefusedError{Code: f.Code, Message: f.Message}
		case *frameWelcome:
			if len(fds) > 1 {
				return fmt.Errorf("%w: welcome with %d descriptors", errFrame, len(fds))
			}
			if !slices.Contains(r.cfg.protocols, f.Protocol) {
				return fmt.Errorf("%w: the owner chose protocol %d, which was not offered", errFrame, f.Protocol)
			}
			r.welcome = *f
			return nil
		}
		return fmt.Errorf("%w: %T instead of welcome", errFrame, f)
	})
}

// batch receives one sockets frame, looks at what really came, and says so.
func (r *receiver) batch(ctx context.Context, first int) (n int, err error) {
	var cookies []cookie
	err = r.step(ctx, "sockets", func(ctx context.Context) error {
		f, fds, err := r.link.recv(ctx)
		if err == nil {
			switch f := f.(type) {
			case *frameRefuse:
				err = &RefusedError{Code: f.Code, Message: f.Message}
			case *frameSockets:
				cookies, err = r.take(f, fds, first)
				return err
			default:
				err = fmt.Errorf("%w: %T instead of sockets", errFrame, f)
			}
		}
		closeAll(fds)
		return err
	})
	if err != nil {
		return 0, err
	}
	at(r.welcome.Next, "successor/sockets")
	err = r.step(ctx, "received", func(ctx context.Context) error {
		return r.link.send(ctx, frameReceived{Type: typeReceived, First: first, Cookies: cookies})
	})
	if errors.Is(err, ErrPredecessorDied) && first+len(cookies) == r.welcome.Count {
		err = nil // everything is here: follow finds out whose it is
	}
	return len(cookies), err
}

// take checks and keeps the descriptors of one batch. It consumes fds.
func (r *receiver) take(f *frameSockets, fds []int, first int) (cookies []cookie, err error) {
	kept := 0
	defer func() { closeAll(fds[kept:]) }()
	if f.First != first || len(f.Items) != len(fds) || first+len(fds) > r.welcome.Count {
		return nil, fmt.Errorf("%w: %d items from %d on with %d descriptors, after %d of %d",
			errFrame, len(f.Items), f.First, len(fds), first, r.welcome.Count)
	}
	infos, err := inspectAll(fds)
	if err != nil {
		return nil, err
	}
	for i, it := range f.Items {
		err := r.keep(it, infos[i], fds[i])
		if errors.Is(err, ErrForeignNetns) {
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errFrame, it.Name, err)
		}
		kept = i + 1
		cookies = append(cookies, infos[i].cookie)
	}
	return cookies, nil
}

// inspectAll inspects a batch, on all cores if it is large.
func inspectAll(fds []int) ([]sockInfo, error) {
	infos, errs := make([]sockInfo, len(fds)), make([]error, len(fds))
	const chunk = 64
	var wg sync.WaitGroup
	for from := 0; from < len(fds); from += chunk {
		to := min(from+chunk, len(fds))
		work := func() {
			for i := from; i < to; i++ {
				infos[i], errs[i] = inspect(fds[i])
			}
		}
		if to == len(fds) {
			work()
		} else {
			wg.Go(work)
		}
	}
	wg.Wait()
	return infos, errors.Join(errs...)
}

// keep files one descriptor under its name. With an error it is not kept.
func (r *receiver) keep(it item, info sockInfo, fd int) error {
	s := &socket{item: it, fd: fd, id: fileID{it.Dev, it.Ino}}
	// What the kernel says counts, not what the peer says.
	s.Cookie, s.Netns = info.cookie, info.netns
	switch it.Kind {
	case kindState:
		if _, ok := r.states[it.Name]; ok {
			return errors.New("state sent twice")
		}
		r.states[it.Name] = fd
		return nil
	case kindControl, kindLock, kindNetns, kindWord:
		if r.reserved[it.Kind] != nil {
			return errors.New("sent twice")
		}
		if it.Kind == kindControl {
			if err := info.goesWith("unixpacket"); err != nil {
				return err
			}
			if !info.accepting {
				return errors.New("the control socket does not listen")
			}
		}
		r.reserved[it.Kind] = s
		return nil
	}
	if r.sockets[it.Name] != nil {
		return errors.New("name sent twice")
	}
	if it.Kind != KindFile {
		if err := info.goesWith(it.Network); err != nil {
			return err
		}
		if err := s.checkPath(); err != nil {
			return err
		}
		if isBoundToNetns(it) && s.Netns != r.netns && !r.cfg.ForeignNetns {
			return foreignError(s, r.netnsFD())
		}
	}
	r.sockets[it.Name] = s
	if r.conversions != nil && it.Kind != KindFile {
		r.conversions.todo <- s // has room for all
	}
	return nil
}

// netnsFD is the descriptor of the set's network namespace, or -1. It comes
// before the sockets.
func (r *receiver) netnsFD() int {
	if ns := r.reserved[kindNetns]; ns != nil {
		return ns.fd
	}
	return -1
}

// checkPath compares the address of a Unix socket with what the kernel says:
// its path is removed some day.
func (s *socket) checkPath() error {
	if kindOf(s.Network) == "" || !strings.HasPrefix(s.Network, "unix") {
		return nil
	}
	bound, err := boundAddress(s.fd)
	if err == nil && bound != s.Address {
		err = fmt.Errorf("bound to %q, not to %q", bound, s.Address)
	}
	return err
}

// isBoundToNetns tells whether a socket is reachable only through the network
// namespace that it was made in. Unix sockets with a path are not.
func isBoundToNetns(it item) bool {
	return it.Kind != KindFile && !isUnixPath(it.Network, it.Address)
}

// generation makes a generation of what was received.
func (r *receiver) generation() (*Generation, error) {
	for _, k := range []Kind{kindControl, kindLock, kindWord} {
		if r.reserved[k] == nil {
			return nil, fmt.Errorf("%w: the owner handed over no %s", errFrame, k)
		}
	}
	g := newGeneration(r.cfg, r.welcome.Next)
	word, err := mapWord(r.reserved[kindWord].fd)
	delete(r.reserved, kindWord) // consumed either way
	if err != nil {
		g.cancel()
		return nil, err
	}
	ctl := r.reserved[kindControl]
	ln, err := controlListener(ctl.fd)
	delete(r.reserved, kindControl)
	if err == nil {
		g.control, err = newControlSocket(ln, r.cfg.Socket, ctl.id, r.reserved[kindLock].fd, g.controlGate)
		if err != nil {
			ln.Close()
		}
	}
	if err != nil {
		word.close()
		g.cancel()
		return nil, err
	}
	delete(r.reserved, kindLock)
	g.word = word
	if ns := r.reserved[kindNetns]; ns != nil {
		g.netns = netnsHandle{fd: ns.fd, item: ns.item, foreign: ctl.Netns != r.netns}
		delete(r.reserved, kindNetns)
	}
	g.attempt = r.welcome.Attempt
	r.steps.received = time.Now()
	g.steps = r.steps
	g.inherited, g.states = r.sockets, r.states
	g.pred = &predecessor{
		g: g, link: r.link, proc: r.proc, welcome: r.welcome,
		cmds: make(chan command), quit: make(chan struct{}), over: make(chan struct{}),
	}
	at(g.number, "successor/received")
	g.launch()
	g.log.Info("sockets received", "from", r.welcome.Generation, "count", r.welcome.Count,
		"program", r.welcome.Program, "build", r.welcome.Build)
	return g, nil
}

// controlListener makes a listener of a received control socket, which it
// consumes.
func controlListener(fd int) (*net.UnixListener, error) {
	c, err := newConverter()
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	defer c.close()
	ln, _, err := c.convert(fd, KindListener)
	if err != nil {
		closeFD(fd)
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, errors.New("control socket: not a Unix listener")
	}
	ul.SetUnlinkOnClose(false)
	return ul, nil
}

// describeForeign makes a socket of a descriptor that an activator passed.
func describeForeign(name string, fd int) (*socket, error) {
	info, err := inspect(fd)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd, adopted: true, item: item{Name: name, Kind: KindFile, Cookie: info.cookie, Netns: info.netns}}
	s.Network = info.network()
	if s.Network == "" {
		return s, nil
	}
	s.Kind = kindOf(s.Network)
	if s.Kind == KindListener && !info.accepting {
		s.Kind, s.Network = KindFile, "" // a connection, not a listener
		return s, nil
	}
	if err := setNonblock(fd); err != nil {
		return nil, err
	}
	if s.Address, err = boundAddress(fd); err != nil {
		return nil, err
	}
	if err := checkAddress(s.Address); err != nil {
		return nil, err
	}
	if isUnixPath(s.Network, s.Address) && !strings.Contains(s.Address, "\x00") {
		// Who bound it keeps the path: our id stays empty, and so it stays.
		s.Asked = s.Address
	}
	return s, nil
}
