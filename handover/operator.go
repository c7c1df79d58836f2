package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// Operator talks to the owner of a control socket without taking over.
type Operator struct {
	// Socket is the path of the control socket.
	Socket string
	// Timeout bounds each answer. Zero: DefaultStepTimeout.
	Timeout time.Duration
	// AllowUIDs are the users whose socket is trusted besides our own and root.
	AllowUIDs []uint32
}

// Status asks the owner for its status. Errors: ErrNoOwner, ErrStuck,
// ErrUntrustedOwner, a *RefusedError.
func (o Operator) Status(ctx context.Context) (st *Status, err error) {
	err = o.again(ctx, func() error {
		st, err = o.status(ctx)
		return err
	})
	return st, err
}

// again repeats f while the owner closes without a word: it has just been
// superseded, and the next one is there at once.
func (o Operator) again(ctx context.Context, f func() error) error {
	give := time.Now().Add(o.timeout())
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := f()
		if !gone(err) || time.Now().After(give) {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

func (o Operator) status(ctx context.Context) (*Status, error) {
	l, err := o.ask(ctx, intentStatus)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var st *Status
	for {
		f, err := o.hear(ctx, l)
		if err != nil {
			return nil, err
		}
		s, ok := f.(*frameStatus)
		if !ok {
			return nil, fmt.Errorf("%w: %T instead of status", errFrame, f)
		}
		if st == nil {
			st = &s.Status
		} else {
			st.merge(s.Status)
		}
		if cred, err := l.conn.PeerCred(); err == nil {
			st.PeerPID = int(cred.PID)
		}
		if !s.More || len(st.Sockets)+len(st.Unclaimed)+len(st.Draining) > 2*maxItems {
			return st, nil
		}
	}
}

// Commit ends the owner's probation in its favour. It returns nil if the
// owner is committed already.
func (o Operator) Commit(ctx context.Context) error { return o.order(ctx, intentCommit) }

// Rollback has the owner, in probation, give the sockets back.
func (o Operator) Rollback(ctx context.Context) error { return o.order(ctx, intentRollback) }

func (o Operator) order(ctx context.Context, intent string) error {
	return o.again(ctx, func() error { return o.orderOnce(ctx, intent) })
}

func (o Operator) orderOnce(ctx context.Context, intent string) error {
	l, err := o.ask(ctx, intent)
	if err != nil {
		return err
	}
	defer l.close()
	// A rollback waits for the predecessor, too.
	o.Timeout = 3 * o.timeout()
	f, err := o.hear(ctx, l)
	if err != nil {
		return err
	}
	if s, ok := f.(*frameSimple); !ok || s.Type != typeOK {
		return fmt.Errorf("%w: %T instead of ok", errFrame, f)
	}
	return nil
}

// Stop has the owner drain and end without a successor, and waits for it.
// progress, if set, is called with what it tells meanwhile. The report is the
// one that the application gave to Drained, or nil if it gave none.
func (o Operator) Stop(ctx context.Context, progress func(Stats)) (report json.RawMessage, err error) {
	err = o.again(ctx, func() error {
		report, err = o.stop(ctx, progress)
		return err
	})
	return report, err
}

var errNoReport = errors.New("the owner ended without a report")

func (o Operator) stop(ctx context.Context, progress func(Stats)) (json.RawMessage, error) {
	l, err := o.ask(ctx, intentStop)
	if err != nil {
		return nil, err
	}
	defer l.close()
	for heard := false; ; heard = true {
		f, err := o.hear(ctx, l)
		if gone(err) && heard {
			return nil, errNoReport
		}
		if err != nil {
			return nil, err
		}
		switch f := f.(type) {
		case *frameProgress:
			if progress != nil {
				progress(f.Stats)
			}
		case *frameDrained:
			return f.Report, nil
		default:
			return nil, fmt.Errorf("%w: %T instead of progress", errFrame, f)
		}
	}
}

func (o Operator) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultStepTimeout
}

// dialOwner connects to the owner of a control socket.
func dialOwner(ctx context.Context, path string) (*scm.Conn, error) {
	conn, err := scm.Dial(ctx, "unixpacket", path)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: no live process listens on %s", ErrNoOwner, path)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EAGAIN):
		return nil, fmt.Errorf("%w: %w", ErrStuck, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, errNotPermitted(err)
	}
	return nil, fmt.Errorf("control socket: %w", err)
}

// ask dials the owner and says what for.
func (o Operator) ask(ctx context.Context, intent string) (*link, error) {
	if err := checkPath(o.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout())
	defer cancel()
	conn, err := dialOwner(ctx, o.Socket)
	if err != nil {
		return nil, err
	}
	l := newLink(conn, 0)
	fail := func(err error) (*link, error) {
		l.close()
		return nil, err
	}
	cred, err := conn.PeerCred()
	if err != nil {
		return fail(err)
	}
	if err := (&Config{AllowUIDs: o.AllowUIDs}).permits(cred.UID); err != nil {
		return fail(errUntrusted(o.Socket, cred.UID))
	}
	hello := frameHello{
		Type: typeHello, Protocols: protocolVersions, Intent: intent,
		Program: filepath.Base(os.Args[0]), PID: os.Getpid(),
	}
	if bi, ok := debug.ReadBuildInfo(); ok {
		hello.Build = bi.Main.Version
	}
	if err := l.send(ctx, hello); err != nil && !gone(err) {
		return fail(err)
	}
	return l, nil
}

// hear awaits one answer.
func (o Operator) hear(ctx context.Context, l *link) (any, error) {
	sctx, cancel := context.WithTimeout(ctx, o.timeout())
	defer cancel()
	f, err := l.recvPlain(sctx)
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("%w within %v", ErrStuck, o.timeout())
		}
		return nil, err
	}
	if r, ok := f.(*frameRefuse); ok {
		return nil, &RefusedError{Code: r.Code, Message: r.Message}
	}
	return f, nil
}
