package child

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Defaults of Config.
const (
	DefaultStopTimeout  = time.Minute
	DefaultReadyTimeout = time.Minute
	DefaultMinBackoff   = 100 * time.Millisecond
	DefaultMaxBackoff   = 10 * time.Second
	DefaultResetAfter   = 10 * time.Second
)

// A Socket is one that the program inherits.
type Socket struct {
	Name    string // printable ASCII without ':', at most 255 bytes; see sd_listen_fds_with_names(3)
	Network string // as of net.Listen: tcp, udp, unix, ...
	Address string // as its Addr().String(): "127.0.0.1:8080", "[::]:80", "/run/app", "@abstract"

	// Duplicate gives a new descriptor of the socket, close-on-exec, which is
	// closed here. It is called before each start.
	Duplicate func() (fd int, err error)
}

// packet tells whether the socket carries packets and not connections.
func (s Socket) packet() bool {
	return strings.HasPrefix(s.Network, "udp") || s.Network == "unixgram" || strings.HasPrefix(s.Network, "ip")
}

// A Policy says which deaths of a supervised program lead to a restart.
type Policy int

// The policies.
const (
	RestartAlways    Policy = iota // also after exit status 0: its sockets would have nobody
	RestartOnFailure               // unless it exits with status 0
	RestartNever
)

// Config says what to run and how. Only Argv is required.
type Config struct {
	// Argv is the command with its arguments. A name without a slash is looked
	// up in the PATH of Env. One with a slash is relative to Dir.
	Argv []string

	// Dir is the working directory. Default: that of this process.
	Dir string

	// Env is the environment to begin with. Default: os.Environ(). What
	// concerns the customs here is removed from it.
	Env []string

	// Sockets become the descriptors 3, 4, ... of the program.
	Sockets []Socket

	// Customs tell the program of its sockets, besides systemd's.
	Customs []Custom

	// Generation is told by the server-starter custom. Default: 1.
	Generation uint64

	// Ready says how to know that the program serves. The zero value: it runs.
	Ready Readiness

	// ReadyTimeout is for how long it may take to get ready. It can be extended
	// by EXTEND_TIMEOUT_USEC with the readiness `notify`. Default: a minute.
	// Negative: for ever.
	ReadyTimeout time.Duration

	// StopSignal asks the program to stop. Default: SIGTERM.
	StopSignal syscall.Signal

	// StopTimeout is the time from StopSignal to SIGKILL. Default: a minute.
	// Negative: no time at all, the program is killed at once.
	StopTimeout time.Duration

	// DeathSignal is what the kernel sends to the program when this process
	// dies. Default: StopSignal. Negative: nothing, and the program lives on,
	// its standard error going nowhere unless DirectStderr.
	DeathSignal syscall.Signal

	// Stdout and Stderr default to those of this process. They are borrowed.
	Stdout, Stderr *os.File

	// DirectStderr passes Stderr itself to the program, rather than a pipe
	// that is copied there.
	DirectStderr bool

	// Restart says which deaths of a supervised program lead to a restart.
	Restart Policy

	// RestartLimit is how many restarts in a row may fail to stay up for
	// ResetAfter before the program is given up. Default: any number.
	RestartLimit int

	// The pause before a restart doubles from MinBackoff to MaxBackoff, and
	// begins anew after the program was up for ResetAfter. Default: 100 ms,
	// 10 s, 10 s.
	MinBackoff, MaxBackoff, ResetAfter time.Duration

	// Logger gets the events. Nil is silent.
	Logger *slog.Logger

	// OnEvent gets the events, one at a time, in order. It has to return soon,
	// and must not call Stop or Supervise, which wait for it.
	OnEvent func(Event)
}

// withDefaults checks c and gives a copy of it that is complete.
func (c Config) withDefaults() (Config, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return c, errors.New("no command")
	}
	c.Argv = slices.Clone(c.Argv)
	c.Sockets = slices.Clone(c.Sockets)
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Dir != "" {
		dir, err := filepath.Abs(c.Dir)
		if err != nil {
			return c, err
		}
		c.Dir = dir
	}
	for _, s := range c.Sockets {
		if err := checkName(s.Name); err != nil {
			return c, err
		}
		if s.Duplicate == nil {
			return c, fmt.Errorf("socket %q has no descriptor", s.Name)
		}
	}
	for _, text := range append(slices.Clone(c.Argv), c.Env...) {
		if strings.ContainsRune(text, 0) {
			return c, fmt.Errorf("%q contains a zero byte", text)
		}
	}
	orDefault(&c.Generation, 1)
	orDefault(&c.ReadyTimeout, DefaultReadyTimeout)
	orDefault(&c.StopTimeout, DefaultStopTimeout)
	orDefault(&c.StopSignal, syscall.SIGTERM)
	orDefault(&c.DeathSignal, c.StopSignal)
	orDefault(&c.MinBackoff, DefaultMinBackoff)
	orDefault(&c.MaxBackoff, DefaultMaxBackoff)
	orDefault(&c.ResetAfter, DefaultResetAfter)
	if c.Stdout == nil {
		c.Stdout = os.Stdout
	}
	if c.Stderr == nil {
		c.Stderr = os.Stderr
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.Level(100)}))
	}
	return c, nil
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// checkName applies the rule of sd_pid_notify_with_fds(3) for FDNAME.
func checkName(name string) error {
	if len(name) > 255 {
		return fmt.Errorf("socket name %.20q... is longer than 255 bytes", name)
	}
	for _, r := range name {
		if r <= ' ' || r >= 127 || r == ':' {
			return fmt.Errorf("socket name %q: only printable ASCII without ':' and spaces", name)
		}
	}
	return nil
}

// backoff is the pause before the next restart, after so many in a row.
func (c *Config) backoff(failures int) time.Duration {
	d := c.MinBackoff
	for range failures {
		if d >= c.MaxBackoff/2 {
			return c.MaxBackoff
		}
		d *= 2
	}
	return min(d, c.MaxBackoff)
}
