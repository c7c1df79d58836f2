package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// A repeatable flag collects values. Its list is what the command line of a
// successor needs to say the same.
type repeatable interface {
	pflag.Value
	list() []string
}

var (
	_ repeatable  = (*listenList)(nil)
	_ repeatable  = (*uidList)(nil)
	_ pflag.Value = (*optionalDuration)(nil)
	_ pflag.Value = (*duration)(nil)
	_ pflag.Value = (*choice)(nil)
)

// listenList is --listen.
type listenList struct {
	specs []listenSpec
	texts []string
}

func (l *listenList) Set(text string) error {
	spec, err := parseListen(text)
	if err != nil {
		return err
	}
	l.specs, l.texts = append(l.specs, spec), append(l.texts, text)
	return nil
}

func (l *listenList) String() string { return strings.Join(l.texts, " ") }
func (l *listenList) Type() string   { return "[NAME=]URL" }
func (l *listenList) list() []string { return l.texts }

// uidList is --allow-uid.
type uidList struct{ uids []uint32 }

func (l *uidList) Set(text string) error {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return fmt.Errorf("%q is no uid: give a number", text)
	}
	l.uids = append(l.uids, uint32(n))
	return nil
}

func (l *uidList) String() string { return strings.Join(l.list(), " ") }
func (l *uidList) Type() string   { return "UID" }

func (l *uidList) list() (all []string) {
	for _, n := range l.uids {
		all = append(all, strconv.FormatUint(uint64(n), 10))
	}
	return all
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil && text != "0":
		return 0, fmt.Errorf("%q is no duration: give one like 500ms, 10s or 2m", text)
	case d < 0:
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

// duration is a flag with a duration that is not negative.
type duration time.Duration

func (d *duration) Set(text string) error {
	v, err := parseDuration(text)
	if err == nil {
		*d = duration(v)
	}
	return err
}

func (d *duration) String() string { return time.Duration(*d).String() }
func (d *duration) Type() string   { return "DURATION" }

// orNone is the duration for packages in which zero means a default and less
// than zero none.
func (d duration) orNone() time.Duration {
	if d == 0 {
		return -1
	}
	return time.Duration(d)
}

// optionalDuration is a duration that may be absent.
type optionalDuration struct {
	duration
	set bool
}

func (d *optionalDuration) Set(text string) error {
	err := d.duration.Set(text)
	d.set = err == nil
	return err
}

func (d *optionalDuration) String() string {
	if !d.set {
		return ""
	}
	return d.duration.String()
}

// orDefault is zero if it is absent.
func (d optionalDuration) orDefault() time.Duration {
	if !d.set {
		return 0
	}
	return d.orNone()
}

// choice is one of a few words.
type choice struct {
	value string
	of    []string
}

func (c *choice) Set(text string) error {
	for _, w := range c.of {
		if text == w {
			c.value = w
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", text, strings.Join(c.of, ", "))
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.of, "|") }
