package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/tests/bench/report"
)

// probation of handoverd: long enough to be one, short enough for all that
// happens after it to be within the window that is looked at.
const probation = 150 * time.Millisecond

// A contender is a way to replace a server.
type contender struct {
	report.Contender

	plainOnly bool // it does not speak TLS here
	noHTTP2   bool
	// toldAtOnce: its old process is told as soon as the new one is ready, and
	// stops to accept then.
	toldAtOnce bool

	// get makes or finds what it needs, and returns the version.
	get func(ctx context.Context, l *lab) (string, error)
	// make makes a service that still has to be started.
	make func(s site) service
}

// serves tells whether a load applies.
func (c *contender) serves(l *loadKind) bool {
	return !(l.tls && c.plainOnly || l.http2 && c.noHTTP2)
}

// contenders are all, missing ones included.
func contenders(backend func() string) []*contender {
	all := services()
	for _, c := range all {
		c.Group = report.Services
	}
	return slices.Concat(all, proxies(backend), pythons())
}

const byItself = "drains with http.Server.Shutdown"

func services() []*contender {
	ours := "; the old process drains after a probation of " + probation.String()
	return []*contender{
		{Contender: report.Contender{Name: "handoverd", Title: "handoverd", Ours: true, How: "exec `handoverd takeover --receipt FILE`" + ours},
			get: always, make: spawn(handoverd())},
		{Contender: report.Contender{Name: "library", Title: "packages handover and server", Ours: true, How: "exec the program" + ours},
			get: always, make: spawn(library("server"))},
		{Contender: report.Contender{Name: "handover+shutdown", Title: "package handover with http.Server", Ours: true, How: "exec the program; the old one " + byItself + " after a probation of " + probation.String()},
			get: always, make: spawn(library("shutdown"))},
		{Contender: report.Contender{Name: "cmd", Title: "handoverd -- a program with http.Server", Ours: true, How: "exec `handoverd takeover -- CMD`, where CMD " + byItself + " on SIGTERM, after a probation of " + probation.String()},
			get: always, make: spawn(handoverd("--ready=notify", "--", "bin/program", "-drain=shutdown"))},
		{Contender: report.Contender{Name: "cmd-server", Title: "handoverd -- a program with package server", Ours: true, How: "exec `handoverd takeover -- CMD`, where CMD drains with package server on SIGTERM, after a probation of " + probation.String()},
			get: always, make: spawn(handoverd("--ready=notify", "--", "bin/program", "-drain=server"))},
		{Contender: report.Contender{Name: "tableflip", Title: "cloudflare/tableflip", How: "SIGHUP; the new process is a child, the old one " + byItself + ", as in the package's example"},
			toldAtOnce: true, get: moduleVersion("github.com/cloudflare/tableflip"), make: tableflip},
		{Contender: report.Contender{Name: "tableroll", Title: "ngrok-oss/tableroll", How: "exec the program; the old one " + byItself + ", as in the package's example"},
			toldAtOnce: true, get: getTableroll, make: spawn(tableroll)},
		{Contender: report.Contender{Name: "grace", Title: "facebookgo/grace with httpdown", How: "SIGUSR2; the new process is a child, and the old one drains with httpdown"},
			get: getGrace, make: grace},
		{Contender: report.Contender{Name: "reuseport", Title: "SO_REUSEPORT overlap", How: "exec a program that listens beside the old one, which gets SIGTERM once the new one has answered, and " + byItself},
			get: always, make: overlap},
		{Contender: report.Contender{Name: "restart", Title: "plain restart", How: "SIGTERM; the program " + byItself + "; exec it again when it has ended"},
			get: always, make: restart},
	}
}

func proxies(backend func() string) []*contender {
	all := []*contender{
		{Contender: report.Contender{Name: "handoverd-proxy", Title: "handoverd --proxy", Ours: true, How: "exec `handoverd takeover --proxy`; the old process drains after a probation of " + probation.String()},
			get: always, make: func(s site) service { return spawn(handoverd("--proxy=http://" + backend()))(s) }},
		{Contender: report.Contender{Name: "nginx", Title: "nginx", How: "SIGUSR2; once the new workers have answered, SIGWINCH and SIGQUIT for the old ones"},
			get: debian("nginx", "-v"), make: func(s site) service { return nginx(s, backend()) }},
		{Contender: report.Contender{Name: "haproxy", Title: "HAProxy", How: "SIGUSR2 to the master (seamless reload: `expose-fd listeners`)"},
			get: debian("haproxy", "-v"), make: func(s site) service { return haproxy(s, backend(), "") }},
		{Contender: report.Contender{Name: "haproxy-idle", Title: "HAProxy with idle-close-on-response", How: "the same with `option idle-close-on-response`"},
			get: debian("haproxy", "-v"), make: func(s site) service { return haproxy(s, backend(), "option idle-close-on-response") }},
	}
	for _, c := range all {
		c.Group = report.Proxies
	}
	return all
}

