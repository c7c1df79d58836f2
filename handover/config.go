package handover

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"
)

// Mode says what Start does with and without an owner at the control socket.
type Mode int

// The modes of Start.
const (
	TakeOverOrStart Mode = iota // take over if there is an owner, else start generation 1
	TakeOverOnly                // take over, or fail with ErrNoOwner
	StartOnly                   // start generation 1, or fail with ErrOwned
)

// Unclaimed says what becomes of what was inherited and not asked for.
type Unclaimed int

// What becomes of sockets and files that the application has not asked for
// when it says Ready. State blobs are dropped in any case.
const (
	CloseUnclaimed  Unclaimed = iota // closed, logged and told by Generation.Unclaimed
	KeepUnclaimed                    // kept without accepting from them: for a later Listen, and for the next successor
	RefuseUnclaimed                  // Ready fails with ErrUnclaimed
)

// Defaults of Config.
const (
	DefaultReadyTimeout = time.Minute
	DefaultProbation    = 3 * time.Second
	DefaultAliveTimeout = 3 * time.Second
	DefaultStepTimeout  = 5 * time.Second
)

// Config configures a generation. Only Socket is required.
type Config struct {
	// Socket is the path of the control socket. Its directory must exist. At
	// most 107 bytes (unix(7)).
	Socket string

	// Mode says whether to take over or to start afresh. The zero value does
	// whichever is possible.
	Mode Mode

	// Program and Build tell people who this is. Default: the name of the
	// executable, and the version of the main module.
	Program, Build string

	// Revision orders versions of the application: an owner refuses a
	// successor with a lower revision unless that one sets Force. It keeps an
	// engine that restarts the old container from stealing the sockets back.
	Revision uint64
	Force    bool

	// AllowUIDs are the users who may talk to this process besides its own
	// effective uid and root.
	AllowUIDs []uint32

	// ForeignNetns allows taking over sockets of another network namespace.
	// They go silent without an error when that namespace loses its device,
	// as a bridged container's does when the container is removed.
	ForeignNetns bool

	// Unclaimed says what becomes of what is inherited and not asked for. The
	// zero value closes it.
	Unclaimed Unclaimed

	// Lend makes this generation a holder: it gives copies of its sockets to
	// whoever names its control socket as Config.Holder, as often as they ask,
	// and stays their owner. A holder does not accept.
	Lend bool

	// Holder is the path of a holder's control socket. A first generation
	// inherits the sockets from there, so that they outlive it; a takeover has
	// no use for it. Empty: there is no holder.
	Holder string

	// NoMove keeps connections in the process that accepted them: this
	// generation neither gives live ones to its successor nor takes any.
	NoMove bool

	// ReadyTimeout is how long a successor of this generation may take to be
	// ready, from when it has received everything; and how long all offers
	// of state may take together before that. Zero: DefaultReadyTimeout.
	ReadyTimeout time.Duration

	// Probation is how long after being granted ownership this generation
	// can still lose it to its predecessor, if it dies, falls silent or asks
	// for it. Zero: DefaultProbation; negative: none. At most an hour.
	Probation time.Duration

	// AliveTimeout is how long a successor in probation may be silent before
	// this generation takes the sockets back. Zero: DefaultAliveTimeout.
	AliveTimeout time.Duration

	// StepTimeout bounds each single step of the protocol that needs nothing
	// but an answer. Zero: DefaultStepTimeout.
	StepTimeout time.Duration

	// ListenConfig makes the listeners and packet sockets that were not
	// inherited.
	ListenConfig net.ListenConfig

	// Record keeps what Generation.Receipt tells of the accept queues, which
	// costs a system call for each listener while accept is paused.
	Record bool

	// Stats, if set, tells of the application's connections, for status and
	// for the successor while this generation drains. It must not block, nor
	// call the Generation.
	Stats func() Stats

	// OnEvent, if set, is told of what happens. It must not block, nor call
	// the Generation.
	OnEvent func(Event)

	// Logger gets structured log lines. Nil is silent.
	Logger *slog.Logger

	protocols   []int         // for tests of negotiation; default: protocolVersions
	moveTimeout time.Duration // for tests: StepTimeout where it is about connections
}

const maxProbation = time.Hour

func (c Config) withDefaults() (Config, error) {
	for _, d := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
	}{
		{"ReadyTimeout", &c.ReadyTimeout, DefaultReadyTimeout},
		{"AliveTimeout", &c.AliveTimeout, DefaultAliveTimeout},
		{"StepTimeout", &c.StepTimeout, DefaultStepTimeout},
	} {
		if *d.v < 0 {
			return c, fmt.Errorf("%s is negative", d.name)
		}
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 10*time.Millisecond {
			return c, fmt.Errorf("%s of %v is too short: 10ms at least", d.name, *d.v)
		}
	}
	switch {
	case c.Probation == 0:
		c.Probation = DefaultProbation
	case c.Probation < 0:
		c.Probation = 0
	case c.Probation > maxProbation:
		return c, fmt.Errorf("probation of %v is too long: %v at most", c.Probation, maxProbation)
	}
	if c.Unclaimed < CloseUnclaimed || c.Unclaimed > RefuseUnclaimed {
		return c, fmt.Errorf("Unclaimed is %d, which is none of its values", c.Unclaimed)
	}
	if c.Program == "" {
		c.Program = filepath.Base(os.Args[0])
	}
	if c.Build == "" {
		if bi, ok := debug.ReadBuildInfo(); ok {
			c.Build = bi.Main.Version
		}
	}
	if err := errors.Join(checkText(c.Program, c.Build)); err != nil {
		return c, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.moveTimeout == 0 {
		c.moveTimeout = c.StepTimeout
	}
	if c.protocols == nil {
		c.protocols = protocolVersions
	}
	return c, nil
}

// Stats tells of an application's connections.
type Stats struct {
	// Connections counts open connections by state, such as "active", "idle".
	Connections map[string]int64 `json:"connections,omitempty"`
	// Ended counts what has become of connections since the drain began, such
	// as "moved", "finished".
	Ended map[string]int64 `json:"ended,omitempty"`
	// Oldest is the age of the oldest request or connection in work.
	Oldest time.Duration `json:"oldest_ns,omitempty"`
	// Remaining is the time until the drain's deadline; zero if there is none.
	Remaining time.Duration `json:"remaining_ns,omitempty"`
}

func (s Stats) check() error {
	for _, m := range []map[string]int64{s.Connections, s.Ended} {
		if len(m) > 64 {
			return fmt.Errorf("%d connection states", len(m))
		}
		for k := range m {
			if len(k) > maxName {
				return fmt.Errorf("connection state with a name of %d bytes", len(k))
			}
		}
	}
	return nil
}

// Total is the number of open connections.
func (s Stats) Total() (n int64) {
	for _, c := range s.Connections {
		n += c
	}
	return n
}

// Event is something that happened to a generation.
type Event struct {
	Time       time.Time
	Generation uint64
	Phase      Phase       // after the event
	Cause      error       // why the phase was reached, where it is a loss or a failed takeover
	Peer       *PeerStatus // the predecessor that drains, or the successor that prepares
}
