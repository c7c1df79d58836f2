package compat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// The sides of a conversation, each played by a frozen peer or by the present
// implementation. Steps of both sides run at the same time, and all of them
// have ended before the next begin: so a scene is in one order only, whatever
// the machine does.

// owner is the owner's side.
type owner interface {
	handOver() error  // up to the last received
	grant() error     // from ready on
	committed() error // hears it
	takenBack() error // hears a rollback, or a death
	withdrawn() error // hears that before it was ready
	leave() error     // in probation
	move() error      // the one connection that it has
	drain() error     // the last word
	refuse() error    // a takeover, for what reason it has
	tellStatus() error
	obeyCommit() error // though it is committed
	obeyStop() error
	address() string    // of "app"
	accept(n int) error // so many connections, which are open
	close()
}

// successor is the other side.
type successor interface {
	takeOver() error
	ready() error
	commit() error
	rollback() error
	withdraw() error
	die() error       // in probation
	settle() error    // hears that its owner leaves
	adopt() error     // a connection
	hearDrain() error // the last word
	refused() error
	obeyRollback() error // of an operator, for the part of the successor
	close()
}

// operator is one, too.
type operator interface {
	status() error
	stop() error
	commit() error
	rollback() error
}

const report = `{"closed":1}`

// ---- frozen

type frozenO struct {
	t     testing.TB
	o     *v1.Owner
	h     *v1.Handover
	conns []net.Conn
}

func newFrozenO(t testing.TB, fc v1.Config) *frozenO {
	o := frozenOwner(t, fc)
	o.States = map[string][]byte{"tickets": []byte("t"), "sessions": []byte("s")}
	return &frozenO{t: t, o: o}
}

func (f *frozenO) handOver() error {
	c, hello, err := f.o.AcceptControl()
	if err != nil {
		return err
	}
	f.h, err = f.o.HandOver(c, hello)
	return err
}

func (f *frozenO) grant() error { return errors.Join(f.h.AwaitReady(), f.h.Grant()) }

func (f *frozenO) committed() error {
	_, err := f.h.AwaitCommit()
	return err
}

func (f *frozenO) takenBack() error {
	if err := f.h.AwaitRollback(); err != nil { // it died
		_, err := f.h.TakeBack()
		return errors.Join(err, f.h.Close())
	}
	_, err := f.h.Revoke()
	return errors.Join(err, f.h.Close())
}

func (f *frozenO) withdrawn() error {
	if err := f.h.AwaitReady(); !errors.Is(err, v1.ErrWithdrew) {
		return fmt.Errorf("instead of a withdrawal: %w", err)
	}
	return f.h.Close()
}

func (f *frozenO) leave() error { return errors.Join(f.h.Leave(), f.committed()) }

func (f *frozenO) move() error {
	if err := f.o.SendConnections(f.h.Conn, moving(0, f.conns[0])); err != nil {
		return err
	}
	_, err := f.h.AwaitAdopted()
	return err
}

func (f *frozenO) drain() error {
	err := errors.Join(f.o.Progress(f.h.Conn), f.o.Drained(f.h.Conn, report), f.h.Close())
	f.o.Close()
	return err
}

func (f *frozenO) refuse() error {
	c, hello, err := f.o.AcceptControl()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err = f.o.HandOver(c, hello); err == nil {
		return errors.New("not refused")
	}
	return nil
}

func (f *frozenO) answer(answer func(*v1.Conn) error) error {
	c, _, err := f.o.AcceptControl()
	if err != nil {
		return err
	}
	return errors.Join(answer(c), c.Close())
}

func (f *frozenO) tellStatus() error { return f.answer(f.o.TellStatus) }
func (f *frozenO) obeyCommit() error { return f.answer((*v1.Conn).Ok) }
func (f *frozenO) obeyStop() error {
	err := f.answer(func(c *v1.Conn) error { return errors.Join(f.o.Progress(c), f.o.Drained(c, report)) })
	f.o.Stop()
	return err
}
func (f *frozenO) address() string { return f.o.Get("app").Address }

