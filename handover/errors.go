package handover

import (
	"errors"
	"fmt"
	"strings"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNoOwner: nobody owns the control socket, and Config.Mode is TakeOverOnly.
	ErrNoOwner = errors.New("nobody to take over from")
	// ErrOwned: somebody alive owns the control socket, and Config.Mode is StartOnly.
	ErrOwned = errors.New("the control socket is owned by a live process")
	// ErrNoHolder: nobody owns the control socket that Config.Holder names.
	ErrNoHolder = errors.New("no holder to get sockets from")
	// ErrStuck: the predecessor is alive but does not answer in time.
	ErrStuck = errors.New("predecessor does not answer")
	// ErrPredecessorDied: the predecessor ended before it had passed all its sockets.
	ErrPredecessorDied = errors.New("predecessor died before its sockets were received")
	// ErrForeignNetns: the sockets belong to another network namespace.
	ErrForeignNetns = errors.New("sockets belong to another network namespace")
	// ErrUntrustedOwner: the control socket belongs to a user who is not permitted.
	ErrUntrustedOwner = errors.New("control socket belongs to another user")
	// ErrNotPermitted: this user may not open the control socket.
	ErrNotPermitted = errors.New("not permitted to open the control socket")
	// ErrNotFound: the predecessor handed over nothing under that name.
	ErrNotFound = errors.New("nothing inherited under that name")
	// ErrUnclaimed: something was inherited that nobody has asked for, and
	// Config.Unclaimed is RefuseUnclaimed.
	ErrUnclaimed = errors.New("inherited and not asked for")
	// ErrClosed: the generation is closed.
	ErrClosed = errors.New("generation is closed")

	// ErrSuperseded: a successor owns the sockets for good.
	ErrSuperseded = errors.New("superseded by a successor")
	// ErrStopRequested: Stop was called, or an operator asked for it.
	ErrStopRequested = errors.New("stop requested")
	// ErrRolledBack: in probation the sockets were given back to the predecessor.
	ErrRolledBack = errors.New("rolled back to the predecessor")
	// ErrRevoked: in probation the predecessor took the sockets back, because
	// this generation had fallen silent or broken the protocol.
	ErrRevoked = errors.New("ownership was revoked by the predecessor")
)

// Code says why an owner refused.
type Code string

// The codes of a refusal.
const (
	CodeUnauthorized Code = "unauthorized" // the peer's uid is not permitted
	CodeBusy         Code = "busy"         // another takeover is under way; try again later
	CodeNotReady     Code = "not_ready"    // the owner itself is not ready; try again later
	CodeVersion      Code = "version"      // no protocol in common
	CodeRevision     Code = "revision"     // the successor's revision is lower than the owner's
	CodeLimit        Code = "limit"        // too much of something
	CodeTimeout      Code = "timeout"      // not ready in time
	CodeStopping     Code = "stopping"     // the owner ends
	CodeProtocol     Code = "protocol"     // the peer broke the protocol
	CodeState        Code = "state"        // that cannot be done in the owner's present phase
	CodeInternal     Code = "internal"     // the owner could not, for a reason of its own
)

// Temporary tells whether trying again soon makes sense.
func (c Code) Temporary() bool { return c == CodeBusy || c == CodeNotReady }

// A RefusedError is an owner's refusal.
type RefusedError struct {
	Code    Code
	Message string // says what to do
}

func (e *RefusedError) Error() string { return fmt.Sprintf("refused (%s): %s", e.Code, e.Message) }

func refusef(code Code, format string, args ...any) *RefusedError {
	return &RefusedError{Code: code, Message: shorten(fmt.Sprintf(format, args...))}
}

// shorten cuts a text for the wire, where each byte may need six.
func shorten(s string) string {
	const limit = 2000
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}
