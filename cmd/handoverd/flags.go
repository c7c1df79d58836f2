package main

import (
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/handoverd/handoverd/handover"
)

// options are the flags of all commands. Each command registers the ones that
// it has a use for.
type options struct {
	socket  string
	allowed uidList

	listen       listenList
	drainTimeout duration
	killTimeout  duration
	linger       optionalDuration
	noMigrate    bool
	readyTimeout duration
	probation    duration
	aliveTimeout duration
	stepTimeout  duration
	revision     uint64
	force        bool
	foreignNetns choice
	unclaimed    choice
	receipt      string
	logFormat    choice
	logLevel     choice
	root         string
	proxy        string
	tlsCert      string
	tlsKey       string

	holder     string
	holds      bool // this process is a holder
	fdStore    bool
	afterDrain choice
	argv       []string // the program that serves, with its arguments
	ready      readiness
	customs    customList
	stopSignal signalFlag
	restart    choice

	orServe bool
	wait    duration

	json  bool
	watch bool
}

// newOptions has the defaults.
func newOptions() *options {
	return &options{
		socket:       "/run/handoverd.sock",
		drainTimeout: duration(time.Minute),
		killTimeout:  duration(time.Minute),
		readyTimeout: duration(handover.DefaultReadyTimeout),
		probation:    duration(handover.DefaultProbation),
		aliveTimeout: duration(handover.DefaultAliveTimeout),
		stepTimeout:  duration(handover.DefaultStepTimeout),
		foreignNetns: choice{"refuse", []string{"refuse", "allow"}},
		unclaimed:    choice{"close", []string{"close", "keep", "refuse"}},
		afterDrain:   choice{"exit", []string{"exit", "park"}},
		restart:      choice{"always", []string{"always", "on-failure", "never"}},
		logFormat:    choice{"text", []string{"text", "json"}},
		logLevel:     choice{"", []string{"debug", "info", "warn", "error"}},
	}
}

// addSocket registers what every command needs that talks to an owner.
func (o *options) addSocket(f *pflag.FlagSet) {
	f.StringVar(&o.socket, "socket", o.socket, "`PATH` of the control socket")
	f.Var(&o.allowed, "allow-uid", "another user, besides this one and root, to trust at the control socket; repeatable")
}

// addTakeover registers what decides whether a takeover is accepted.
func (o *options) addTakeover(f *pflag.FlagSet) {
	f.Var(&o.listen, "listen", "`[NAME=]URL` to listen on: tcp://HOST:PORT, also tcp4, tcp6, udp, unix:///PATH, unix:@NAME, unixpacket, unixgram; repeatable")
	f.Uint64Var(&o.revision, "revision", 0, "revision `N` of what is served; an owner refuses a successor with a lower one")
	f.BoolVar(&o.force, "force", false, "take over in spite of a lower revision")
	f.Var(&o.unclaimed, "unclaimed", "what becomes of inherited sockets that --listen does not name: close them, keep them unused for the next successor, or refuse to take over")
	f.Var(&o.foreignNetns, "foreign-netns", "refuse or allow to take over sockets of another network namespace")
}

// addServing registers what serve and takeover share.
func (o *options) addServing(f *pflag.FlagSet) {
	o.addSocket(f)
	o.addTakeover(f)
	o.addGeneration(f)
	o.addProgram(f)
	f.StringVar(&o.holder, "holder", "", "a first generation gets its sockets from the holder whose control socket is at `PATH`")
	f.Var(&o.wait, "wait", "how long to try again while the owner is busy or not ready itself, or the holder is not there")
	f.Var(&o.drainTimeout, "drain-timeout", "how long a drain may take before what is left is closed, or the program is killed; 0: no time at all")
	f.Var(&o.killTimeout, "kill-timeout", "how long to wait then for handlers to return")
	f.Var(&o.linger, "linger", "how long an idle connection stays open during a drain, to be used once more (default: as long as the drain may take)")
	f.BoolVar(&o.noMigrate, "no-migrate", false, "drain idle connections where they are, instead of moving them alive to the successor, or from the predecessor")
	f.StringVar(&o.root, "root", "", "serve the files below `DIR` instead of the built-in site")
	f.StringVar(&o.proxy, "proxy", "", "pass requests on to `URL` instead of serving the built-in site")
	f.StringVar(&o.tlsCert, "tls-cert", "", "`FILE` with the certificate chain, for TLS on all stream listeners")
	f.StringVar(&o.tlsKey, "tls-key", "", "`FILE` with the key of the certificate")
}

