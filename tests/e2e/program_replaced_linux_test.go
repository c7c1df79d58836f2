package e2e

import (
	"syscall"
	"testing"
)

// gunicorn runs the application of testdata with two workers. Those that get
// SIGTERM while they boot may miss it, and are killed after the graceful
// timeout.
func gunicorn(more ...string) foreign {
	return foreign{
		name: "gunicorn", debian: "gunicorn",
		stop: syscall.SIGTERM,
		argv: func(v version) []string {
			argv := []string{
				"env", "PYTHONDONTWRITEBYTECODE=1", v.executable, "--chdir", "testdata/gunicorn/" + v.colour(),
				"--workers", "2", "--graceful-timeout", "5", "--timeout", "600",
			}
			return append(append(argv, more...), "app:app")
		},
	}
}

// threads lets gunicorn's workers keep connections.
var threads = []string{"--worker-class", "gthread", "--threads", "8", "--keep-alive", "60"}

func nginx() foreign {
	return foreign{
		name: "nginx", debian: "nginx-light",
		stop:  syscall.SIGQUIT, // the one that lets requests finish: nginx(8)
		flags: []string{"--env", "nginx", "--stop-signal", "QUIT"},
		argv: func(v version) []string {
			return []string{v.executable, "-e", "stderr", "-p", v.b.dir, "-c", v.fill("nginx/nginx.conf", nil)}
		},
	}
}

func haproxy(option string) foreign {
	return foreign{
		name: "haproxy", debian: "haproxy",
		stop:  syscall.SIGUSR1, // a soft stop: haproxy(1)
		flags: []string{"--env", "FD_WEB={fd:web}", "--stop-signal", "USR1"},
		argv: func(v version) []string {
			return []string{v.executable, "-db", "-q", "-f", v.fill("haproxy/haproxy.cfg", map[string]string{"Option": option})}
		},
	}
}

// under adds how to know that it serves, and the load.
func (f foreign) under(ready string, spec loadSpec) foreign {
	f.ready, f.spec = ready, spec
	return f
}

const (
	// probed is a path of the listener itself, where the old program may answer,
	// too.
	probed = "http://192.0.2.1:8080/version"
	// pidFile is there when nginx has its configuration and its listeners. A
	// probe takes its time: the workers wait in a queue (EPOLLEXCLUSIVE), in which
	// those of an idle nginx stay in front of the next one's until each has
	// accepted 16 connections.
	pidFile = "exec=test -s {dir}/nginx-{generation}.pid"
)

// Programs that nobody here wrote are replaced under load. Nobody is refused,
// and the only requests that fail are those of connections that the old
// program had accepted and closed when it was told to stop.
func TestForeignProgramsAreReplaced(t *testing.T) {
	anew := loadSpec{Workers: 16}
	post := loadSpec{Workers: 16, PostRatio: .5}
	keep := loadSpec{Workers: 16, KeepAlive: true, Think: think}
	often, some := rounds(20, 5), rounds(5, 2)
	for _, tt := range []struct {
		name string
		f    foreign
		n    int
	}{
		{"gunicorn, a connection for each request", gunicorn().under("notify", post), often},
		{"gunicorn, keep-alive", gunicorn(threads...).under(probed, keep), some},
		{"nginx, a connection for each request", nginx().under(probed, anew), often},
		{"nginx, keep-alive", nginx().under(pidFile, keep), some},
		{"haproxy, a connection for each request", haproxy("").under(probed, anew), some},
		{"haproxy, keep-alive", haproxy("").under(probed, keep), some},
		{"haproxy, keep-alive, patient", haproxy("option idle-close-on-response").under(probed, keep), some},
	} {
		t.Run(tt.name, func(t *testing.T) {
			with := newStage(t, tt.f).replace(tt.n)
			without := newStage(t, tt.f).replaceAlone(some)
			t.Logf("cut off at each replacement: %.1f with handoverd, %.1f without", float64(with)/float64(tt.n), float64(without)/float64(some))
		})
	}
}
