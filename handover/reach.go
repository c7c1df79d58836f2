package handover

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// NamespaceStatus tells whether clients can reach the set's sockets, which
// live in the network namespace that they were made in.
type NamespaceStatus struct {
	// Verdict is one of those below, or empty if there is no socket for which
	// it matters.
	Verdict Verdict `json:"verdict,omitempty"`
	// Silent are the names of sockets on whose address no device that is up
	// receives: no client gets to them, and nobody gets an error. At most 100.
	Silent []string `json:"silent,omitempty"`
}

// A Verdict is about the network namespace of the sockets, as the owner sees it.
type Verdict string

// The verdicts.
const (
	NetnsSame        Verdict = "same"             // the owner's own, and it has its devices
	NetnsDeviceGone  Verdict = "device gone"      // the owner's own, without the device for some socket
	NetnsForeign     Verdict = "foreign"          // another one; it goes silent with its container
	NetnsForeignDead Verdict = "foreign and dead" // another one, and it has gone silent
)

// devices are what a network namespace has besides loopback.
type devices struct {
	up        bool // any of them is
	addresses map[netip.Addr]bool
}

// listDevices looks at the namespace of the calling thread.
func listDevices() (d devices, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return d, err
	}
	d.addresses = map[netip.Addr]bool{}
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		d.up = d.up || i.Flags&net.FlagLoopback == 0
		addrs, err := i.Addrs()
		if err != nil {
			return d, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				d.addresses[p.Addr().Unmap()] = true
			}
		}
	}
	return d, nil
}

// reach tells whether a client, if only on this machine, can get to address.
func (d devices) reach(network, address string) bool {
	if strings.HasPrefix(network, "unix") {
		return true
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return true // not for us to judge
	}
	host := at.Addr().WithZone("").Unmap()
	switch {
	case host.IsLoopback(), host.IsMulticast():
		return true
	case host.IsUnspecified():
		return d.up
	}
	return d.addresses[host]
}

// Namespace looks at the network namespace of the sockets, which costs some
// system calls. For one that this process may not enter (setns(2) asks for
// CAP_SYS_ADMIN) nothing is known of silent sockets.
func (g *Generation) Namespace() NamespaceStatus {
	return g.namespace(g.Sockets())
}

func (g *Generation) namespace(sockets []Socket) NamespaceStatus {
	var bound []Socket
	for _, s := range sockets {
		if s.Kind != KindFile && !strings.HasPrefix(s.Network, "unix") {
			bound = append(bound, s)
		}
	}
	if len(bound) == 0 {
		return NamespaceStatus{}
	}
	foreign := false
	if g.do(func() { foreign = g.netns.foreign }) != nil {
		return NamespaceStatus{}
	}
	st := NamespaceStatus{Verdict: NetnsSame}
	if foreign {
		st.Verdict = NetnsForeign
	}
	var d devices
	err := g.inSetNetns(func() (err error) {
		d, err = listDevices()
		return err
	})
	if err != nil {
		g.log.Debug("devices of the sockets' network namespace", "error", err)
		return st
	}
	st.Silent = d.silent(bound)
	switch {
	case len(st.Silent) > 0 && foreign:
		st.Verdict = NetnsForeignDead
	case len(st.Silent) > 0:
		st.Verdict = NetnsDeviceGone
	}
	return st
}

func (d devices) silent(all []Socket) (names []string) {
	const most = 100 // they have to fit a frame
	for _, s := range all {
		if len(names) < most && !d.reach(s.Network, s.Address) {
			names = append(names, s.Name)
		}
	}
	return names
}

// foreignError explains a socket of another namespace. If ns is the
// descriptor of that one, and may be entered, it is looked at.
func foreignError(s *socket, ns int) error {
	dead := false
	if ns >= 0 {
		inNetns(ns, func() error {
			d, err := listDevices()
			dead = err == nil && !d.reach(s.Network, s.Address)
			return err
		})
	}
	if dead {
		return fmt.Errorf("%w, which has lost its network device: %s %s (%s) is silent already, whoever owns it; stop the owner and start afresh here (ForeignNetns, --foreign-netns=allow, takes it all the same)",
			ErrForeignNetns, s.Network, s.Address, s.Name)
	}
	return fmt.Errorf("%w: %s %s (%s) lives in the owner's namespace and goes silent when that one's container is removed; run both versions with --network host, or with --network container:NAME of a third container that stays, or let a holder own the sockets (ForeignNetns, --foreign-netns=allow, takes them all the same)",
		ErrForeignNetns, s.Network, s.Address, s.Name)
}
