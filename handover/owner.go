package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// Limits of the control socket. Beyond them whoever has been silent longest
// makes room, so that a silent client never blocks the next.
const (
	maxPending       = 64  // connections whose hello is awaited
	maxConversations = 256 // connections in all
	maxLasting       = 64  // of these, reports of earlier generations and operators who wait for a stop
)

// controlSocket is the control listener with the lock of its path.
type controlSocket struct {
	ln     *net.UnixListener
	way    *passage
	path   string
	id     fileID
	lockFD int
	ctl    socket // as it travels
	lock   socket
}

func newControlSocket(ln *net.UnixListener, path string, id fileID, lockFD int, g *gate) (*controlSocket, error) {
	fd, err := sockFD(ln)
	if err != nil {
		return nil, err
	}
	c := &controlSocket{ln: ln, path: path, id: id, lockFD: lockFD}
	c.ctl = socket{fd: fd, item: item{
		Name: nameControl, Kind: kindControl, Network: "unixpacket", Address: path, Dev: id.dev, Ino: id.ino,
	}}
	c.lock = socket{fd: lockFD, item: item{Name: nameLock, Kind: kindLock, Address: path + ".lock"}}
	for _, s := range []*socket{&c.ctl, &c.lock} {
		info, err := inspect(s.fd)
		if err != nil {
			return nil, err
		}
		s.Cookie, s.Netns = info.cookie, info.netns
	}
	c.way = g.newPassage(ln.SetDeadline)
	return c, nil
}

// unlink removes the control path and the lock file, if they are still ours.
// The lock goes last: who gets it finds no path in the way.
func (c *controlSocket) unlink() {
	unlinkOurs(c.path, c.id)
	removeLock(c.lockFD, c.path)
}

func (c *controlSocket) close() {
	c.way.close()
	c.ln.Close()
	closeFD(c.lockFD)
	c.lockFD = -1
}

// netnsHandle is the network namespace in which the set's sockets are made.
type netnsHandle struct {
	fd      int // owned; -1 if there is none
	foreign bool
	item    item
}

// inSetNetns runs f in the network namespace of the set.
func (g *Generation) inSetNetns(f func() error) error {
	fd := -1
	var err error
	// A duplicate: the generation may be closed meanwhile.
	e := g.do(func() {
		if g.netns.foreign && g.netns.fd >= 0 {
			fd, err = dupFD(g.netns.fd)
		}
	})
	if err = errors.Join(e, err); err != nil {
		return err
	}
	if fd < 0 {
		return f()
	}
	defer closeFD(fd)
	return inNetns(fd, f)
}

func (h *netnsHandle) close() {
	closeFD(h.fd)
	h.fd = -1
}

// acceptControl accepts connections to the control socket until the gate ends.
func (g *Generation) acceptControl() {
	for {
		if _, err := g.control.way.enter(); err != nil {
			return
		}
		c, err := g.control.ln.AcceptUnix()
		if g.control.way.leave(err) {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory: the client stays in the queue.
			g.log.Error("accept on the control socket", "error", err)
			t := time.NewTimer(50 * time.Millisecond)
			select {
			case <-t.C:
			case <-g.superseded:
			}
			t.Stop()
			continue
		}
		conn, err := scm.NewConn(c)
		if err != nil {
			c.Close()
			g.log.Error("control connection", "error", err)
			continue
		}
		g.admit(newLink(conn, 0))
	}
}

// admit starts a conversation, making room for it if need be.
func (g *Generation) admit(l *link) {
	var evicted *link
	ok := false
	g.do(func() {
		if len(g.pending) >= maxPending || len(g.conns) >= maxConversations && len(g.pending) > 0 {
			evicted = g.pending[0]
			g.pending = g.pending[1:]
		}
		if len(g.conns) < maxConversations+maxPending && g.phase != PhaseDraining {
			ok = true
			g.conns[l] = false
			g.pending = append(g.pending, l)
		}
	})
	if evicted != nil {
		evicted.conn.Close()
	}
	if !ok {
		l.close()
		return
	}
	g.wg.Go(func() { g.converse(l) })
}

// converse serves one connection to the control socket.
func (g *Generation) converse(l *link) {
	defer g.do(func() {
		delete(g.conns, l)
		g.notPending(l)
	})
	defer l.close()
	hello, err := g.greet(l)
	g.do(func() { g.notPending(l) })
	if err == nil {
		switch hello.Intent {
		case intentTakeover:
			err = g.handOver(l, hello)
		case intentBorrow:
			err = g.lend(l, hello)
		case intentStatus:
			err = g.tellStatus(l)
		case intentStop:
			err = g.obeyStop(l)
		case intentCommit, intentRollback:
			err = g.obeyProbation(l, hello.Intent)
		case intentReport:
			err = g.hearReport(l, hello)
		default:
			err = refusef(CodeProtocol, "unknown intent %.40q: use a handoverd of the owner's version", hello.Intent)
		}
	}
	if refusal := (*RefusedError)(nil); errors.As(err, &refusal) {
		l.sendWithin(g.cfg.StepTimeout, frameRefuse{Type: typeRefuse, Code: refusal.Code, Message: refusal.Message})
		// From now on it is the first to make room.
		g.do(func() { g.pending = slices.Insert(g.pending, 0, l) })
		l.awaitEnd(min(time.Second, g.cfg.StepTimeout), g.superseded)
	}
	if err != nil {
		g.log.Info("conversation ended", "error", err)
	}
}

func (g *Generation) notPending(l *link) {
	if i := slices.Index(g.pending, l); i >= 0 {
		g.pending = slices.Delete(g.pending, i, i+1)
	}
}

// greet checks who is there and hears what it wants. Before that it answers
// nothing but a refusal.
func (g *Generation) greet(l *link) (*frameHello, error) {
	// A peer has no reason to send descriptors; where the kernel can, it
	// does not even let it. Older kernels close what comes.
	if err := l.conn.SetPassRights(false); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, err
	}
	cred, err := l.conn.PeerCred()
	if err != nil {
		return nil, err
	}
	if err := g.cfg.permits(cred.UID); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(g.ctx, g.cfg.StepTimeout)
	defer cancel()
	f, err := l.recvPlain(ctx)
	if errors.Is(err, errFrame) {
		return nil, refusef(CodeProtocol, "%v", err)
	}
	if err != nil {
		return nil, fmt.Errorf("await hello: %w", err)
	}
	hello, ok := f.(*frameHello)
	if !ok {
		return nil, refusef(CodeProtocol, "the first frame is a hello, not %T", f)
	}
	for _, v := range g.cfg.protocols { // best first
		if slices.Contains(hello.Protocols, v) {
			l.protocol = v
			return hello, nil
		}
	}
	return nil, refusef(CodeVersion, "the owner speaks protocol %v, the peer %v: go through a version that speaks both", g.cfg.protocols, hello.Protocols)
}

// overflowUID is what the kernel shows for a uid that has no mapping in our
// user namespace: user_namespaces(7).
const overflowUID = 65534

// permits tells whether a user may talk to this process.
func (c *Config) permits(uid uint32) error {
	if uid == overflowUID && !uidsAllMapped() {
		return refusef(CodeUnauthorized, "your user has no mapping in the user namespace of this process, or is its nobody (the kernel shows both as uid %d): run both in the same user namespace, as another user than %d", uid, uid)
	}
	if uid == 0 || int(uid) == os.Geteuid() || slices.Contains(c.AllowUIDs, uid) {
		return nil
	}
	return refusef(CodeUnauthorized, "uid %d may not talk to this process: run as the same user, or have its owner allow that uid", uid)
}
