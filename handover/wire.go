package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/handoverd/handoverd/scm"
)

// Limits of the wire format. A peer that passes one of them is disconnected.
const (
	maxFrame     = 64 << 10 // bytes of one packet
	maxBatchJSON = 48 << 10 // bytes of items in one sockets frame, leaving room for the envelope
	maxItems     = 1 << 16  // descriptors of one generation
	maxName      = 128      // bytes of a name
	maxAddress   = 300      // bytes of an address: a host name of 253, or a path of 108
	maxText      = 4 << 10  // bytes of any other text: program, build, message
	maxState     = 64 << 20 // bytes of one state blob
	maxMoved     = 32 << 10 // bytes of unread data and state of one connection that is moved
)

// protocolVersions lists what this package speaks, best first.
var protocolVersions = []int{1}

// Intents of a hello frame.
const (
	intentTakeover = "takeover"
	intentStatus   = "status"
	intentStop     = "stop"
	intentCommit   = "commit"
	intentRollback = "rollback"
	intentBorrow   = "borrow" // copies of a holder's sockets; the holder keeps them
	intentReport   = "report" // a draining predecessor that reports to the current owner
)

// Frames of protocol version 1. Every frame is one packet: one JSON object
// whose first member is its type. Durations are whole milliseconds. Unknown
// members are ignored, an unknown type is an error.
type (
	frameHello struct {
		Type       string `json:"type"`
		Protocols  []int  `json:"protocols"`
		Intent     string `json:"intent"`
		Program    string `json:"program,omitempty"`
		Build      string `json:"build,omitempty"`
		PID        int    `json:"pid,omitempty"` // for people; never used as an identity
		Revision   uint64 `json:"revision,omitempty"`
		Force      bool   `json:"force,omitempty"`
		Probation  millis `json:"probation_ms,omitempty"`
		Generation uint64 `json:"generation,omitempty"` // intent report: who reports
		Moves      bool   `json:"moves,omitempty"`      // takes connections, or in a report would like to send them
	}
	frameRefuse struct {
		Type    string `json:"type"`
		Code    Code   `json:"code"`
		Message string `json:"message"`
	}
	frameWelcome struct {
		Type         string `json:"type"`
		Protocol     int    `json:"protocol"`
		Generation   uint64 `json:"generation"` // the owner's
		Next         uint64 `json:"next"`       // what the successor's will be
		Attempt      uint64 `json:"attempt"`    // as the ownership word names it
		Count        int    `json:"count"`      // items that follow
		Program      string `json:"program,omitempty"`
		Build        string `json:"build,omitempty"`
		PID          int    `json:"pid,omitempty"` // for people; never used as an identity
		Revision     uint64 `json:"revision,omitempty"`
		ReadyTimeout millis `json:"ready_timeout_ms"`
		Probation    millis `json:"probation_ms"`
		AliveEvery   millis `json:"alive_every_ms"`
	}
	frameSockets struct {
		Type  string `json:"type"`
		First int    `json:"first"`
		Items []item `json:"items"`
	}
	frameReceived struct {
		Type    string   `json:"type"`
		First   int      `json:"first"`
		Cookies []cookie `json:"cookies"`
	}
	frameGranted struct {
		Type       string `json:"type"`
		Generation uint64 `json:"generation"`
		Settled    bool   `json:"settled,omitempty"` // no probation: the predecessor is leaving
		// For the receipt: nanoseconds since 1970 of when accept was paused, and
		// of the last one before that; 0 if there was none.
		Paused     int64 `json:"paused_ns,omitempty"`
		LastAccept int64 `json:"last_accept_ns,omitempty"`
	}
	// frameSimple is a frame that is only its type: ready, alive, commit,
	// rollback, revoked, ok.
	frameSimple struct {
		Type    string `json:"type"`
		Message string `json:"message,omitempty"` // for people: why a rollback
	}
	frameProgress struct {
		Type       string `json:"type"`
		Generation uint64 `json:"generation"`
		Stats
	}
	frameDrained struct {
		Type       string          `json:"type"`
		Generation uint64          `json:"generation"`
		Report     json.RawMessage `json:"report,omitempty"`
	}
	// frameConnections moves connections, each with its descriptor.
	frameConnections struct {
		Type      string      `json:"type"`
		Items     []movedItem `json:"items"`
		Withdrawn uint64      `json:"withdrawn,omitempty"` // the sender's counter: word.withdrawals

		fds []int // as received; whoever has the frame closes them
	}
	// movedItem describes one connection on its way.
	movedItem struct {
		Listener string `json:"listener"`         // name of the socket that it was accepted from
		Cookie   cookie `json:"cookie"`           // SO_COOKIE
		Unread   []byte `json:"unread,omitempty"` // bytes that were read and belong to the successor
		State    []byte `json:"state,omitempty"`  // the application's
	}
	// frameAdopted says which of the connections of one frame were taken. The
	// others stay with the sender.
	frameAdopted struct {
		Type    string   `json:"type"`
		Cookies []cookie `json:"cookies,omitempty"`
		Stop    string   `json:"stop,omitempty"` // why no more should be sent
	}
	frameStatus struct {
		Type   string `json:"type"`
		Status Status `json:"status"`
		More   bool   `json:"more,omitempty"` // further frames carry further sockets
	}
)

