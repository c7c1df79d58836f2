package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// link is one conversation on the control socket: frames over packets.
type link struct {
	conn     *scm.Conn
	protocol int // that was agreed on, at the owner
	room     int // descriptors that a received frame may carry
	buf      []byte
	fds      []int

	in     chan inbound // after startReader
	inHand atomic.Bool  // a frame was received that nobody has taken
	reader sync.WaitGroup
	quit   chan struct{}
	once   sync.Once
}

// inbound is a received frame, or the error that ends the conversation.
type inbound struct {
	frame any
	err   error
}

func newLink(conn *scm.Conn, room int) *link {
	return &link{conn: conn, room: room, buf: make([]byte, maxFrame), fds: make([]int, room), quit: make(chan struct{})}
}

// send sends one frame with descriptors, which stay the caller's.
func (l *link) send(ctx context.Context, f any, fds ...int) error {
	p, err := encodeFrame(f)
	if err != nil {
		return err
	}
	return l.conn.Send(ctx, p, fds)
}

// sendWithin is send with a deadline of its own.
func (l *link) sendWithin(d time.Duration, f any) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return l.send(ctx, f)
}

// recv receives one frame. The descriptors are the caller's, also with an
// error of decoding; the slice is valid until the next recv.
func (l *link) recv(ctx context.Context) (any, []int, error) {
	n, nfds, err := l.conn.Recv(ctx, l.buf, l.fds)
	if err != nil {
		return nil, nil, err
	}
	l.inHand.Store(true)
	f, err := decodeFrame(l.buf[:n])
	return f, l.fds[:nfds], err
}

// makeRoom lets frames that are received from now on carry descriptors.
func (l *link) makeRoom(room int) {
	l.room, l.fds = room, make([]int, room)
}

// recvMoved receives one frame. Descriptors come with connections only, which
// keep them. Where this process has no room for them, what comes is a frame
// with no connections.
func (l *link) recvMoved(ctx context.Context) (any, error) {
	f, fds, err := l.recv(ctx)
	if errors.Is(err, scm.ErrControlTruncated) && l.room > 0 {
		l.inHand.Store(true)
		return &frameConnections{Type: typeMoved}, nil
	}
	m, ok := f.(*frameConnections)
	switch {
	case err == nil && ok && len(fds) == len(m.Items):
		m.fds = slices.Clone(fds)
		return m, nil
	case err == nil && ok:
		err = fmt.Errorf("%w: %d connections with %d descriptors", errFrame, len(m.Items), len(fds))
	case err == nil && len(fds) > 0:
		err = fmt.Errorf("%w: %d descriptors nobody asked for", errFrame, len(fds))
	}
	closeAll(fds)
	return f, err
}

// dropFrame closes what a frame holds that nobody wants.
func dropFrame(f any) {
	if m, ok := f.(*frameConnections); ok {
		closeAll(m.fds)
		m.fds = nil
	}
}

// recvPlain receives one frame that may carry no descriptors.
func (l *link) recvPlain(ctx context.Context) (any, error) {
	f, fds, err := l.recv(ctx)
	if len(fds) > 0 {
		closeAll(fds)
		if err == nil {
			err = fmt.Errorf("%w: %d descriptors nobody asked for", errFrame, len(fds))
		}
	}
	return f, err
}

// startReader moves receiving to a goroutine that fills l.in, whose last
// element carries an error. Whoever takes a frame that it does not want
// discards it.
func (l *link) startReader() {
	l.in = make(chan inbound)
	l.inHand.Store(false) // what came before is dealt with
	l.reader.Go(l.read)
}

func (l *link) read() {
	reset := false
	for {
		f, err := l.recvMoved(context.Background())
		if isConnReset(err) && !reset {
			// Said once, when the peer has closed with frames of ours
			// unread: what it has sent before that is still there.
			reset = true
			continue
		}
		select {
		case l.in <- inbound{f, err}:
			l.inHand.Store(false)
		case <-l.quit:
			dropFrame(f)
			return
		}
		if err != nil {
			return
		}
	}
}

// unread tells whether frames wait, in the kernel or in the reader's hand.
func (l *link) unread() bool { return l.inHand.Load() || l.conn.Readable() }

// awaitEnd says that nothing more will come, and reads until the peer has
// closed, or d or stop is over: the kernel resets a conversation that is closed
// with frames unread, and the last word might be lost with it.
func (l *link) awaitEnd(d time.Duration, stop <-chan struct{}) {
	if l.conn.CloseWrite() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if l.in == nil {
		l.startReader()
	}
	for {
		select {
		case in := <-l.in:
			dropFrame(in.frame)
			if in.err != nil && !errors.Is(in.err, errFrame) {
				return
			}
			if in.err != nil { // the reader has ended, the frames have not
				l.reader.Wait()
				l.startReader()
			}
		case <-ctx.Done():
			return
		case <-stop:
			return
		}
	}
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.quit)
		l.conn.Close()
		l.reader.Wait()
	})
}

func closeAll(fds []int) {
	for _, fd := range fds {
		closeFD(fd)
	}
}

// gone tells whether err means that the peer has closed, rather than that it
// broke the protocol or was slow.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || isConnReset(err)
}

// patience is a timer that is not taken by its word: a process that was
// stopped, and wakes up, finds its timers expired before it has read what
// arrived meanwhile. Only when a second, short time has passed and still
// nothing waits to be read, the peer is silent.
//
// A peer that never stops talking of something else is silent, too.
type patience struct {
	*time.Timer
	chances int // used
}

const (
	secondChance = 50 * time.Millisecond
	maxChances   = 20
)

func newPatience(d time.Duration) *patience { return &patience{Timer: time.NewTimer(d)} }

func (p *patience) reset(d time.Duration) {
	p.chances = 0
	p.Reset(d)
}

// again tells whether to wait on after an expiry.
func (p *patience) again(l *link) bool {
	if p.chances > 0 && !l.unread() || p.chances >= maxChances {
		return false
	}
	p.chances++
	p.Reset(secondChance)
	return true
}
