package load

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
)

// outcome is how a request ended. Each has its counter in Result.
type outcome uint8

const (
	ok outcome = iota
	refused
	dialFailed
	reset
	eofBeforeAnswer
	eofInAnswer
	timedOut
	malformed
	wrongAnswer
	badStatus
	streamReset
	goAwayRefused
	behindClose
	otherError
	clientFault
	aborted
)

var outcomeNames = [...]string{
	ok:              "ok",
	refused:         "refused",
	dialFailed:      "dial failed",
	reset:           "reset",
	eofBeforeAnswer: "closed before the answer",
	eofInAnswer:     "closed in the answer",
	timedOut:        "timeout",
	malformed:       "malformed answer",
	wrongAnswer:     "wrong answer",
	badStatus:       "bad status",
	streamReset:     "stream reset",
	goAwayRefused:   "refused by GOAWAY",
	behindClose:     "behind an announced close",
	otherError:      "other error",
	clientFault:     "client fault",
	aborted:         "aborted",
}

func (o outcome) String() string { return outcomeNames[o] }

// failed reports whether o is the server's failure.
func (o outcome) failed() bool { return o != ok && o != clientFault && o != aborted }

// connectionOver reports whether o says that the server ended the connection.
func (o outcome) connectionOver() bool {
	return o == reset || o == eofBeforeAnswer || o == eofInAnswer
}

// behind is the outcome of requests that were pipelined behind one that ended
// in o, which was the end of the connection.
func (o outcome) behind() outcome {
	if o == eofInAnswer {
		return eofBeforeAnswer
	}
	return o
}

// outcomeOfDial is the outcome of a request whose connection was not made.
func outcomeOfDial(ctx context.Context, err error) outcome {
	switch {
	case isOne(err, ownErrnos):
		return clientFault
	case isOne(err, refusedErrnos):
		return refused
	case isOne(err, resetErrnos):
		return reset
	case ctx.Err() != nil:
		return aborted
	case isTimeout(err):
		return timedOut
	}
	return dialFailed
}

// outcomeOfIO is the outcome of a request whose connection failed while it
// was in use; atEOF is the one for a connection that simply ended.
func outcomeOfIO(ctx context.Context, err error, atEOF outcome) outcome {
	switch {
	case isTimeout(err):
		if ctx.Err() != nil {
			return aborted
		}
		return timedOut
	case isOne(err, resetErrnos), errors.Is(err, io.ErrClosedPipe):
		return reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return atEOF
	}
	return otherError
}

func isOne(err error, errnos []error) bool {
	return slices.ContainsFunc(errnos, func(e error) bool { return errors.Is(err, e) })
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout() ||
		errors.Is(err, context.DeadlineExceeded) || isOne(err, timeoutErrnos)
}
