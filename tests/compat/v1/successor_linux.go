package v1

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Successor is a generation that takes over.
type Successor struct {
	*Set
	Pred    *Conn // the conversation with the predecessor
	Pidfd   int   // the predecessor's, -1 if it sent none; closed by Close
	Welcome Welcome
	States  map[string][]byte
}

// TakeOver receives everything that the owner hands over, up to the last
// received. A *RefusedError is a refusal.
func TakeOver(cfg Config) (*Successor, error) {
	c, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	s := &Successor{Set: &Set{cfg: cfg}, Pred: c, Pidfd: -1, States: map[string][]byte{}}
	if err := s.receive(); err != nil {
		if s.Welcome.Count > 0 {
			c.Send(Simple{Type: "rollback", Message: err.Error()})
		}
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Successor) receive() error {
	h := s.cfg.hello(Takeover)
	h.Revision, h.Force, h.Probation, h.Moves = s.cfg.Revision, s.cfg.Force, s.cfg.Probation.Milliseconds(), s.cfg.Moves
	if err := s.Pred.Send(h); err != nil {
		return err
	}
	f, fds, err := s.Pred.Recv()
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *Refuse:
		closeAll(fds)
		return &RefusedError{f.Code, f.Message}
	case *Welcome:
		if len(fds) == 1 {
			s.Pidfd = fds[0]
		} else {
			closeAll(fds)
		}
		s.Welcome, s.Number = *f, f.Next
	default:
		closeAll(fds)
		return fmt.Errorf("%w: %T instead of welcome", ErrBroken, f)
	}
	if s.Welcome.Protocol != Protocol {
		return fmt.Errorf("%w: protocol %d", ErrBroken, s.Welcome.Protocol)
	}
	for got := 0; got < s.Welcome.Count; {
		n, err := s.batch(got)
		if err != nil {
			return err
		}
		got += n
	}
	if s.control == nil || s.lock == nil || s.Word == nil {
		return fmt.Errorf("%w: control, lock or word is missing", ErrBroken)
	}
	return nil
}

func (s *Successor) batch(first int) (int, error) {
	f, fds, err := s.Pred.Recv()
	if err != nil {
		return 0, err
	}
	b, ok := f.(*Sockets)
	if !ok || b.First != first || len(b.Items) != len(fds) {
		closeAll(fds)
		if r, ok := f.(*Refuse); ok {
			return 0, &RefusedError{r.Code, r.Message}
		}
		return 0, fmt.Errorf("%w: %+v with %d descriptors", ErrBroken, f, len(fds))
	}
	answer := Received{Type: "received", First: first}
	for i, it := range b.Items {
		k := &Socket{it, fds[i]}
		if k.Cookie, k.Netns, err = describe(k.FD); err == nil {
			err = it.check(k.FD)
		}
		if err != nil {
			closeAll(fds[i:])
			return 0, err
		}
		if err := s.keep(k); err != nil {
			closeAll(fds[i+1:])
			return 0, err
		}
		answer.Cookies = append(answer.Cookies, k.Cookie)
	}
	return len(fds), s.Pred.Send(answer)
}

// keep consumes k.
func (s *Successor) keep(k *Socket) (err error) {
	switch k.Kind {
	case "control":
		s.control = k
	case "lock":
		s.lock = k
	case "netns":
		s.netns = k
	case "word":
		s.Word, err = mapWord(k.FD)
	case "state":
		s.States[k.Name], err = unseal(k.FD)
		unix.Close(k.FD)
	case "listener", "packet", "file":
		s.Sockets = append(s.Sockets, k)
	default:
		unix.Close(k.FD)
		return fmt.Errorf("%w: kind %q", ErrBroken, k.Kind)
	}
	return err
}

func unseal(fd int) ([]byte, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err == nil && seals&stateSeals != stateSeals {
		err = errors.New("state is not sealed")
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return nil, err
	}
	data := make([]byte, st.Size)
	for off := 0; off < len(data); {
		n, err := unix.Pread(fd, data[off:], int64(off))
		if err == nil && n == 0 {
			err = errors.New("state is shorter than its size")
		}
		if err != nil && err != unix.EINTR {
			return nil, err
		}
		off += max(0, n)
	}
	return data, nil
}

