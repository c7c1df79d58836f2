package child

import (
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"time"
)

// An EventKind is what an Event tells.
type EventKind int

// The kinds of events, and what else of the Event is set.
const (
	EventStarted    EventKind = iota // PID
	EventReady                       // PID, Took: since its start
	EventNotReady                    // PID, Err: not in time
	EventStatus                      // PID, Text: the program's STATUS=
	EventMainPID                     // PID: what the program says by MAINPID=
	EventReloading                   // PID: the program reloads its configuration
	EventStopping                    // PID: the program stops by its own decision
	EventSignalled                   // PID, Text: the signal that asks it to stop
	EventKilled                      // PID: killed, since it did not stop in time
	EventExited                      // PID, Exit, Took: since its start
	EventRestarting                  // Delay: until it is started again
	EventFailed                      // Err: it could not be started again
	EventGaveUp                      // Err: it is not started again
)

var eventTexts = map[EventKind]string{
	EventStarted:    "program started",
	EventReady:      "program ready",
	EventNotReady:   "program not ready in time",
	EventStatus:     "program status",
	EventMainPID:    "program told its main process",
	EventReloading:  "program reloads",
	EventStopping:   "program stops by itself",
	EventSignalled:  "program asked to stop",
	EventKilled:     "program killed",
	EventExited:     "program ended",
	EventRestarting: "program will be started again",
	EventFailed:     "program not started",
	EventGaveUp:     "program given up",
}

func (k EventKind) String() string {
	if s, ok := eventTexts[k]; ok {
		return s
	}
	return fmt.Sprintf("event %d", int(k))
}

// An Event is something that happened to the program.
type Event struct {
	Kind  EventKind
	PID   int
	Text  string
	Exit  *Exit
	Took  time.Duration
	Delay time.Duration
	Err   error
}

// String is the event for people.
func (e Event) String() string {
	var b strings.Builder
	b.WriteString(e.Kind.String())
	for _, a := range e.attrs() {
		fmt.Fprintf(&b, ", %s %v", a.Key, a.Value)
	}
	return b.String()
}

func (e Event) attrs() (attrs []slog.Attr) {
	if e.PID != 0 {
		attrs = append(attrs, slog.Int("pid", e.PID))
	}
	if e.Text != "" {
		attrs = append(attrs, slog.String("text", e.Text))
	}
	if e.Exit != nil {
		attrs = append(attrs, slog.String("state", e.Exit.String()))
	}
	if e.Took != 0 {
		attrs = append(attrs, slog.Duration("after", e.Took.Round(time.Millisecond)))
	}
	if e.Delay != 0 {
		attrs = append(attrs, slog.Duration("in", e.Delay))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", e.Err.Error()))
	}
	return attrs
}

func (e Event) level() slog.Level {
	switch e.Kind {
	case EventNotReady, EventKilled, EventRestarting:
		return slog.LevelWarn
	case EventFailed, EventGaveUp:
		return slog.LevelError
	case EventStatus, EventMainPID:
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// Exit is how a process ended.
type Exit struct {
	Status int            // exit status, if Signal is 0
	Signal syscall.Signal // that killed it
	Core   bool           // a core was dumped
}

// Code is the exit code that a shell would give: 128 + the signal if that
// killed the process.
func (e Exit) Code() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Status
}

// Success tells whether the exit status is 0.
func (e Exit) Success() bool { return e.Code() == 0 }

func (e Exit) String() string {
	if e.Signal == 0 {
		return fmt.Sprintf("exit status %d", e.Status)
	}
	s := fmt.Sprintf("killed by %s", signalName(e.Signal))
	if e.Core {
		s += " (core dumped)"
	}
	return s
}

// A Report is how a program was stopped.
type Report struct {
	Exit   *Exit         // how it ended; nil if it did not run at all
	Killed bool          // SIGKILL was needed
	Took   time.Duration // from the request to stop to its end
}