// millis is a duration that travels as whole milliseconds.
type millis time.Duration

func (m millis) MarshalJSON() ([]byte, error) {
	return strconv.AppendInt(nil, time.Duration(m).Milliseconds(), 10), nil
}

func (m *millis) UnmarshalJSON(b []byte) error {
	var n int64
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	if n < 0 || n > int64(1<<53)/int64(time.Millisecond) {
		return fmt.Errorf("duration of %d ms out of range", n)
	}
	*m = millis(time.Duration(n) * time.Millisecond)
	return nil
}

// cookie is a 64-bit kernel number that travels as a string, since JSON
// numbers lose precision above 2^53 in many languages.
type cookie uint64

// MarshalText writes the cookie in decimal.
func (c cookie) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(c), 10), nil }

// UnmarshalText reads what MarshalText wrote.
func (c *cookie) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return fmt.Errorf("bad cookie: %w", err)
	}
	*c = cookie(n)
	return nil
}

const (
	typeHello    = "hello"
	typeRefuse   = "refuse"
	typeWelcome  = "welcome"
	typeSockets  = "sockets"
	typeReceived = "received"
	typeReady    = "ready"
	typeGranted  = "granted"
	typeAlive    = "alive"
	typeCommit   = "commit"
	typeRollback = "rollback"
	typeRevoked  = "revoked"
	typeProgress = "progress"
	typeDrained  = "drained"
	typeStatus   = "status"
	typeMoved    = "connections"
	typeAdopted  = "adopted"
	typeOK       = "ok"
)

var errFrame = errors.New("malformed frame")

// decodeFrame parses one packet into a pointer to one of the frame structs
// and checks what can be checked without context: lengths, ranges, names.
func decodeFrame(p []byte) (any, error) {
	if len(p) > maxFrame {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", errFrame, len(p), maxFrame)
	}
	typ, err := frameType(p)
	if err != nil {
		return nil, err
	}
	var f interface{ check() error }
	switch typ {
	case typeHello:
		f = new(frameHello)
	case typeRefuse:
		f = new(frameRefuse)
	case typeWelcome:
		f = new(frameWelcome)
	case typeSockets:
		f = new(frameSockets)
	case typeReceived:
		f = new(frameReceived)
	case typeGranted:
		f = new(frameGranted)
	case typeProgress:
		f = new(frameProgress)
	case typeDrained:
		f = new(frameDrained)
	case typeStatus:
		f = new(frameStatus)
	case typeMoved:
		f = new(frameConnections)
	case typeAdopted:
		f = new(frameAdopted)
	case typeReady, typeAlive, typeCommit, typeRollback, typeRevoked, typeOK:
		f = new(frameSimple)
	default:
		return nil, fmt.Errorf("%w: unknown type %.40q", errFrame, typ)
	}
	if err := json.Unmarshal(p, f); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errFrame, typ, err)
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errFrame, typ, err)
	}
	return f, nil
}

