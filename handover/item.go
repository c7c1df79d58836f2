package handover

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// Kind says what a descriptor of the set is for.
type Kind string

// The kinds of descriptors that a generation hands over.
const (
	KindListener Kind = "listener" // a listening stream or seqpacket socket
	KindPacket   Kind = "packet"   // a bound datagram socket
	KindFile     Kind = "file"     // any other file, for the application
	kindState    Kind = "state"    // a sealed memfd with application state
	kindControl  Kind = "control"  // the control listener
	kindLock     Kind = "lock"     // the lock file of the control path
	kindNetns    Kind = "netns"    // the network namespace of the first generation
	kindWord     Kind = "word"     // the shared page with the ownership word
)

// Reserved names. Names that begin with @ belong to the protocol.
const (
	nameControl = "@control"
	nameLock    = "@lock"
	nameNetns   = "@netns"
	nameWord    = "@word"
)

// item describes one descriptor on the wire.
type item struct {
	Name    string `json:"name"`
	Kind    Kind   `json:"kind"`
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"` // as getsockname tells it
	Asked   string `json:"asked,omitempty"`   // as the application gave it
	Cookie  cookie `json:"cookie"`            // SO_COOKIE, or the inode of what is no socket
	Netns   cookie `json:"netns,omitempty"`   // SO_NETNS_COOKIE
	Dev     uint64 `json:"dev,omitempty"`     // of a bound Unix path
	Ino     uint64 `json:"ino,omitempty"`
}

func (it *item) check() error {
	if len(it.Address) > maxAddress || len(it.Asked) > maxAddress {
		return fmt.Errorf("addresses of %d and %d bytes, the limit is %d", len(it.Address), len(it.Asked), maxAddress)
	}
	switch it.Kind {
	case KindListener, KindPacket:
		if want := kindOf(it.Network); want != it.Kind {
			return fmt.Errorf("socket %.40q: kind %q does not go with network %.20q", it.Name, it.Kind, it.Network)
		}
	case KindFile, kindState:
	case kindControl, kindLock, kindNetns, kindWord:
		if it.Name != "@"+string(it.Kind) {
			return fmt.Errorf("kind %q under the name %.40q", it.Kind, it.Name)
		}
		return nil
	default:
		return fmt.Errorf("unknown kind %.40q", it.Kind)
	}
	return CheckName(it.Name)
}

// checkAddress tells whether an address can travel, as text in a frame.
func checkAddress(address string) error {
	switch {
	case len(address) > maxAddress:
		return fmt.Errorf("address of %d bytes, the limit is %d", len(address), maxAddress)
	case !utf8.ValidString(address):
		return fmt.Errorf("address %q is not UTF-8, so that no successor could be told of it: choose another", address)
	}
	return nil
}

// kindOf tells which kind a network of package net is, or "" if none.
func kindOf(network string) Kind {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix", "unixpacket":
		return KindListener
	case "udp", "udp4", "udp6", "unixgram":
		return KindPacket
	}
	return ""
}

// CheckName tells whether name can name a descriptor: 1 to 128 bytes of
// printable ASCII without spaces or ':' (which separates LISTEN_FDNAMES, see
// sd_listen_fds(3)), not beginning with '@', which is reserved.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("empty name")
	case len(name) > maxName:
		return fmt.Errorf("name %.40q... has %d bytes, the limit is %d", name, len(name), maxName)
	case name[0] == '@':
		return fmt.Errorf("name %q: names that begin with '@' are reserved", name)
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == ':' {
			return fmt.Errorf("name %q: byte %q is not allowed", name, c)
		}
	}
	return nil
}
