package v1

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// Protocol is the version that this package speaks.
const Protocol = 1

// Limits of version 1.
const (
	MaxFrame = 64 << 10 // bytes of one packet
	MaxBatch = 48 << 10 // bytes of items in one packet
	MaxFDs   = 253      // descriptors of one packet: SCM_RIGHTS, unix(7)
)

// Intents of a hello.
const (
	Takeover       = "takeover"
	IntentStatus   = "status"
	IntentStop     = "stop"
	IntentCommit   = "commit"
	IntentRollback = "rollback"
	IntentReport   = "report"
)

// Types are the types of all frames.
var Types = []string{
	"hello", "refuse", "welcome", "sockets", "received", "ready", "granted", "alive", "commit", "rollback",
	"revoked", "progress", "connections", "adopted", "drained", "status", "ok",
}

// The frames of version 1. Durations are whole milliseconds.
type (
	// Hello is the first frame.
	Hello struct {
		Type       string `json:"type"`
		Protocols  []int  `json:"protocols"`
		Intent     string `json:"intent"`
		Program    string `json:"program,omitempty"`
		Build      string `json:"build,omitempty"`
		PID        int    `json:"pid,omitempty"`
		Revision   uint64 `json:"revision,omitempty"`
		Force      bool   `json:"force,omitempty"`
		Probation  int64  `json:"probation_ms,omitempty"`
		Generation uint64 `json:"generation,omitempty"`
		Moves      bool   `json:"moves,omitempty"`
	}
	// Refuse ends a conversation.
	Refuse struct {
		Type    string `json:"type"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	// Welcome carries the owner's pidfd.
	Welcome struct {
		Type         string `json:"type"`
		Protocol     int    `json:"protocol"`
		Generation   uint64 `json:"generation"`
		Next         uint64 `json:"next"`
		Attempt      uint64 `json:"attempt"`
		Count        int    `json:"count"`
		Program      string `json:"program,omitempty"`
		Build        string `json:"build,omitempty"`
		PID          int    `json:"pid,omitempty"`
		Revision     uint64 `json:"revision,omitempty"`
		ReadyTimeout int64  `json:"ready_timeout_ms"`
		Probation    int64  `json:"probation_ms"`
		AliveEvery   int64  `json:"alive_every_ms"`
	}
	// Sockets carries one descriptor for each item.
	Sockets struct {
		Type  string `json:"type"`
		First int    `json:"first"`
		Items []Item `json:"items"`
	}
	// Item describes a descriptor.
	Item struct {
		Name    string `json:"name"`
		Kind    string `json:"kind"`
		Network string `json:"network,omitempty"`
		Address string `json:"address,omitempty"`
		Asked   string `json:"asked,omitempty"`
		Cookie  Cookie `json:"cookie"`
		Netns   Cookie `json:"netns,omitempty"`
		Dev     uint64 `json:"dev,omitempty"`
		Ino     uint64 `json:"ino,omitempty"`
	}
	// Received proves which sockets arrived.
	Received struct {
		Type    string   `json:"type"`
		First   int      `json:"first"`
		Cookies []Cookie `json:"cookies"`
	}
	// Granted says that the ownership word has moved.
	Granted struct {
		Type       string `json:"type"`
		Generation uint64 `json:"generation"`
		Settled    bool   `json:"settled,omitempty"`
	}
	// Simple is ready, alive, commit, rollback, revoked or ok.
	Simple struct {
		Type    string `json:"type"`
		Message string `json:"message,omitempty"`
	}
	// Stats counts connections.
	Stats struct {
		Connections map[string]int64 `json:"connections,omitempty"`
		Ended       map[string]int64 `json:"ended,omitempty"`
		Oldest      int64            `json:"oldest_ns,omitempty"`
		Remaining   int64            `json:"remaining_ns,omitempty"`
	}
	// Progress tells of a drain.
	Progress struct {
		Type       string `json:"type"`
		Generation uint64 `json:"generation"`
		Stats
	}
	// Drained is the last word of a generation.
	Drained struct {
		Type       string          `json:"type"`
		Generation uint64          `json:"generation"`
		Report     json.RawMessage `json:"report,omitempty"`
	}
	// Connections carries one connection for each item.
	Connections struct {
		Type      string      `json:"type"`
		Items     []MovedItem `json:"items"`
		Withdrawn uint64      `json:"withdrawn,omitempty"`
	}
	// MovedItem describes a connection on its way.
	MovedItem struct {
		Listener string `json:"listener"`
		Cookie   Cookie `json:"cookie"`
		Unread   []byte `json:"unread,omitempty"`
		State    []byte `json:"state,omitempty"`
	}
	// Adopted says which connections are served here from now on.
	Adopted struct {
		Type    string   `json:"type"`
		Cookies []Cookie `json:"cookies,omitempty"`
		Stop    string   `json:"stop,omitempty"`
	}
	// StatusPage is one page of a status.
	StatusPage struct {
		Type   string `json:"type"`
		Status Status `json:"status"`
		More   bool   `json:"more,omitempty"`
	}
	// Status is an owner's account of itself.
	Status struct {
		Protocol    int            `json:"protocol"`
		Generation  uint64         `json:"generation"`
		Phase       string         `json:"phase"`
		Program     string         `json:"program"`
		Build       string         `json:"build,omitempty"`
		Revision    uint64         `json:"revision,omitempty"`
		PID         int            `json:"pid"`
		Started     string         `json:"started"`               // RFC 3339
		Owner       string         `json:"owner_since,omitempty"` // RFC 3339
		Probation   int64          `json:"probation_left_ns,omitempty"`
		Stats       Stats          `json:"stats"`
		Sockets     []SocketStatus `json:"sockets"`
		Unclaimed   []SocketName   `json:"unclaimed,omitempty"`
		Successor   *PeerStatus    `json:"successor,omitempty"`
		Draining    []PeerStatus   `json:"draining,omitempty"`
		LastFailure string         `json:"last_failure,omitempty"`
	}
	// SocketName names a socket.
	SocketName struct {
		Name    string `json:"name"`
		Kind    string `json:"kind"`
		Network string `json:"network,omitempty"`
		Address string `json:"address,omitempty"`
	}
	// SocketStatus is a socket as the kernel sees it.
	SocketStatus struct {
		SocketName
		Cookie  uint64 `json:"cookie"`
		Netns   uint64 `json:"netns_cookie,omitempty"`
		Queue   *int   `json:"accept_queue,omitempty"`
		Backlog *int   `json:"backlog,omitempty"`
	}
	// PeerStatus is another generation.
	PeerStatus struct {
		Generation uint64          `json:"generation"`
		Phase      string          `json:"phase"`
		Program    string          `json:"program,omitempty"`
		Build      string          `json:"build,omitempty"`
		PID        int             `json:"pid,omitempty"`
		Stats      Stats           `json:"stats"`
		Report     json.RawMessage `json:"report,omitempty"`
		Lost       bool            `json:"lost,omitempty"`
	}
)

// Cookie is a 64-bit kernel number, which travels as a decimal string.
type Cookie uint64

// MarshalText writes the cookie.
func (c Cookie) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(c), 10), nil }

// UnmarshalText reads a cookie.
func (c *Cookie) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 64)
	*c = Cookie(n)
	return err
}

// Decode parses one packet into a pointer to one of the frames. Members that
// version 1 does not know are ignored, types are not.
func Decode(p []byte) (any, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(p, &head); err != nil {
		return nil, fmt.Errorf("malformed frame: %w", err)
	}
	f := map[string]any{
		"hello": &Hello{}, "refuse": &Refuse{}, "welcome": &Welcome{}, "sockets": &Sockets{}, "received": &Received{},
		"ready": &Simple{}, "granted": &Granted{}, "alive": &Simple{}, "commit": &Simple{}, "rollback": &Simple{},
		"revoked": &Simple{}, "progress": &Progress{}, "connections": &Connections{}, "adopted": &Adopted{},
		"drained": &Drained{}, "status": &StatusPage{}, "ok": &Simple{},
	}[head.Type]
	if f == nil {
		return nil, fmt.Errorf("malformed frame: unknown type %.40q", head.Type)
	}
	if err := json.Unmarshal(p, f); err != nil {
		return nil, fmt.Errorf("malformed frame: %s: %w", head.Type, err)
	}
	return f, nil
}

// RefusedError is a refusal, sent or received.
type RefusedError struct{ Code, Message string }

func (e *RefusedError) Error() string { return fmt.Sprintf("refused (%s): %s", e.Code, e.Message) }