// frameType finds the type without decoding the rest, when it stands first,
// as this package writes it.
func frameType(p []byte) (string, error) {
	const prefix = `{"type":"`
	if bytes.HasPrefix(p, []byte(prefix)) {
		rest := p[len(prefix):min(len(p), len(prefix)+32)]
		if i := bytes.IndexByte(rest, '"'); i > 0 && bytes.IndexByte(rest[:i], '\\') < 0 {
			return string(rest[:i]), nil
		}
	}
	var f frameSimple
	if err := json.Unmarshal(p, &f); err != nil {
		return "", fmt.Errorf("%w: %w", errFrame, err)
	}
	return f.Type, nil
}

func encodeFrame(f any) ([]byte, error) {
	p, err := marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	if len(p) > maxFrame {
		return nil, fmt.Errorf("encode frame: %d bytes, the limit is %d", len(p), maxFrame)
	}
	return p, nil
}

// marshal is json.Marshal without escapes for HTML, which would make a frame
// longer than its texts.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func checkText(texts ...string) error {
	for _, s := range texts {
		if len(s) > maxText {
			return fmt.Errorf("text of %d bytes, the limit is %d", len(s), maxText)
		}
	}
	return nil
}

func (f *frameHello) check() error {
	if len(f.Protocols) > 64 {
		return fmt.Errorf("%d protocols", len(f.Protocols))
	}
	return checkText(f.Intent, f.Program, f.Build)
}
func (f *frameRefuse) check() error { return checkText(string(f.Code), f.Message) }
func (f *frameWelcome) check() error {
	if f.Count < 1 || f.Count > maxItems {
		return fmt.Errorf("count %d out of range", f.Count)
	}
	if f.Next <= f.Generation || f.Next > maxGeneration || f.Attempt > attemptMask {
		return fmt.Errorf("next generation %d after %d, attempt %d", f.Next, f.Generation, f.Attempt)
	}
	if time.Duration(f.Probation) > maxProbation || time.Duration(f.AliveEvery) < time.Millisecond {
		return fmt.Errorf("probation of %v with heartbeats every %v", time.Duration(f.Probation), time.Duration(f.AliveEvery))
	}
	return checkText(f.Program, f.Build)
}
func (f *frameSockets) check() error {
	if f.First < 0 || f.First >= maxItems || len(f.Items) == 0 || len(f.Items) > maxItems-f.First {
		return fmt.Errorf("first %d with %d items out of range", f.First, len(f.Items))
	}
	for i := range f.Items {
		if err := f.Items[i].check(); err != nil {
			return err
		}
	}
	return nil
}
func (f *frameReceived) check() error {
	if f.First < 0 || f.First >= maxItems {
		return fmt.Errorf("first %d out of range", f.First)
	}
	return nil
}
func (f *frameGranted) check() error  { return nil }
func (f *frameSimple) check() error   { return checkText(f.Message) }
func (f *frameProgress) check() error { return f.Stats.check() }
func (f *frameDrained) check() error  { return nil }
func (f *frameStatus) check() error   { return nil }
func (f *frameConnections) check() error {
	if len(f.Items) == 0 || len(f.Items) > scm.MaxFDs {
		return fmt.Errorf("%d connections", len(f.Items))
	}
	for _, it := range f.Items {
		if err := CheckName(it.Listener); err != nil {
			return err
		}
	}
	return nil
}
func (f *frameAdopted) check() error {
	if len(f.Cookies) > scm.MaxFDs {
		return fmt.Errorf("%d cookies", len(f.Cookies))
	}
	return checkText(f.Stop)
}
