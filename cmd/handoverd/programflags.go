package main

import (
	"os"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/handoverd/handoverd/internal/child"
)

// The values of flags that are about a program.
var (
	_ pflag.Value = (*readiness)(nil)
	_ pflag.Value = (*signalFlag)(nil)
	_ repeatable  = (*customList)(nil)
)

// readiness is --ready.
type readiness struct{ child.Readiness }

func (r *readiness) Set(text string) (err error) {
	r.Readiness, err = child.ParseReadiness(text)
	return err
}

func (r *readiness) String() string { return r.Readiness.String() }
func (r *readiness) Type() string   { return "HOW" }

// signalFlag is --stop-signal.
type signalFlag struct {
	signal syscall.Signal // 0: the default
	text   string
}

func (s *signalFlag) Set(text string) (err error) {
	s.signal, err = child.ParseSignal(text)
	s.text = text
	return err
}

func (s *signalFlag) String() string { return s.text }
func (s *signalFlag) Type() string   { return "SIGNAL" }

// customList is --env.
type customList struct {
	all   []child.Custom
	texts []string
}

func (l *customList) Set(text string) error {
	c, err := child.ParseCustom(text)
	if err == nil {
		l.all, l.texts = append(l.all, c), append(l.texts, text)
	}
	return err
}

func (l *customList) String() string { return strings.Join(l.texts, " ") }
func (l *customList) Type() string   { return "CUSTOM" }
func (l *customList) list() []string { return l.texts }

// addProgram registers what is about a program.
func (o *options) addProgram(f *pflag.FlagSet) {
	f.Var(&o.ready, "ready", "how to know that the program serves: `HOW` is notify (sd_notify), http://HOST:PORT/PATH, tcp://HOST:PORT, delay=2s, exec=CMD, or none")
	f.Var(&o.customs, "env", "how to tell the program of its sockets, besides LISTEN_FDS: `CUSTOM` is einhorn, server-starter, nginx, no-systemd, or NAME=TEXT in which {fd:web} is the descriptor of the socket web; repeatable")
	f.Var(&o.stopSignal, "stop-signal", "`SIGNAL` that asks the program to stop (default SIGTERM)")
	f.Var(&o.restart, "restart", "which ends of the program lead to a new start on the same sockets")
}

// programFlags are those that make no sense without a program, and siteFlags
// those that make none with one.
var (
	programFlags = []string{"ready", "env", "stop-signal", "restart"}
	siteFlags    = []string{"root", "proxy", "tls-cert", "tls-key", "linger", "no-migrate"}
)

// checkProgram refuses flags that would be silently of no effect.
func (o *options) checkProgram(flags *pflag.FlagSet) error {
	names, text := programFlags, "--%s is about a program: give one, as in -- CMD ARGS"
	if len(o.argv) > 0 {
		names, text = siteFlags, "--%s is about what handoverd serves itself: it goes with no program (-- "+strings.ReplaceAll(o.argv[0], "%", "%%")+")"
	}
	for _, name := range names {
		if f := flags.Lookup(name); f != nil && f.Changed {
			return usagef(text, name)
		}
	}
	return nil
}

// restartPolicy is --restart as package child calls it.
func (o *options) restartPolicy() child.Policy {
	switch o.restart.value {
	case "on-failure":
		return child.RestartOnFailure
	case "never":
		return child.RestartNever
	}
	return child.RestartAlways
}

// reap waits for orphans, if this process is PID 1 of a container, where they
// come to it, until stop is called.
func (o *options) reap() (stop func(), err error) {
	if os.Getpid() != 1 {
		return func() {}, nil
	}
	r, err := child.StartReaper(false)
	if err != nil {
		return nil, err
	}
	return func() { r.Close() }, nil
}
