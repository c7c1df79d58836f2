package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/handoverd/handoverd/handover"
)

// open finds out which sockets there are to be, and has the service take them.
func (a *app) open(first bool) error {
	specs := slices.Clone(a.opts.listen.specs)
	if err := a.adopt(first); err != nil {
		return err
	}
	inherited := a.gen.Inherited()
	switch {
	case len(specs) > 0 && !first:
		// What is not named is left to package handover: see --unclaimed.
	case len(specs) == 0 && len(inherited) == 0 && a.opts.holds:
		return usagef("--listen: nothing to hold: name the sockets to open")
	case len(specs) == 0 && len(inherited) == 0 && first:
		specs = []listenSpec{{name: defaultName, network: "tcp", address: ":8080"}}
	case len(specs) == 0 && len(inherited) == 0:
		return errNoSockets
	default:
		for _, s := range inherited {
			named := func(l listenSpec) bool { return l.name == s.Name }
			if slices.ContainsFunc(specs, named) {
				continue
			}
			if s.Kind == handover.KindFile {
				a.keepFile(s.Name, first)
				continue
			}
			// What it is and where does not matter: it is taken as it is.
			specs = append(specs, listenSpec{name: s.Name})
		}
	}
	kinds := map[string]handover.Socket{}
	for _, s := range inherited {
		kinds[s.Name] = s
	}
	for _, l := range specs {
		network := l.network
		if network == "" {
			network = kinds[l.name].Network
		}
		if err := a.service.check(l.name, network); err != nil {
			return err
		}
		if err := a.service.take(l, isPacket(network)); err != nil {
			return err
		}
	}
	return nil
}

// socketList names sockets for people.
func socketList(all []handover.Socket) string {
	const most = 4
	var parts []string
	for _, s := range all[:min(len(all), most)] {
		parts = append(parts, fmt.Sprintf("%s (%s %s)", s.Name, s.Network, s.Address))
	}
	if n := len(all) - most; n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(parts, ", ")
}

// listenError says what to do about a socket that cannot be had.
func listenError(l listenSpec, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && !strings.Contains(err.Error(), "two steps"):
		return fmt.Errorf("%w; stop what listens there, or choose another address with --listen", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w; choose a port above 1023, or give the process CAP_NET_BIND_SERVICE", err)
	}
	return err
}

// keepFile keeps an inherited descriptor that is no socket for the next
// successor.
func (a *app) keepFile(name string, first bool) {
	if first {
		a.log.Warn("the socket activator passed a descriptor that is no socket to listen on: it is closed", "name", name)
		return
	}
	f, err := a.gen.File(name)
	if err != nil {
		a.log.Warn("file not kept", "name", name, "error", err)
		return
	}
	f.Close() // a duplicate
}

// adopt puts the sockets of a socket activator into a first generation. A
// successor inherits, and has no use for them.
func (a *app) adopt(first bool) error {
	used := map[string]bool{}
	var errs []error
	files := activation.Files(true)
	os.Unsetenv("LISTEN_PIDFDID") // newer than that package
	for _, f := range files {
		name := uniqueName(cleanName(f.Name()), used)
		if !first {
			a.log.Warn("a socket activator passed a socket, but this process takes over: it is closed", "name", name)
			f.Close()
			continue
		}
		errs = append(errs, a.gen.Adopt(name, f))
	}
	return errors.Join(errs...)
}

// cleanName makes of a descriptor's name one that package handover allows.
func cleanName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == ':' {
			return '-'
		}
		return r
	}, strings.TrimLeft(name, "@"))
	const room = 120 // of 128, for a suffix
	name = name[:min(len(name), room)]
	if handover.CheckName(name) != nil {
		return "socket"
	}
	return name
}

// uniqueName adds a number to a name that is used already: by default systemd
// gives all sockets of a unit the same one.
func uniqueName(name string, used map[string]bool) string {
	unique := name
	for n := 2; used[unique]; n++ {
		unique = fmt.Sprintf("%s-%d", name, n)
	}
	used[unique] = true
	return unique
}
