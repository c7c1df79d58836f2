package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/handoverd/handoverd/handover"
)

// defaultName names a listener that was given none.
const defaultName = "default"

// A listenSpec is what --listen asks for.
type listenSpec struct {
	name    string
	network string
	address string
}

// packet tells whether it is a datagram socket.
func (l listenSpec) packet() bool { return isPacket(l.network) }

func (l listenSpec) String() string {
	if strings.HasPrefix(l.address, "@") {
		return l.name + "=" + l.network + ":" + l.address
	}
	return l.name + "=" + l.network + "://" + l.address
}

func isPacket(network string) bool {
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
		return true
	}
	return false
}

const listenForm = "give [NAME=]tcp://HOST:PORT, or tcp4, tcp6, udp, udp4, udp6; [NAME=]unix:///PATH or unix:@NAME, or unixpacket, unixgram"

// parseListen reads [NAME=]NETWORK://ADDRESS.
func parseListen(text string) (listenSpec, error) {
	head, rest, ok := strings.Cut(text, ":")
	if !ok {
		return listenSpec{}, fmt.Errorf("%q is no listener: %s", text, listenForm)
	}
	var l listenSpec
	l.network = head
	if i := strings.LastIndexByte(head, '='); i >= 0 {
		l.name, l.network = head[:i], head[i+1:]
		if err := handover.CheckName(l.name); err != nil {
			return listenSpec{}, fmt.Errorf("%q: %w", text, err)
		}
	}
	var err error
	switch l.network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		l.address, err = inetAddress(l.network, rest)
	case "unix", "unixpacket", "unixgram":
		l.address, err = unixAddress(rest)
	default:
		err = fmt.Errorf("unknown network %q: %s", l.network, listenForm)
	}
	if err != nil {
		return listenSpec{}, fmt.Errorf("%q: %w", text, err)
	}
	return l, nil
}

func inetAddress(network, rest string) (string, error) {
	address, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return "", errors.New("// is missing after the network: " + listenForm)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return "", fmt.Errorf("%q is not HOST:PORT; for all addresses give :PORT, and put an IPv6 address in brackets", address)
	}
	if _, err := net.LookupPort(network, port); err != nil {
		return "", fmt.Errorf("port %q is neither a number from 0 to 65535 nor the name of a service", port)
	}
	return address, nil
}

// maxUnixPath is what sun_path holds besides its terminating zero: unix(7).
const maxUnixPath = 107

func unixAddress(rest string) (string, error) {
	path := strings.TrimPrefix(rest, "//")
	switch {
	case len(path) > maxUnixPath:
		return "", fmt.Errorf("the path has %d bytes, the kernel takes at most %d", len(path), maxUnixPath)
	case strings.HasPrefix(path, "@") && len(path) > 1:
		return path, nil
	case strings.HasPrefix(rest, "//") && filepath.IsAbs(path) && path != "/":
		return path, nil
	}
	return "", errors.New("give an absolute path, as in unix:///run/app.sock, or an abstract name, as in unix:@app")
}

// nameListeners gives the first nameless listener the default name, and
// insists that names are unique: a name is what a successor finds it by.
func nameListeners(all []listenSpec) error {
	used := map[string]bool{}
	for i := range all {
		l := &all[i]
		if l.name == "" {
			if used[defaultName] {
				return usagef("--listen: only one listener can go without a name; a successor finds them by name, so give the others one, as in web=%s", strings.TrimPrefix(l.String(), "="))
			}
			l.name = defaultName
		}
		if used[l.name] {
			return usagef("--listen: two listeners are named %q: a successor finds them by name, so give each its own", l.name)
		}
		used[l.name] = true
	}
	return nil
}
