package v1

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Moving is a connection that is to move.
type Moving struct {
	Conn          syscall.Conn // stays the caller's, who closes it when it is adopted
	Listener      string
	Unread, State []byte
}

// SendConnections sends connections on c, in which the other side takes some.
func (s *Set) SendConnections(c *Conn, all ...Moving) error {
	f := Connections{Type: "connections", Withdrawn: s.Word.Withdrawals(s.Number).Load()}
	var fds []int
	defer func() { closeAll(fds) }()
	for _, m := range all {
		fd, err := duplicate(m.Conn)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
		id, _, err := describe(fd)
		if err != nil {
			return err
		}
		f.Items = append(f.Items, MovedItem{Listener: m.Listener, Cookie: id, Unread: m.Unread, State: m.State})
	}
	return c.Send(f, fds...)
}

// AwaitAdopted waits for the answer. What else comes until then, alive or
// commit, is late.
func (c *Conn) AwaitAdopted() (*Adopted, error) {
	for {
		f, err := c.recvPlain()
		if err != nil {
			return nil, err
		}
		if a, ok := f.(*Adopted); ok {
			return a, nil
		}
	}
}

// Withdraw goes on with connections that were sent and not answered: the other
// side must not take them any more. The conversation has to be over for what
// this side receives.
func (s *Set) Withdraw() { s.Word.Withdrawals(s.Number).Add(1) }

// Arrival is a connection that has moved here, whose owner is the receiver.
type Arrival struct {
	MovedItem
	net.Conn
}

// Sender is who sends connections.
type Sender struct {
	Generation uint64
	Pidfd      int // of its process, or -1
}

// Adopt takes those connections of a frame for which this generation has a
// listener, and says so with stop, which is why no more should be sent or empty.
// It consumes fds. If the answer cannot be sent nothing is kept, unless the
// sender has died over them.
func (s *Set) Adopt(c *Conn, from Sender, f *Connections, fds []int, stop string) (kept []Arrival, err error) {
	if len(fds) != len(f.Items) {
		closeAll(fds)
		return nil, fmt.Errorf("%w: %d connections with %d descriptors", ErrBroken, len(f.Items), len(fds))
	}
	answer := Adopted{Type: "adopted", Stop: stop}
	for i, it := range f.Items {
		id, _, err := describe(fds[i])
		if err != nil || id != it.Cookie || s.Get(it.Listener) == nil {
			unix.Close(fds[i])
			continue
		}
		nc, err := fileConn(fds[i])
		if err != nil {
			continue
		}
		kept = append(kept, Arrival{it, nc})
		answer.Cookies = append(answer.Cookies, it.Cookie)
	}
	if err = c.Send(answer); err == nil || s.diedOver(from, f) {
		return kept, nil
	}
	for _, a := range kept {
		a.Close()
	}
	return nil, err
}

// diedOver tells whether the sender dies, soon, without having withdrawn what
// it has sent.
func (s *Set) diedOver(from Sender, f *Connections) bool {
	return Died(from.Pidfd, time.Second) && s.Word.Withdrawals(from.Generation).Load() == f.Withdrawn
}

// Report opens a conversation in which generation, which drains, reports to the
// present owner. With moves it waits until that one takes connections.
func Report(cfg Config, generation uint64, moves bool) (*Conn, error) {
	c, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	h := cfg.hello(IntentReport)
	h.Generation, h.Moves = generation, moves
	if err = c.Send(h); err == nil && moves {
		var typ string
		if typ, err = c.Await(); err == nil && typ != "ok" {
			err = fmt.Errorf("%w: %s instead of ok", ErrBroken, typ)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// HearReport answers a report's hello. With ok it may send connections.
func (s *Set) HearReport(c *Conn, h *Hello, ok bool) error {
	switch {
	case !h.Moves:
		return nil
	case !ok:
		return c.Send(Adopted{Type: "adopted", Stop: "this generation takes no connections"})
	}
	return errors.Join(c.passRights(true), c.Send(Simple{Type: "ok"}))
}

// Cookies of the connections of a frame.
func (f *Connections) Cookies() (all []Cookie) {
	for _, it := range f.Items {
		all = append(all, it.Cookie)
	}
	return slices.Clip(all)
}