// settled is the word when ownership is ours for good; without, while the
// predecessor has it.
func (s *Successor) settled() Ownership { return Settled(s.Number, s.Welcome.Attempt) }
func (s *Successor) without() Ownership { return Settled(s.Welcome.Generation, s.Welcome.Attempt) }

// SayReady says that this generation is ready.
func (s *Successor) SayReady() error { return s.Pred.Send(Simple{Type: "ready"}) }

// AwaitGranted waits until ownership is ours, and acknowledges that. It tells
// whether it is for good.
func (s *Successor) AwaitGranted() (settled bool, err error) {
	f, err := s.Pred.recvPlain()
	if err != nil {
		return false, err
	}
	g, ok := f.(*Granted)
	if !ok {
		return false, fmt.Errorf("%w: %T instead of granted", ErrBroken, f)
	}
	want := s.settled()
	if !g.Settled {
		want |= Probation
	}
	if now := s.Word.Load(); g.Generation != s.Number || now != want {
		return false, fmt.Errorf("%w: granted %d, and the ownership word says %v", ErrBroken, g.Generation, now)
	}
	if err := s.listenAgain(); err != nil || g.Settled {
		return g.Settled, err
	}
	return false, s.Alive()
}

// Ready is SayReady and AwaitGranted.
func (s *Successor) Ready() (settled bool, err error) {
	if err := s.SayReady(); err != nil {
		return false, err
	}
	return s.AwaitGranted()
}

// Alive is a heartbeat.
func (s *Successor) Alive() error { return s.Pred.Send(Simple{Type: "alive"}) }

// Commit ends probation in our favour. It fails with ErrNotOwner if the
// predecessor has taken back.
func (s *Successor) Commit() error {
	if !s.Word.Swap(s.settled()|Probation, s.settled()) && s.Word.Load() != s.settled() {
		return ErrNotOwner
	}
	return s.Pred.Send(Simple{Type: "commit"})
}

// Rollback gives the sockets back, from which nobody accepts here any more, and
// waits until the predecessor has them.
func (s *Successor) Rollback() error {
	if err := s.Pred.Send(Simple{Type: "rollback"}); err != nil {
		return err
	}
	typ, err := s.Pred.Await()
	if err == nil && (typ != "revoked" || s.Word.Load().Generation() == s.Number) {
		err = fmt.Errorf("%w: %s, and the ownership word says %v", ErrBroken, typ, s.Word.Load())
	}
	return err
}

// Withdraw gives up before ownership is granted. It fails if that has been.
func (s *Successor) Withdraw(why string) error {
	if !s.Word.Swap(s.without(), s.without()|Declined) && s.Word.Load().Generation() == s.Number {
		return errors.New("ownership has been granted")
	}
	return s.Pred.Send(Simple{Type: "rollback", Message: why})
}

// Claim takes what a predecessor left that has died before it granted
// ownership, or in probation.
func (s *Successor) Claim(within time.Duration) error {
	switch {
	case !Died(s.Pidfd, within):
		return errors.New("the predecessor lives")
	case s.Word.Swap(s.without(), s.settled()), s.Word.Swap(s.settled()|Probation, s.settled()), s.Word.Load() == s.settled():
		return s.listenAgain()
	}
	return ErrNotOwner
}

// Sender tells who sends connections in the conversation with the predecessor.
func (s *Successor) Sender() Sender { return Sender{s.Welcome.Generation, s.Pidfd} }

// Own makes an owner of a successor whose ownership is settled. The set is the
// owner's from now on; the conversation stays open.
func (s *Successor) Own() *Owner {
	o := newOwner(s.Set, s.Welcome.Attempt)
	s.Set = &Set{}
	return o
}

// Close closes the conversation, and the set unless Own has taken it.
func (s *Successor) Close() error {
	if s.Pidfd >= 0 {
		unix.Close(s.Pidfd)
		s.Pidfd = -1
	}
	s.Set.Close()
	return s.Pred.Close()
}
