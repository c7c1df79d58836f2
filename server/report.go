package server

import (
	"fmt"
	"strings"
	"time"
)

// Counts is how many connections are open, by what net/http knows of them. A
// connection is in exactly one of the four.
type Counts struct {
	New      int `json:"new"`      // accepted, no request yet
	Active   int `json:"active"`   // a request is being answered
	Idle     int `json:"idle"`     // between two requests
	Hijacked int `json:"hijacked"` // taken over by a handler and not yet closed

	// Oldest is for how long the longest of the active connections has been
	// active: with HTTP/1 that is the age of its request.
	Oldest time.Duration `json:"oldest_ns"`

	// Draining reports whether the drain has begun. If so, Lingering is how
	// many of the new and idle ones wait to be used once more, and the others
	// say what has become of connections since, as in Report.
	Draining  bool `json:"draining"`
	Lingering int  `json:"lingering,omitempty"`
	Moved     int  `json:"moved,omitempty"`
	Finished  int  `json:"finished,omitempty"`
	Closed    int  `json:"closed,omitempty"`
	Killed    int  `json:"killed,omitempty"`
}

// Open is the number of open connections.
func (c Counts) Open() int { return c.New + c.Active + c.Idle + c.Hijacked }

// A Report says what became of the connections that were open when a drain
// began, or that were accepted as it began. Moved, Finished, Closed and Killed
// add up to all of them.
type Report struct {
	// Moved were given to the successor, alive.
	Moved int `json:"moved"`

	// Finished ended by themselves: their last request was answered with
	// Connection: close, HTTP/2 had its GOAWAY, the handler that had hijacked
	// them closed them, or the client left.
	Finished int `json:"finished"`

	// Closed were idle or had never sent anything, and were closed when
	// their linger time, or the stop timeout, was over.
	Closed int `json:"closed"`

	// Killed were closed in the middle of something when the stop timeout
	// was over or the context of Stop ended.
	Killed int `json:"killed"`

	// Hijacked is how many of all these had been hijacked.
	Hijacked int `json:"hijacked"`

	// Remaining is the number of handlers and hooks that were still running
	// when Stop returned.
	Remaining int `json:"remaining"`

	// Stuck is the number of connections and listeners that could not be got
	// rid of: their Close had not returned when Stop did.
	Stuck int `json:"stuck"`

	// Duration is how long the whole stop took.
	Duration time.Duration `json:"duration_ns"`
}

func (r *Report) count(o outcome) {
	switch o {
	case moved:
		r.Moved++
	case finished:
		r.Finished++
	case closed:
		r.Closed++
	case killed:
		r.Killed++
	}
}

// Connections is the number of connections that the report accounts for.
func (r Report) Connections() int { return r.Moved + r.Finished + r.Closed + r.Killed }

// Clean reports whether nothing was cut off and nothing is left.
func (r Report) Clean() bool { return r.Killed == 0 && r.Remaining == 0 && r.Stuck == 0 }

// String is one line for people.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "drained %d connections in %v: %d moved, %d finished, %d closed idle, %d killed",
		r.Connections(), r.Duration.Round(time.Millisecond), r.Moved, r.Finished, r.Closed, r.Killed)
	if r.Hijacked > 0 {
		fmt.Fprintf(&b, " (%d of them hijacked)", r.Hijacked)
	}
	if r.Remaining > 0 {
		fmt.Fprintf(&b, "; %d handlers still running", r.Remaining)
	}
	if r.Stuck > 0 {
		fmt.Fprintf(&b, "; %d could not be closed", r.Stuck)
	}
	return b.String()
}

// A stopError is what Shutdown makes of a report that is not clean.
type stopError struct {
	report Report
	cause  error // of the context; may be nil
}

func (e *stopError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("server: %v: %v", e.cause, e.report)
	}
	return fmt.Sprintf("server: %v", e.report)
}

func (e *stopError) Unwrap() error { return e.cause }
