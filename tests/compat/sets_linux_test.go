package compat

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// spec is a socket of a set.
type spec struct{ name, network, address string }

func (s spec) isPacket() bool { return strings.HasPrefix(s.network, "udp") || s.network == "unixgram" }

// sets are what is handed over.
func sets(dir string) map[string][]spec {
	many := make([]spec, 300)
	for i := range many {
		many[i] = spec{fmt.Sprintf("name-%d", i), "tcp", "127.0.0.1:0"}
	}
	return map[string][]spec{
		"1 socket":    {{"app", "tcp", "127.0.0.1:0"}},
		"300 sockets": many,
		"every kind": {
			{"app", "tcp", "localhost:0"},
			{"four", "tcp4", "127.0.0.1:0"},
			{"six", "tcp6", "[::1]:0"},
			{"dns", "udp", "127.0.0.1:0"},
			{"dns-6", "udp6", "[::1]:0"},
			{"stream", "unix", filepath.Join(dir, "stream")},
			{"abstract", "unix", fmt.Sprintf("@handoverd-compat-%d", os.Getpid())},
			{"packets", "unixpacket", filepath.Join(dir, "packets")},
			{"log", "unixgram", filepath.Join(dir, "log")},
		},
	}
}

// states are blobs of the application.
func states() map[string][]byte {
	return map[string][]byte{"empty": {}, "tickets": bytes.Repeat([]byte("0123456789abcdef"), 1<<16)}
}

// areStates asserts that those blobs arrived, and no others.
func areStates(t testing.TB, got map[string][]byte) {
	t.Helper()
	if len(got) != len(states()) {
		t.Errorf("%d states", len(got))
	}
	for name, want := range states() {
		if !bytes.Equal(got[name], want) {
			t.Errorf("state %s: %d bytes, not the same %d", name, len(got[name]), len(want))
		}
	}
}

// note is a file of the application, in the middle of which its reader is.
func note(t testing.TB) *os.File {
	t.Helper()
	f, err := os.CreateTemp(directory(t), "note")
	must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.WriteString("read, unread")
	must(t, err)
	_, err = f.Seek(6, io.SeekStart)
	must(t, err)
	return f
}

// isNote asserts that f is that file, at the same place.
func isNote(t testing.TB, f *os.File) {
	t.Helper()
	defer f.Close()
	rest, err := io.ReadAll(f)
	if err != nil || string(rest) != "unread" {
		t.Errorf("the file has %q left to read, %v", rest, err)
	}
}

// identity of a socket: what it is, and SO_COOKIE.
type identity struct {
	Kind, Network, Address string
	Cookie                 uint64
}

func identitiesOf(s *v1.Set) map[string]identity {
	all := map[string]identity{}
	for _, k := range s.Sockets {
		all[k.Name] = identity{k.Kind, k.Network, k.Address, uint64(k.Cookie)}
	}
	return all
}

// identitiesToldBy asks whoever owns a control socket.
func identitiesToldBy(t testing.TB, path string) map[string]identity {
	t.Helper()
	st, err := handover.Operator{Socket: path, Timeout: patience}.Status(t.Context())
	must(t, err)
	all := map[string]identity{}
	for _, s := range st.Sockets {
		all[s.Name] = identity{string(s.Kind), s.Network, s.Address, s.Cookie}
	}
	return all
}

func same[T any](t testing.TB, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// listenAll asks for all sockets of a set, in the words of the set.
func (s *server) listenAll(set []spec) {
	s.t.Helper()
	for _, k := range set {
		if k.isPacket() {
			s.listenPacket(k.name, k.network, k.address)
		} else {
			s.listen(k.name, k.network, k.address)
		}
	}
}

// greetsOnAll asserts that a present generation serves all of a set.
func greetsOnAll(t testing.TB, all map[string]identity, generation uint64) {
	t.Helper()
	for _, id := range all {
		switch {
		case id.Kind == "listener":
			greeted(t, id.Network, id.Address, generation)
		case id.Kind == "packet" && id.Network != "unixgram":
			greetedByPacket(t, id, generation)
		}
	}
}

func greetedByPacket(t testing.TB, id identity, generation uint64) {
	t.Helper()
	c := dial(t, id.Network, id.Address)
	_, err := c.Write([]byte("who"))
	must(t, err)
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != fmt.Sprint(generation) {
		t.Errorf("%s: greeted with %q, %v, not by generation %d", id.Network, buf[:n], err, generation)
	}
}

// queue has a client wait at each listener.
func queue(t testing.TB, all map[string]identity) (clients map[string]net.Conn) {
	t.Helper()
	clients = map[string]net.Conn{}
	for name, id := range all {
		if id.Kind == "listener" {
			clients[name] = dial(t, id.Network, id.Address)
		}
	}
	return clients
}
