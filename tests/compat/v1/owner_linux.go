package v1

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Owner is a generation that owns its set for good.
type Owner struct {
	*Set
	Next, Attempt uint64
	States        map[string][]byte // offered to a successor
	Phase         string            // for the status
	Stats         Stats

	busy bool // a takeover is under way
}

// Start makes generation 1 of a new set.
func Start(cfg Config) (*Owner, error) {
	s := &Set{cfg: cfg, Number: 1}
	fail := func(err error) (*Owner, error) {
		s.Close()
		return nil, err
	}
	var err error
	if s.lock, err = lock(cfg.Socket); err != nil {
		return fail(err)
	}
	if s.control, err = bind("@control", "control", "unixpacket", cfg.Socket); err != nil {
		return fail(err)
	}
	if s.Word, err = newWord(Settled(1, 0)); err != nil {
		return fail(err)
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	s.netns = &Socket{Item{Name: "@netns", Kind: "netns"}, fd}
	if s.netns.Cookie, _, err = describe(fd); err != nil {
		return fail(err)
	}
	return newOwner(s, 0), s.listenAgain()
}

func newOwner(s *Set, attempt uint64) *Owner {
	return &Owner{Set: s, Next: s.Number + 1, Attempt: attempt, States: map[string][]byte{}, Phase: "owner"}
}

func lock(path string) (*Socket, error) {
	fd, err := unix.Open(path+".lock", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Socket{Item{Name: "@lock", Kind: "lock", Address: path + ".lock"}, fd}
	if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		s.Cookie, _, err = describe(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock: %w", err)
	}
	return s, nil
}

// Listen adds a socket: a listener, or a packet socket.
func (o *Owner) Listen(name, network, address string) error {
	kind := "listener"
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
		kind = "packet"
	}
	s, err := bind(name, kind, network, address)
	if err != nil {
		return err
	}
	s.Asked = address
	o.Sockets = append(o.Sockets, s)
	return nil
}

// AddFile adds a duplicate of f.
func (o *Owner) AddFile(name string, f syscall.Conn) error {
	fd, err := duplicate(f)
	if err != nil {
		return err
	}
	s := &Socket{Item{Name: name, Kind: "file"}, fd}
	o.Sockets = append(o.Sockets, s)
	s.Cookie, s.Netns, err = describe(fd)
	return err
}

// Handover is an owner's side of one takeover.
type Handover struct {
	*Conn
	o         *Owner
	Next      uint64
	Probation time.Duration // zero: none
	Pidfd     int           // of the successor, -1 if it is this process
	Takes     bool          // the successor takes connections

	before, after Ownership
}

// HandOver answers a hello that wants to take over: a refusal, which is an
// error, or everything up to the last received.
func (o *Owner) HandOver(c *Conn, hello *Hello) (*Handover, error) {
	switch {
	case o.busy:
		return nil, c.refuse("busy", "another takeover is under way, try again later")
	case hello.Revision < o.cfg.Revision && !hello.Force:
		return nil, c.refuse("revision", "revision %d is lower than the owner's %d", hello.Revision, o.cfg.Revision)
	}
	h := &Handover{
		Conn: c, o: o, Next: o.Next, Pidfd: -1, Takes: hello.Moves,
		Probation: time.Duration(hello.Probation) * time.Millisecond,
		before:    Settled(o.Number, o.Attempt), after: Settled(o.Number, o.Attempt+1),
	}
	var err error
	if h.Pidfd, err = c.Pidfd(); err != nil {
		return nil, err
	}
	o.busy = true
	if err := h.transfer(); err != nil {
		h.Fail()
		return nil, err
	}
	return h, nil
}

func (h *Handover) transfer() error {
	o := h.o
	items := []*Socket{o.control, o.lock, {Item{Name: "@word", Kind: "word"}, o.Word.fd}}
	if o.netns != nil {
		items = append(items, o.netns)
	}
	items = append(items, o.Sockets...)
	for _, name := range slices.Sorted(maps.Keys(o.States)) {
		fd, err := seal(o.States[name])
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		items = append(items, &Socket{Item{Name: name, Kind: "state"}, fd})
	}
	for _, s := range items {
		if s.Cookie == 0 {
			var err error
			if s.Cookie, _, err = describe(s.FD); err != nil {
				return err
			}
		}
	}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	err = h.Send(Welcome{
		Type: "welcome", Protocol: Protocol, Generation: o.Number, Next: h.Next, Attempt: o.Attempt, Count: len(items),
		Program: o.cfg.Program, Build: o.cfg.Build, PID: os.Getpid(), Revision: o.cfg.Revision,
		ReadyTimeout: o.cfg.ReadyTimeout.Milliseconds(), Probation: h.Probation.Milliseconds(), AliveEvery: o.cfg.AliveEvery.Milliseconds(),
	}, pidfd)
	for first := 0; err == nil && first < len(items); {
		var n int
		n, err = h.batch(first, items[first:min(len(items), first+MaxFDs)])
		first += n
	}
	return err
}

// batch sends as many items as fit one packet, and hears the proof.
func (h *Handover) batch(first int, items []*Socket) (int, error) {
	f := Sockets{Type: "sockets", First: first}
	var fds []int
	size := 0
	for _, s := range items {
		b, err := json.Marshal(s.Item)
		if err != nil {
			return 0, err
		}
		if size += len(b) + 1; size > MaxBatch && len(fds) > 0 {
			break
		}
		f.Items, fds = append(f.Items, s.Item), append(fds, s.FD)
	}
	if err := h.Send(f, fds...); err != nil {
		return 0, err
	}
	got, err := h.recvPlain()
	if err != nil {
		return 0, err
	}
	if s, ok := got.(*Simple); ok && s.Type == "rollback" {
		return 0, ErrWithdrew
	}
	r, ok := got.(*Received)
	if !ok || r.First != first || len(r.Cookies) != len(fds) {
		return 0, h.refuse("protocol", "%+v instead of received", got)
	}
	for i, it := range f.Items {
		if r.Cookies[i] != it.Cookie {
			return 0, h.refuse("protocol", "%s: received %d, sent %d", it.Name, r.Cookies[i], it.Cookie)
		}
	}
	return len(fds), nil
}

// stateSeals are those of state: memfd_create(2).
const stateSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

func seal(data []byte) (int, error) {
	fd, err := unix.MemfdCreate("handoverd-state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for len(data) > 0 && err == nil {
		var n int
		if n, err = unix.Write(fd, data); err == unix.EINTR {
			err = nil
		}
		data = data[max(0, n):]
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, stateSeals)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Errors of a takeover.
var (
	ErrWithdrew = errors.New("the successor withdrew")
	ErrBroken   = errors.New("the peer breaks the protocol")
)

// AwaitReady waits until the successor is ready. After an error the takeover
// has failed.
func (h *Handover) AwaitReady() error {
	typ, err := h.Await()
	switch {
	case err == nil && typ == "ready":
		return nil
	case err == nil && typ == "rollback":
		err = ErrWithdrew
	case err == nil:
		err = h.refuse("protocol", "%s before ready", typ)
	}
	h.Fail()
	return err
}

// Granted is the word after a grant.
func (h *Handover) granted() Ownership {
	o := Settled(h.Next, h.o.Attempt)
	if h.Probation > 0 {
		o |= Probation
	}
	return o
}

// Move moves the word to the successor. From then on this generation accepts
// nothing. It fails if the successor has declined, and then the takeover has
// failed.
func (h *Handover) Move() error {
	if !h.o.Word.Swap(h.before, h.granted()) {
		h.Fail()
		return ErrWithdrew
	}
	return nil
}

// Grant is Move, and tells the successor.
func (h *Handover) Grant() error {
	if err := h.Move(); err != nil {
		return err
	}
	return h.Send(Granted{Type: "granted", Generation: h.Next, Settled: h.Probation <= 0})
}

// AwaitCommit waits until the successor commits, and counts how often it says
// before that it is alive.
func (h *Handover) AwaitCommit() (alive int, err error) {
	for ; ; alive++ {
		typ, err := h.Await()
		switch {
		case err != nil:
			return alive, err
		case typ == "commit" && h.o.Word.Load() == h.granted():
			return alive, fmt.Errorf("%w: commit, but the ownership word says %v", ErrBroken, h.o.Word.Load())
		case typ == "commit":
			return alive, nil
		case typ != "alive":
			return alive, fmt.Errorf("%w: %s in probation", ErrBroken, typ)
		}
	}
}

// AwaitRollback waits until the successor gives the sockets back.
func (h *Handover) AwaitRollback() error {
	for {
		typ, err := h.Await()
		if err != nil || typ == "rollback" {
			return err
		}
		if typ != "alive" {
			return fmt.Errorf("%w: %s in probation", ErrBroken, typ)
		}
	}
}

// TakeBack ends probation in this owner's favour. It tells whether it came
// before a commit.
func (h *Handover) TakeBack() (bool, error) {
	if !h.o.Word.Swap(h.granted(), h.after) {
		return false, nil
	}
	h.o.Attempt++
	h.o.Next, h.o.busy = h.Next+1, false // a number that was granted is never used again
	h.closePidfd()
	return true, h.o.listenAgain()
}

// Revoke is TakeBack, and tells the successor.
func (h *Handover) Revoke() (bool, error) {
	ok, err := h.TakeBack()
	if ok && err == nil {
		err = h.Send(Simple{Type: "revoked"})
	}
	return ok, err
}

// Leave ends probation in the successor's favour, since this owner ends.
func (h *Handover) Leave() error {
	h.o.Word.Swap(h.granted(), h.granted()&^Probation)
	return h.Send(Simple{Type: "commit"})
}

// Fail ends a takeover before the word has moved. The owner serves on.
func (h *Handover) Fail() {
	if !h.o.busy {
		return
	}
	if !h.o.Word.Swap(h.before, h.after) {
		h.o.Word.Swap(h.before|Declined, h.after)
	}
	h.o.Attempt++
	h.o.busy = false
	h.closePidfd()
}

func (h *Handover) closePidfd() {
	if h.Pidfd >= 0 {
		unix.Close(h.Pidfd)
		h.Pidfd = -1
	}
}

// Progress tells whoever listens on c how the drain goes.
func (o *Owner) Progress(c *Conn) error {
	return c.Send(Progress{Type: "progress", Generation: o.Number, Stats: o.Stats})
}

// Drained has the last word on c. report is JSON, or empty.
func (o *Owner) Drained(c *Conn, report string) error {
	return c.Send(Drained{Type: "drained", Generation: o.Number, Report: json.RawMessage(report)})
}

// Close ends a generation that was superseded: its successor has copies of
// everything.
func (h *Handover) Close() error {
	h.closePidfd()
	return h.Conn.Close()
}

// Stop ends an owner without a successor: its paths are removed, the lock last.
func (o *Owner) Stop() {
	for _, s := range append(slices.Clone(o.Sockets), o.control, o.lock) {
		var st unix.Stat_t
		if s == o.lock || s.Ino != 0 && unix.Lstat(s.Address, &st) == nil && st.Ino == s.Ino && uint64(st.Dev) == s.Dev { //nolint:unconvert // as above
			unix.Unlink(s.Address)
		}
	}
	o.Close()
}