func pythons() []*contender {
	all := []*contender{
		{Contender: report.Contender{Name: "handoverd-gunicorn", Title: "handoverd -- gunicorn", Ours: true, How: "exec `handoverd takeover --ready notify -- gunicorn`; the old gunicorn gets SIGTERM after a probation of " + probation.String()},
			get: debian("gunicorn", "--version"), make: gunicornBelow},
		{Contender: report.Contender{Name: "gunicorn", Title: "gunicorn", How: "SIGUSR2; once the new workers have answered, SIGTERM for the old master"},
			get: debian("gunicorn", "--version"), make: gunicorn},
	}
	for _, c := range all {
		c.Group, c.plainOnly = report.Pythons, true
	}
	return all
}

func always(context.Context, *lab) (string, error) { return "", nil }

// moduleVersion is that of a module which this program is built with.
func moduleVersion(path string) func(context.Context, *lab) (string, error) {
	return func(ctx context.Context, l *lab) (string, error) {
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", path)
		cmd.Dir = l.module
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
}

func debian(name, flag string) func(context.Context, *lab) (string, error) {
	return func(ctx context.Context, _ *lab) (string, error) {
		v, err := installed(ctx, name, flag)
		v = strings.TrimPrefix(v, "nginx version: ")
		v, _, _ = strings.Cut(v, " - ") // HAProxy goes on with its home page
		return v, err
	}
}

func getGrace(ctx context.Context, l *lab) (string, error) {
	if err := l.buildGrace(ctx); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", "golang-github-facebookgo-grace-dev").Output()
	if err != nil {
		return "", nil // the sources need not come from a package
	}
	return string(out), nil
}

func getTableroll(ctx context.Context, l *lab) (string, error) { return "", l.buildTableroll(ctx) }

// spawn makes services out of a command line.
func spawn(argv func(s *site) []string) func(site) service {
	return func(s site) service { return &spawned{site: s, argv: argv} }
}

// handoverd is the command line of each generation: the first one serves, others
// take over. A program in it is one of those that were built.
func handoverd(args ...string) func(s *site) []string {
	return func(s *site) []string {
		command := "takeover"
		if s.generation == 1 {
			command = "serve"
		}
		argv := []string{s.lab.path("bin/handoverd"), command, "--socket=" + s.path("socket"),
			"--listen=web=tcp://" + s.addr, "--probation=" + probation.String(), "--drain-timeout=10s",
			"--log-level=warn", "--receipt=" + s.path(receiptName(s.generation))}
		program := slices.Contains(args, "--")
		if s.tls && !program {
			argv = append(argv, "--tls-cert="+s.lab.cert, "--tls-key="+s.lab.key)
		}
		for _, a := range args {
			if strings.HasPrefix(a, "bin/") {
				a = s.lab.path(a)
			}
			argv = append(argv, a)
		}
		return argv
	}
}

func receiptName(generation int) string { return fmt.Sprintf("receipt-%d.json", generation) }

func library(drain string) func(s *site) []string {
	return func(s *site) []string {
		return []string{s.lab.path("bin/library"), "-socket", s.path("socket"), "-listen", s.addr,
			"-drain", drain, "-probation", probation.String()}
	}
}

func tableroll(s *site) []string {
	return []string{s.lab.path("bin/tableroll"), "-listen", s.addr, "-dir", s.dir}
}

func overlap(s site) service {
	return &spawned{site: s, after: terminateWhenServed, argv: func(s *site) []string {
		return []string{s.lab.path("bin/plain"), "-listen", s.addr, "-reuseport"}
	}}
}

func restart(s site) service {
	return &spawned{site: s, before: terminateAndWait, argv: func(s *site) []string {
		return []string{s.lab.path("bin/plain"), "-listen", s.addr}
	}}
}

// teller makes the process that tells an event the main one.
func teller(s *signalled, event string) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		e, err := s.lab.await(ctx, nil, s.name, s.generation, event)
		return e.PID, err
	}
}

func tableflip(s site) service {
	t := &signalled{site: s, signal: syscall.SIGHUP}
	t.main = teller(t, "ready")
	t.command = func(s *site) []string { return []string{s.lab.path("bin/tableflip"), "-listen", s.addr} }
	return t
}

func grace(s site) service {
	t := &signalled{site: s, signal: syscall.SIGUSR2}
	t.main = teller(t, "started")
	t.command = func(s *site) []string { return []string{s.lab.path("bin/grace"), "-listen", s.addr} }
	return t
}
