package child

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotRunning: the program does not run at the moment, or has ended.
var ErrNotRunning = errors.New("program does not run")

// ErrNotReady: the program was not ready in time. It still runs.
var ErrNotReady = errors.New("program is not ready")

// A DeathError tells that the program ended by itself.
type DeathError struct {
	Exit  Exit
	Ready bool     // it was ready
	Lines []string // the last of what it wrote to its standard error
}

func (e *DeathError) Error() string {
	when := "before it was ready"
	if e.Ready {
		when = "unasked"
	}
	s := fmt.Sprintf("program ended %s: %v", when, e.Exit)
	if len(e.Lines) > 0 {
		s += fmt.Sprintf("; it said: %s", strings.Join(e.Lines, " | "))
	}
	return s
}