func (f *frozenO) accept(n int) error {
	for range n {
		c, err := f.o.Accept("app")
		if err != nil {
			return err
		}
		f.conns = append(f.conns, c)
	}
	return nil
}

func (f *frozenO) close() {
	for _, c := range f.conns {
		c.Close()
	}
	if f.h != nil {
		f.h.Close()
	}
	f.o.Close()
}

type frozenS struct {
	fc    v1.Config
	s     *v1.Successor
	conns []v1.Arrival
}

func (f *frozenS) takeOver() (err error) {
	f.s, err = v1.TakeOver(f.fc)
	return err
}

func (f *frozenS) ready() error {
	_, err := f.s.Ready()
	return err
}

func (f *frozenS) commit() error   { return f.s.Commit() }
func (f *frozenS) rollback() error { return f.s.Rollback() }
func (f *frozenS) withdraw() error { return errors.Join(f.s.Withdraw(""), f.s.Pred.Close()) }
func (f *frozenS) die() error      { return f.s.Close() }

func (f *frozenS) settle() error {
	typ, err := f.s.Pred.Await()
	if err == nil && typ != "commit" {
		err = fmt.Errorf("%s instead of commit", typ)
	}
	return errors.Join(err, f.s.Commit())
}

func (f *frozenS) adopt() error {
	for {
		m, fds, err := f.s.Pred.Recv()
		if err != nil {
			return err
		}
		if m, ok := m.(*v1.Connections); ok {
			f.conns, err = f.s.Adopt(f.s.Pred, f.s.Sender(), m, fds, "")
			return err
		}
		closeFDs(fds)
	}
}

func (f *frozenS) hearDrain() error {
	got, err := awaitDrained(f.s.Pred)
	return isReport(got, errors.Join(err, f.s.Pred.AwaitEnd()))
}

func isReport(got json.RawMessage, err error) error {
	if err == nil && string(got) != report {
		err = fmt.Errorf("report %q", got)
	}
	return err
}

func (f *frozenS) refused() error {
	if err := f.takeOver(); !errors.As(err, new(*v1.RefusedError)) {
		return fmt.Errorf("not refused: %w", err)
	}
	return nil
}

func (f *frozenS) obeyRollback() error {
	c, _, err := f.s.AcceptControl()
	if err != nil {
		return err
	}
	return errors.Join(f.s.Rollback(), c.Ok(), c.Close())
}

func (f *frozenS) close() {
	for _, c := range f.conns {
		c.Close()
	}
	if f.s != nil {
		f.s.Close()
	}
}

type frozenOp struct{ fc v1.Config }

func (f frozenOp) status() error {
	_, _, err := v1.AskStatus(f.fc)
	return err
}

func (f frozenOp) stop() error     { return isReport(v1.OrderStop(f.fc, func(*v1.Progress) {})) }
func (f frozenOp) commit() error   { return v1.Order(f.fc, v1.IntentCommit) }
func (f frozenOp) rollback() error { return v1.Order(f.fc, v1.IntentRollback) }

// ---- the present implementation

type currentO struct {
	t     testing.TB
	g     *handover.Generation
	ln    mover
	ev    *events
	conns []net.Conn
}

func newCurrentO(t testing.TB, cfg handover.Config) *currentO {
	t.Helper()
	cfg.Mode = handover.StartOnly
	ev := watch(&cfg)
	g, err := handover.Start(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { g.Close() })
	ln, err := g.Listen("app", "tcp", "127.0.0.1:0")
	must(t, err)
	for name, blob := range map[string]string{"tickets": "t", "sessions": "s"} {
		must(t, g.OfferState(name, func(context.Context) ([]byte, error) { return []byte(blob), nil }))
	}
	must(t, g.Ready(t.Context()))
	return &currentO{t: t, g: g, ln: ln.(mover), ev: ev}
}

// What it does by itself needs no step.
func (c *currentO) handOver() error   { return nil }
func (c *currentO) grant() error      { return nil }
func (c *currentO) refuse() error     { return nil }
func (c *currentO) tellStatus() error { return nil }
func (c *currentO) obeyCommit() error { return nil }

