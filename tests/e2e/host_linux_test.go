package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// A host is a network namespace with an address of its own. A thread holds
// it: what that thread does, or starts, is in it.
type host struct {
	addr  string
	ns    netns.NsHandle
	calls chan func()
	leave chan struct{} // closed when the test has ended
	ended chan struct{}
}

var errHostEnded = errors.New("the test that made this host has ended")

// newHost makes a namespace without any interface but loopback.
func newHost(t testing.TB, addr string) *host {
	t.Helper()
	h := &host{addr: addr, calls: make(chan func()), leave: make(chan struct{}), ended: make(chan struct{})}
	began := make(chan error)
	go h.hold(began)
	if err := <-began; err != nil {
		lacking(t, "a network namespace is needed: %v (root or user namespaces make them)", err)
	}
	t.Cleanup(func() {
		close(h.leave)
		<-h.ended
	})
	return h
}

// hold keeps the namespace until leave is closed. The thread is never
// unlocked, so it ends with its goroutine, and with it what it has started.
func (h *host) hold(began chan<- error) {
	defer close(h.ended)
	runtime.LockOSThread()
	ns, err := netns.New()
	if err == nil {
		h.ns = ns
		defer h.ns.Close()
		err = h.raise("lo", "")
	}
	began <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-h.calls:
			f()
		case <-h.leave:
			return
		}
	}
}

// do runs f on the host's thread. f must not wait for long. It is an error
// only if the host has ended, as it may have for a goroutine that outlives a
// test that failed.
func (h *host) do(f func()) error {
	done := make(chan struct{})
	select {
	case h.calls <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-h.ended:
		return errHostEnded
	}
}

// raise gives an interface an address and switches it on. It runs on the
// host's thread.
func (h *host) raise(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if cidr != "" {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("interface %s: address: %w", name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// start starts cmd on the host; it dies with the host. A nil host is this
// process's own.
func (h *host) start(cmd *exec.Cmd) error {
	if h == nil {
		return cmd.Start()
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	var err error
	if e := h.do(func() { err = cmd.Start() }); e != nil {
		return e
	}
	return err
}

// dial connects from the host: a socket is of the namespace of the thread
// that makes it.
func (h *host) dial(network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	if h == nil {
		return d.Dial(network, address)
	}
	var c net.Conn
	var err error
	if e := h.do(func() { c, err = d.Dial(network, address) }); e != nil {
		return nil, e
	}
	return c, err
}

// listen listens on a free port of the host.
func (h *host) listen(t testing.TB) net.Listener {
	t.Helper()
	var ln net.Listener
	var err error
	e := h.do(func() { ln, err = net.Listen("tcp", net.JoinHostPort(h.addr, "0")) })
	if err := errors.Join(e, err); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// client is an HTTP client on the host.
func (h *host) client(t testing.TB, keepAlive bool) *http.Client {
	tr := &http.Transport{
		DisableKeepAlives: !keepAlive,
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			return h.dial(network, address)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 3 * patience} // bodies included
}

// newNetwork makes two hosts that reach each other over a pair of virtual
// interfaces, with addresses that RFC 5737 keeps for such uses.
func newNetwork(t testing.TB) (server, client *host) {
	t.Helper()
	server, client = newHost(t, "192.0.2.1"), newHost(t, "192.0.2.2")
	var serverErr, clientErr error
	server.do(func() {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "hd0"},
			PeerName:  "hd1", PeerNamespace: netlink.NsFd(int(client.ns)),
		}
		if serverErr = netlink.LinkAdd(veth); serverErr == nil {
			serverErr = server.raise("hd0", server.addr+"/24")
		}
	})
	if serverErr == nil {
		client.do(func() { clientErr = client.raise("hd1", client.addr+"/24") })
	}
	if err := errors.Join(serverErr, clientErr); err != nil {
		lacking(t, "a pair of virtual interfaces is needed: %v", err)
	}
	return server, client
}
