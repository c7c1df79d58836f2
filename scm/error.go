package scm

import (
	"context"
	"errors"
	"io"
	"os"
)

// An opErr says which operation failed. It is not net.OpError, because that
// hides a context's error behind a time-out.
type opErr struct {
	op  string
	err error
}

func (e *opErr) Error() string { return "scm: " + e.op + ": " + e.err.Error() }
func (e *opErr) Unwrap() error { return e.err }

// Is makes a context's deadline also the deadline of package os, which is what
// callers used to net.Conn look for.
func (e *opErr) Is(target error) bool {
	return target == os.ErrDeadlineExceeded && errors.Is(e.err, context.DeadlineExceeded)
}

// opError wraps err, except io.EOF: it is the usual end and no failure.
func opError(op string, err error) error {
	if err == io.EOF {
		return err
	}
	return &opErr{op: op, err: err}
}