func (c *currentO) committed() error {
	await(c.t, "superseded", c.g.Superseded())
	return nil
}

func (c *currentO) again() error {
	c.ev.await(c.t, "the failure", func(e handover.Event) bool { return e.Phase == handover.PhaseOwner && e.Cause != nil })
	return nil
}

func (c *currentO) takenBack() error { return c.again() }
func (c *currentO) withdrawn() error { return c.again() }
func (c *currentO) leave() error     { return c.g.Stop(context.Background()) }
func (c *currentO) move() error {
	return c.ln.MoveConn(context.Background(), c.conns[0], []byte("unread 0"), []byte("state 0"))
}

func (c *currentO) drain() error {
	return errors.Join(c.g.Drained(json.RawMessage(report)), c.g.Close())
}

func (c *currentO) obeyStop() error {
	await(c.t, "superseded", c.g.Superseded())
	return c.drain()
}

func (c *currentO) address() string { return c.ln.Addr().String() }

func (c *currentO) accept(n int) error {
	for range n {
		nc, err := c.ln.Accept()
		if err != nil {
			return err
		}
		c.conns = append(c.conns, nc)
	}
	return nil
}

func (c *currentO) close() {
	for _, nc := range c.conns {
		nc.Close()
	}
	c.g.Close()
}

type currentS struct {
	t     testing.TB
	cfg   handover.Config
	g     *handover.Generation
	ln    net.Listener
	ev    *events
	conns []net.Conn
}

func newCurrentS(t testing.TB, cfg handover.Config) *currentS {
	return &currentS{t: t, cfg: cfg}
}

func (c *currentS) takeOver() (err error) {
	c.ev = watch(&c.cfg)
	if c.g, err = handover.Start(context.Background(), c.cfg); err != nil {
		return err
	}
	c.ln, err = c.g.Listen("app", "tcp", "127.0.0.1:0")
	return err
}

func (c *currentS) op() handover.Operator {
	return handover.Operator{Socket: c.cfg.Socket, Timeout: patience}
}
func (c *currentS) ready() error        { return c.g.Ready(context.Background()) }
func (c *currentS) commit() error       { return c.op().Commit(context.Background()) }
func (c *currentS) rollback() error     { return c.g.Stop(context.Background()) }
func (c *currentS) withdraw() error     { return c.g.Stop(context.Background()) }
func (c *currentS) obeyRollback() error { return nil }
func (c *currentS) die() error          { return errors.New("needs a process of its own") }

func (c *currentS) settle() error {
	c.ev.phase(c.t, handover.PhaseOwner)
	return nil
}

func (c *currentS) adopt() error {
	nc, err := c.ln.Accept()
	if err == nil {
		c.conns = append(c.conns, nc)
	}
	return err
}

func (c *currentS) hearDrain() error {
	e := c.ev.await(c.t, "the report", func(e handover.Event) bool { return e.Peer != nil && e.Peer.Phase == handover.PhaseDone })
	return isReport(e.Peer.Report, nil)
}

func (c *currentS) refused() error {
	if err := c.takeOver(); !errors.As(err, new(*handover.RefusedError)) {
		return fmt.Errorf("not refused: %w", err)
	}
	return nil
}

func (c *currentS) close() {
	for _, nc := range c.conns {
		nc.Close()
	}
	if c.g != nil {
		c.g.Close()
	}
}

// mortalS is one in a process of its own.
type mortalS struct {
	*currentS
	child *child
}

func (m *mortalS) takeOver() error { m.child.do("takeover"); return nil }
func (m *mortalS) ready() error    { m.child.do("ready"); return nil }
func (m *mortalS) die() error      { m.child.kill(); return nil }
func (m *mortalS) close()          { m.child.kill() }

type currentOp struct{ handover.Operator }

func (c currentOp) status() error {
	_, err := c.Status(context.Background())
	return err
}

func (c currentOp) stop() error     { return isReport(c.Stop(context.Background(), nil)) }
func (c currentOp) commit() error   { return c.Commit(context.Background()) }
func (c currentOp) rollback() error { return c.Rollback(context.Background()) }
