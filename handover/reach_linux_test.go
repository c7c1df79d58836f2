package handover

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestReach(t *testing.T) {
	alone := devices{addresses: map[netip.Addr]bool{netip.MustParseAddr("127.0.0.1"): true}}
	linked := devices{up: true, addresses: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true, netip.MustParseAddr("fe80::1"): true}}
	for _, c := range []struct {
		network, address string
		alone, linked    bool
	}{
		{"tcp", "127.0.0.1:80", true, true},
		{"tcp", "[::1]:80", true, true},
		{"tcp", "0.0.0.0:80", false, true},
		{"udp", "[::]:80", false, true},
		{"tcp", "192.0.2.1:80", false, true},
		{"tcp", "[::ffff:192.0.2.1]:80", false, true},
		{"tcp", "192.0.2.2:80", false, false},
		{"tcp", "[fe80::1%eth0]:80", false, true},
		{"udp", "224.0.0.251:5353", true, true},
		{"unix", "@app", true, true},
		{"tcp", "what", true, true},
	} {
		if got := alone.reach(c.network, c.address); got != c.alone {
			t.Errorf("%s %s without a device: %v", c.network, c.address, got)
		}
		if got := linked.reach(c.network, c.address); got != c.linked {
			t.Errorf("%s %s with a device: %v", c.network, c.address, got)
		}
	}
}

// A namespace that was just made has no device that is up, as one that has
// lost its own.
func TestVerdictsOnNamespaces(t *testing.T) {
	cfg := testConfig(t)
	var a *Generation
	elsewhere(t, func() {
		a = begin(t, cfg)
		listen(t, a, "web", "tcp4", "0.0.0.0:0")
		listen(t, a, "unix", "unix", "@"+cfg.Socket)
		ready(t, a)
		if st := a.Namespace(); st.Verdict != NetnsDeviceGone || !slices.Equal(st.Silent, []string{"web"}) {
			t.Errorf("in its own: %+v", st)
		}
	})
	_, err := Start(testContext(t), cfg)
	if !errors.Is(err, ErrForeignNetns) || !strings.Contains(err.Error(), "lost its network device") {
		t.Errorf("from outside: %v", err)
	}
	awaitPhase(t, a, PhaseOwner) // it learns of that a moment later
	cfg.ForeignNetns = true
	b := begin(t, cfg)
	listen(t, b, "web", "", "")
	ready(t, b)
	if st := b.Namespace(); st.Verdict != NetnsForeignDead || !slices.Equal(st.Silent, []string{"web"}) {
		t.Errorf("from outside: %+v", st)
	}
	st, err := (Operator{Socket: cfg.Socket}).Status(testContext(t))
	if err != nil || st.Namespace.Verdict != NetnsForeignDead {
		t.Errorf("%+v %v", st, err)
	}
}

func TestVerdictAtHome(t *testing.T) {
	g := begin(t, testConfig(t))
	if st := g.Namespace(); st.Verdict != "" {
		t.Errorf("without sockets: %+v", st)
	}
	listen(t, g, "web", "tcp", "127.0.0.1:0")
	ready(t, g)
	if st := g.Namespace(); st.Verdict != NetnsSame || st.Silent != nil {
		t.Errorf("%+v", st)
	}
}
