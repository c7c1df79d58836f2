package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/handoverd/handoverd/handover"
)

// The exit codes.
const (
	exitDone       = 0
	exitFailure    = 1
	exitUsage      = 2
	exitNobody     = 3
	exitRefused    = 4
	exitStuck      = 5
	exitRolledBack = 6
)

// A usageError is the caller's mistake.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// A codeError ends the program with a code of its own.
type codeError struct {
	error
	code int
}

func (e codeError) Unwrap() error { return e.error }

// exitCode maps an error to the exit code. It is the only place that does.
func exitCode(err error) int {
	var (
		usage   usageError
		code    codeError
		refused *handover.RefusedError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &code):
		return code.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, handover.ErrRolledBack), errors.Is(err, handover.ErrRevoked):
		return exitRolledBack
	case errors.Is(err, handover.ErrNoOwner), errors.Is(err, handover.ErrNoHolder):
		return exitNobody
	case errors.Is(err, handover.ErrStuck):
		return exitStuck
	case errors.As(err, &refused), errors.Is(err, handover.ErrOwned),
		errors.Is(err, handover.ErrForeignNetns), errors.Is(err, handover.ErrUntrustedOwner),
		errors.Is(err, handover.ErrNotPermitted), errors.Is(err, handover.ErrUnclaimed):
		return exitRefused
	}
	return exitFailure
}

// describe is the one line that people get to read.
func describe(err error) string {
	text := strings.TrimPrefix(err.Error(), "handover: ")
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
	var refused *handover.RefusedError
	switch {
	case errors.As(err, &refused):
		text = refused.Error() // at which step does not matter
	case errors.Is(err, handover.ErrNoOwner):
		text += "; start one with \"handoverd serve\", or name its socket with --socket"
	case errors.Is(err, handover.ErrNoHolder):
		text += "; start one with \"handoverd hold\", or give --wait"
	case errors.Is(err, handover.ErrUnclaimed):
		text += "; name each with --listen, or give --unclaimed close or keep"
	case errors.Is(err, handover.ErrRolledBack), errors.Is(err, handover.ErrRevoked):
		text += ", which serves on"
	case errors.Is(err, handover.ErrPredecessorDied):
		text += "; try again with --or-serve, which then starts afresh"
	case errors.Is(err, handover.ErrStuck) && !strings.Contains(text, "continue it"):
		text += "; if the owner is stopped, continue it, else end it and start afresh"
	case errors.Is(err, context.Canceled):
		text = "interrupted: " + text
	}
	return text
}
