package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// RelayConfig says what a Relay connects and how slowly.
type RelayConfig struct {
	// Network and Address are the target, as in Config. Network may be empty
	// for tcp.
	Network, Address string
	// Delay is the time each byte is on its way, in either direction. A round
	// trip takes twice that.
	Delay time.Duration
	// MaxConns bounds the connections relayed at once; further ones wait in the
	// accept queue. 0 means 1024.
	MaxConns int
	// Window bounds the bytes on their way in one direction of a connection.
	// 0 means 1 MiB.
	Window int
}

// Relay is a TCP relay in user space that makes a connection over loopback as
// slow as one over a distance. Bytes keep their order and their spacing in
// time. The end of one direction and a reset are passed on, after the delay
// too.
//
// Two things differ from a distant server. The client's connect succeeds at
// once, so that a target that refuses shows as a reset. And a reset does not
// overtake bytes that were sent before it.
type Relay struct {
	cfg RelayConfig
	ln  net.Listener
	ctx context.Context // ends with Close

	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// StartRelay listens on a free port of 127.0.0.1 and relays to the target
// until Close. The target is dialed for each connection.
func StartRelay(cfg RelayConfig) (*Relay, error) {
	cfg.Network = cmp.Or(cfg.Network, "tcp")
	cfg.MaxConns = cmp.Or(cfg.MaxConns, 1024)
	cfg.Window = cmp.Or(cfg.Window, 1<<20)
	if cfg.Address == "" || cfg.Delay < 0 || cfg.MaxConns < 0 || cfg.Window < 0 {
		return nil, fmt.Errorf("load: relay to %q with delay %v, %d connections, window %d: not possible",
			cfg.Address, cfg.Delay, cfg.MaxConns, cfg.Window)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("load: relay: %w", err)
	}
	r := &Relay{
		cfg:   cfg,
		ln:    ln,
		slots: make(chan struct{}, cfg.MaxConns),
		conns: make(map[net.Conn]struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(r.accept)
	return r, nil
}

// Addr is where clients connect.
func (r *Relay) Addr() net.Addr { return r.ln.Addr() }

// Close resets every connection and returns when all goroutines have ended.
func (r *Relay) Close() error {
	r.cancel()
	err := r.ln.Close()
	r.mu.Lock()
	for c := range r.conns {
		closeReset(c)
	}
	r.mu.Unlock()
	r.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (r *Relay) accept() {
	for {
		select {
		case r.slots <- struct{}{}:
		case <-r.ctx.Done():
			return
		}
		c, err := r.ln.Accept()
		if err != nil {
			<-r.slots
			if r.ctx.Err() != nil || !waitFor(r.ctx, 5*time.Millisecond) {
				return
			}
			continue // out of descriptors, or the client has left already
		}
		r.wg.Go(func() { r.serve(c) })
	}
}

// own registers c to be closed by Close. It reports false if that has begun.
func (r *Relay) own(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

func (r *Relay) disown(c net.Conn) {
	r.mu.Lock()
	delete(r.conns, c)
	r.mu.Unlock()
	c.Close()
}

func (r *Relay) serve(client net.Conn) {
	defer func() { <-r.slots }()
	defer r.disown(client)
	if !r.own(client) || !waitFor(r.ctx, r.cfg.Delay) {
		return
	}
	var d net.Dialer
	target, err := d.DialContext(r.ctx, r.cfg.Network, r.cfg.Address)
	if err != nil {
		waitFor(r.ctx, r.cfg.Delay)
		closeReset(client)
		return
	}
	defer r.disown(target)
	if !r.own(target) {
		return
	}
	there := r.newDirection(client, target)
	back := r.newDirection(target, client)
	var wg sync.WaitGroup
	for _, d := range []*direction{there, back} {
		wg.Go(d.read)
		wg.Go(d.write)
	}
	wg.Wait()
}

// direction carries bytes one way. read takes them in and stamps them, write
// gives them out when they are due.
type direction struct {
	ctx      context.Context // the relay's
	from, to net.Conn
	delay    time.Duration
	window   int

	mu      sync.Mutex
	changed sync.Cond
	queue   []parcel
	size    int  // bytes in queue
	broken  bool // write has given up, nothing more is wanted
}

// parcel is what was read at once; due tells when it may arrive.
type parcel struct {
	due time.Time
	b   []byte
	err error // the end of the direction, io.EOF or a failure
}

func (r *Relay) newDirection(from, to net.Conn) *direction {
	d := &direction{ctx: r.ctx, from: from, to: to, delay: r.cfg.Delay, window: r.cfg.Window}
	d.changed.L = &d.mu
	return d
}

func (d *direction) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := d.from.Read(buf)
		due := time.Now().Add(d.delay)
		if n > 0 && !d.put(parcel{due: due, b: append([]byte(nil), buf[:n]...)}) {
			return
		}
		if err != nil {
			d.put(parcel{due: due, err: err})
			return
		}
	}
}

// put waits for room, then queues p. It reports false if nothing is wanted
// any more.
func (d *direction) put(p parcel) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.size >= d.window && !d.broken {
		d.changed.Wait()
	}
	if d.broken {
		return false
	}
	d.queue = append(d.queue, p)
	d.size += len(p.b)
	d.changed.Broadcast()
	return true
}

func (d *direction) take() parcel {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.queue) == 0 {
		d.changed.Wait() // read always ends with a parcel that says so
	}
	p := d.queue[0]
	d.queue[0] = parcel{}
	d.queue = d.queue[1:]
	return p
}

func (d *direction) write() {
	defer d.giveUp()
	for {
		p := d.take()
		if !waitFor(d.ctx, time.Until(p.due)) {
			return
		}
		if p.err != nil {
			d.end(p.err)
			return
		}
		if _, err := d.to.Write(p.b); err != nil {
			closeReset(d.from) // as the other end would have answered these bytes
			return
		}
		d.mu.Lock()
		d.size -= len(p.b)
		d.changed.Broadcast()
		d.mu.Unlock()
	}
}

// giveUp releases a read that waits for room.
func (d *direction) giveUp() {
	d.mu.Lock()
	d.broken = true
	d.changed.Broadcast()
	d.mu.Unlock()
}

// end passes on how the direction has ended.
func (d *direction) end(err error) {
	if errors.Is(err, io.EOF) {
		if h, can := d.to.(interface{ CloseWrite() error }); can {
			h.CloseWrite()
			return
		}
	}
	closeReset(d.to)
}

// closeReset closes c so that its peer sees a reset where there is such a
// thing.
func closeReset(c net.Conn) {
	if t, can := c.(*net.TCPConn); can {
		t.SetLinger(0)
	}
	c.Close()
}

// waitFor waits for d and reports false if ctx ended before.
func waitFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
