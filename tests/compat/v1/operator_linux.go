package v1

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ask opens an operator's conversation.
func ask(cfg Config, intent string) (*Conn, error) {
	c, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Send(cfg.hello(intent)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// AskStatus asks the owner for its status, and puts the pages together.
func AskStatus(cfg Config) (st *Status, pages int, err error) {
	c, err := ask(cfg, IntentStatus)
	if err != nil {
		return nil, 0, err
	}
	defer c.Close()
	for {
		f, err := c.recvPlain()
		if err != nil {
			return nil, 0, err
		}
		p, ok := f.(*StatusPage)
		if !ok {
			return nil, 0, fmt.Errorf("%w: %T instead of status", ErrBroken, f)
		}
		if pages++; st == nil {
			st = &p.Status
		} else {
			st.Sockets = append(st.Sockets, p.Status.Sockets...)
			st.Unclaimed = append(st.Unclaimed, p.Status.Unclaimed...)
			st.Draining = append(st.Draining, p.Status.Draining...)
		}
		if !p.More {
			return st, pages, nil
		}
	}
}

// Order has the owner commit or roll back, and waits for it.
func Order(cfg Config, intent string) error {
	c, err := ask(cfg, intent)
	if err != nil {
		return err
	}
	defer c.Close()
	typ, err := c.Await()
	if err == nil && typ != "ok" {
		err = fmt.Errorf("%w: %s instead of ok", ErrBroken, typ)
	}
	return err
}

// OrderStop has the owner end, and waits for it. progress is told how the drain
// goes.
func OrderStop(cfg Config, progress func(*Progress)) (json.RawMessage, error) {
	c, err := ask(cfg, IntentStop)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for {
		f, err := c.recvPlain()
		if err != nil {
			return nil, err
		}
		switch f := f.(type) {
		case *Progress:
			progress(f)
		case *Drained:
			return f.Report, c.AwaitEnd()
		default:
			return nil, fmt.Errorf("%w: %T instead of progress", ErrBroken, f)
		}
	}
}

// Ok answers a commit or a rollback that has been done.
func (c *Conn) Ok() error { return c.Send(Simple{Type: "ok"}) }

// started is when this process says that it started.
var started = time.Now().Format(time.RFC3339Nano)

// TellStatus answers a status, in pages of at most 24 sockets.
func (o *Owner) TellStatus(c *Conn) error {
	pages := []Status{{
		Protocol: Protocol, Generation: o.Number, Phase: o.Phase, Program: o.cfg.Program, Build: o.cfg.Build,
		Revision: o.cfg.Revision, PID: os.Getpid(), Started: started, Owner: started, Stats: o.Stats,
	}}
	for part := range slices.Chunk(o.Sockets, 24) {
		p := Status{Phase: "preparing", Started: "0001-01-01T00:00:00Z"}
		for _, s := range part {
			p.Sockets = append(p.Sockets, s.status())
		}
		pages = append(pages, p)
	}
	for i, p := range pages {
		if err := c.Send(StatusPage{Type: "status", Status: p, More: i+1 < len(pages)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Socket) status() SocketStatus {
	st := SocketStatus{
		SocketName: SocketName{s.Name, s.Kind, s.Network, s.Address}, Cookie: uint64(s.Cookie), Netns: uint64(s.Netns),
	}
	// tcp(7): on a listener TCP_INFO gives the queue, and how long it may be.
	if info, err := unix.GetsockoptTCPInfo(s.FD, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && s.Kind == "listener" {
		n, backlog := int(info.Unacked), int(info.Sacked)
		st.Queue, st.Backlog = &n, &backlog
	}
	return st
}