// addGeneration registers what everybody shares who may own sockets.
func (o *options) addGeneration(f *pflag.FlagSet) {
	f.Var(&o.readyTimeout, "ready-timeout", "how long a successor of this process, or its own program, may take to be ready")
	f.Var(&o.probation, "probation", "how long after a takeover the predecessor stands by to take the sockets back; 0: not at all")
	f.Var(&o.aliveTimeout, "alive-timeout", "how long a successor on probation may be silent before this process takes the sockets back")
	f.Var(&o.stepTimeout, "step-timeout", "how long a step of a takeover may take for which the other side has to do nothing but answer")
	f.Var(&o.afterDrain, "after-drain", "what to do when a successor has taken over and the drain is done: exit, or park without sockets until SIGTERM, for engines that restart whatever exits")
	f.StringVar(&o.receipt, "receipt", "", "write a record of the takeover, as JSON, to `FILE`")
	f.Var(&o.logFormat, "log-format", "text or json")
	f.Var(&o.logLevel, "log-level", "debug, info, warn or error (default info, on a terminal warn)")
}

// complete registers what a shell can offer for a flag's value.
func complete(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if c, ok := f.Value.(*choice); ok {
			// The one error there is, a second registration, cannot be.
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(c.of, cobra.ShellCompDirectiveNoFileComp))
		}
	})
}

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "HANDOVERD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// exclusive are flags of which the one on the command line silences the other
// one's variable.
func exclusive(flag string) string {
	switch flag {
	case "root":
		return "proxy"
	case "proxy":
		return "root"
	}
	return ""
}

// fromEnvironment gives flags that are not on the command line the values of
// their variables. An empty variable counts as none.
func fromEnvironment(flags *pflag.FlagSet) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		text := os.Getenv(variable(f.Name))
		if err != nil || text == "" || f.Changed || f.Name == "help" {
			return
		}
		if other := flags.Lookup(exclusive(f.Name)); other != nil && other.Changed {
			return
		}
		values := []string{text}
		if _, ok := f.Value.(repeatable); ok {
			values = strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' || r == '\n' })
		}
		for _, v := range values {
			if e := f.Value.Set(v); e != nil {
				err = usagef("environment variable %s: %w", variable(f.Name), e)
				return
			}
		}
	})
	return err
}

// shortest is the shortest timeout that package handover takes.
const shortest = 10 * time.Millisecond

// finish reads the environment and checks what single flags cannot.
func (o *options) finish(cmd *cobra.Command) error {
	if err := fromEnvironment(cmd.Flags()); err != nil {
		return err
	}
	if err := nameListeners(o.listen.specs); err != nil {
		return err
	}
	if err := o.checkProgram(cmd.Flags()); err != nil {
		return err
	}
	switch {
	case o.socket == "":
		return usagef("--socket: no path given")
	case o.root != "" && o.proxy != "":
		return usagef("--root and --proxy exclude each other: give one of them")
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return usagef("--tls-cert and --tls-key belong together: give both, or none")
	}
	for name, d := range map[string]duration{"ready-timeout": o.readyTimeout, "alive-timeout": o.aliveTimeout, "step-timeout": o.stepTimeout} {
		if time.Duration(d) < shortest {
			return usagef("--%s of %v is too short: %v at least", name, time.Duration(d), shortest)
		}
	}
	for _, l := range o.listen.specs {
		if !o.moves() {
			break // whatever it is can be held, or inherited by a program
		}
		if err := o.mayServe(l.name, l.network); err != nil {
			return err
		}
	}
	return nil
}

// mayServe tells whether what is served goes with a socket.
func (o *options) mayServe(name, network string) error {
	what := "--root"
	if o.proxy != "" {
		what = "--proxy"
	}
	if isPacket(network) && (o.root != "" || o.proxy != "") {
		return usagef("listener %s: %s serves no packets, but this is a %s socket: leave one of them out; with --listen a takeover keeps only what it names", name, what, network)
	}
	return nil
}

// moves tells whether connections can move: those of another program cannot.
func (o *options) moves() bool { return !o.holds && len(o.argv) == 0 }

// unclaimedPolicy is --unclaimed as package handover calls it.
func (o *options) unclaimedPolicy() handover.Unclaimed {
	switch o.unclaimed.value {
	case "keep":
		return handover.KeepUnclaimed
	case "refuse":
		return handover.RefuseUnclaimed
	}
	return handover.CloseUnclaimed
}

// level is the log level for a terminal, or for something else.
func (o *options) level(terminal bool) slog.Level {
	var l slog.Level
	switch {
	case o.logLevel.value != "":
		// Only the four words that slog knows get here.
		_ = l.UnmarshalText([]byte(o.logLevel.value))
	case terminal:
		l = slog.LevelWarn
	}
	return l
}

func (o *options) operator() handover.Operator {
	return handover.Operator{Socket: o.socket, AllowUIDs: o.allowed.uids}
}
