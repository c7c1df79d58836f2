package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/load"
)

// A foreign program is one that nobody here wrote, and that inherits its
// sockets from handoverd.
type foreign struct {
	name   string   // of the command
	debian string   // package that has it
	flags  []string // of handoverd
	stop   syscall.Signal
	argv   func(v version) []string
	ready  string // how to know that it serves; {dir} and {generation} are filled in
	unix   bool   // the listener is a Unix socket
	spec   loadSpec
}

// A version is the program of one generation. Blue and green take turns.
type version struct {
	b          *bench
	executable string
	generation uint64
}

func (v version) colour() string { return []string{"green", "blue"}[v.generation%2] }

// fill fills a file of testdata in, for this version, and returns its path.
func (v version) fill(name string, more map[string]string) string {
	v.b.t.Helper()
	values := map[string]string{
		"Dir": v.b.dir, "Generation": strconv.FormatUint(v.generation, 10),
		"Version": v.colour(), "Address": webAddress(v.b),
	}
	for k, x := range more {
		values[k] = x
	}
	path := v.b.path(fmt.Sprintf("%d-%s", v.generation, filepath.Base(name)))
	var text bytes.Buffer
	tmpl, err := template.New(filepath.Base(name)).Option("missingkey=error").ParseFiles(filepath.Join("testdata", name))
	if err == nil {
		err = tmpl.Execute(&text, values)
	}
	if err == nil {
		err = os.WriteFile(path, text.Bytes(), 0o644)
	}
	if err != nil {
		v.b.t.Fatal(err)
	}
	return path
}

// webPort is what programs get to listen on: a server has all ports for
// itself.
const webPort = 8080

func webAddress(b *bench) string { return net.JoinHostPort(b.server.addr, strconv.Itoa(webPort)) }

// A stage is where a foreign program runs.
type stage struct {
	*bench
	f          foreign
	executable string
}

func newStage(t testing.TB, f foreign) *stage {
	t.Helper()
	path := lookFor(t, f.name, f.debian)
	b := newBench(t)
	s := &stage{bench: b, f: f, executable: path}
	if f.unix {
		s.plain = s.unixClient()
	}
	t.Cleanup(s.sweep)
	return s
}

// lookFor finds a command. Ordinary users have no sbin in their PATH.
func lookFor(t testing.TB, name, debian string) string {
	t.Helper()
	for _, n := range []string{name, "/usr/sbin/" + name, "/usr/lib/systemd/" + name} {
		if path, err := exec.LookPath(n); err == nil {
			return path
		}
	}
	lacking(t, "%s is needed: apt-get install %s", name, debian)
	return ""
}

// args is the command line of a generation, after serve or takeover.
func (s *stage) args(generation uint64, more ...string) []string {
	// A hurried machine may take its time to start a program.
	args := append([]string{"--ready-timeout=10m"}, s.f.flags...)
	if s.f.ready != "" {
		fill := strings.NewReplacer("{dir}", s.dir, "{generation}", strconv.FormatUint(generation, 10))
		args = append(args, "--ready", fill.Replace(s.f.ready))
	}
	args = append(append(args, more...), "--")
	return append(args, s.f.argv(version{s.bench, s.executable, generation})...)
}

// begin starts the first generation.
func (s *stage) begin(more ...string) *process {
	s.t.Helper()
	return s.serve(s.args(1, append([]string{"--listen", s.listener()}, more...)...)...)
}

// listener is the program's, as an argument of --listen.
func (s *stage) listener() string {
	if s.f.unix {
		return "web=unix://" + s.webPath()
	}
	return "web=tcp://" + webAddress(s.bench)
}

func (s *stage) webPath() string { return s.path("web") }

// load starts the load that the program is for.
func (s *stage) load() *generator {
	s.t.Helper()
	spec := s.f.spec
	spec.Address = webAddress(s.bench)
	if s.f.unix {
		spec.Network, spec.Address = "unix", s.webPath()
	}
	return makeLoad(s.t, s.client, spec)
}

// unixClient is a client that makes a connection to the Unix socket for each
// request.
func (s *stage) unixClient() *http.Client {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.webPath())
		},
	}
	return &http.Client{Transport: tr, Timeout: 3 * patience}
}

// next has a new version take over, and waits until it owns the sockets.
func (s *stage) next(generation uint64) *process {
	s.t.Helper()
	p := s.takeover(s.args(generation, "--probation=200ms")...)
	s.awaitOwner(generation)
	return p
}

// url is that of a path of the program.
func (s *stage) url(path string) string { return "http://" + webAddress(s.bench) + path }

// wantVersion checks which version answers a new connection.
func (s *stage) wantVersion(generation uint64) {
	s.t.Helper()
	if body, _ := get(s.t, s.plain, s.url("/version")); body != (version{generation: generation}).colour() {
		s.t.Fatalf("version %q answers in generation %d", body, generation)
	}
}

// awaitVersion waits until a version answers some new connection. Others may
// go to another one that has not ended.
func (s *stage) awaitVersion(generation uint64) {
	s.t.Helper()
	colour := version{generation: generation}.colour()
	await(s.t, "version "+colour+" answers", func() bool {
		body, err := ask(s.plain, s.url("/version"))
		return err == nil && body == colour
	})
}

// ask fetches url and returns the answer's body.
func ask(c *http.Client, url string) (body string, err error) {
	res, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// end stops the owner, and checks that nothing is left on the server.
func (s *stage) end(owner *process) {
	s.t.Helper()
	s.wantRun(0, "stopped", "stop")
	owner.await()
	s.wantEmpty()
}

// wantEmpty waits until no process is left on the server: workers may end
// after their master.
func (s *stage) wantEmpty() {
	s.t.Helper()
	await(s.t, "no process is left on the server", func() bool { return len(s.server.inhabitants(s.t)) == 0 })
}

// sweep ends what a test that failed has left behind. Programs with process
// groups of their own do not die with handoverd.
func (s *stage) sweep() {
	await(s.t, "all processes on the server are dead", func() bool {
		left := s.server.inhabitants(s.t)
		for _, pid := range left {
			// One that has just ended needs nothing.
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(left) == 0
	})
}

// inhabitants are the processes on a host that are no zombies.
func (h *host) inhabitants(t testing.TB) (pids []int) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(h.ns), &st); err != nil {
		t.Fatal(err)
	}
	here := fmt.Sprintf("net:[%d]", st.Ino)
	for _, pid := range processes(t) {
		// A zombie has no namespaces any more.
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && ns == here {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processes are those that /proc has.
func processes(t testing.TB) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stat returns the fields of /proc/PID/stat from the third, the state, on. The
// second one is in parentheses and may have spaces: proc_pid_stat(5).
func stat(pid int) (fields []string, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(text, ')')
	if err != nil || i < 0 {
		return nil, false
	}
	f := strings.Fields(string(text[i+1:]))
	return f, len(f) > 2
}

// master is the pid of the program that p runs, which is also its process
// group.
func (s *stage) master(p *process) (pid int) {
	s.t.Helper()
	await(s.t, "the program runs", func() bool {
		for _, pid = range s.server.inhabitants(s.t) {
			// state ppid pgrp: it is a leader of its group.
			if f, ok := stat(pid); ok && f[1] == strconv.Itoa(p.pid()) && f[2] == strconv.Itoa(pid) {
				return true
			}
		}
		return false
	})
	return pid
}

// group are the members of a process group.
func (s *stage) group(pgrp int) (pids []int) {
	s.t.Helper()
	for _, pid := range s.server.inhabitants(s.t) {
		if f, ok := stat(pid); ok && f[2] == strconv.Itoa(pgrp) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// accepted counts the connections of the listener web that a process holds:
// those that it, or whoever passed them to it, has accepted.
func (s *stage) accepted(pid int) int {
	s.t.Helper()
	return len(s.held(pid, s.connection))
}

// listeners are the TCP sockets that a process holds and that listen.
func (s *stage) listeners(pid int) []string {
	s.t.Helper()
	return s.held(pid, func(table string, f []string) string {
		if table != "unix" && len(f) > 9 && f[3] == tcpListens {
			return f[9]
		}
		return ""
	})
}

// held are the sockets that a process holds, of those that inode chooses among
// the lines of the kernel's tables: proc_pid_net(5).
func (s *stage) held(pid int, inode func(table string, fields []string) string) (all []string) {
	s.t.Helper()
	chosen := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6", "unix"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			return nil // it has ended
		}
		for line := range strings.Lines(string(text)) {
			if n := inode(table, strings.Fields(line)); n != "" {
				chosen["socket:["+n+"]"] = true
			}
		}
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())); err == nil && chosen[target] {
			all = append(all, target)
		}
	}
	return all
}

const (
	tcpListens    = "0A"
	unixListens   = "00010000" // among the flags: __SO_ACCEPTCON
	unixConnected = "03"
)

// connection is the inode of a socket in a line of a table if it is the server's end of a connection to the listener web, and else "".
func (s *stage) connection(table string, f []string) string {
	switch {
	case table == "unix" && len(f) > 7 && f[3] != unixListens && f[5] == unixConnected && f[7] == s.webPath():
		return f[6] // num refcount protocol flags type state inode path
	case table != "unix" && len(f) > 9 && f[3] != tcpListens && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", webPort)):
		return f[9] // sl local remote state ... uid timeout inode
	}
	return ""
}

// wantAcceptsNothing checks that handoverd itself accepts no connection.
func (s *stage) wantAcceptsNothing(all ...*process) {
	s.t.Helper()
	for _, p := range all {
		if n := s.accepted(p.pid()); n != 0 {
			s.t.Errorf("handoverd, pid %d, has accepted %d connections, which only the program may", p.pid(), n)
		}
	}
}

// A listenerProof is what shows that a listener has lost no connection.
type listenerProof struct {
	s      *stage
	cookie uint64
	drops  map[string]uint64
}

// lossCounters of a network namespace count connections that a listener did
// not take: snmp_counter.rst of the kernel's documentation.
var lossCounters = []string{"ListenOverflows", "ListenDrops"}

// prove begins to look after the listener web.
func (s *stage) prove(p *process) listenerProof {
	s.t.Helper()
	return listenerProof{s, s.cookie(), counters(s.t, p.pid(), lossCounters...)}
}

func (s *stage) cookie() uint64 {
	s.t.Helper()
	st := s.awaitStatus("there is a listener web", func(st *handover.Status) bool {
		return slices.ContainsFunc(st.Sockets, func(x handover.SocketStatus) bool { return x.Name == "web" })
	})
	i := slices.IndexFunc(st.Sockets, func(x handover.SocketStatus) bool { return x.Name == "web" })
	return st.Sockets[i].Cookie
}

// counters reads counters of the network namespace of a process.
func counters(t testing.TB, pid int, names ...string) map[string]uint64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netstat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// Pairs of lines: names and values.
	all := map[string]uint64{}
	lines := strings.Split(string(text), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		titles, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := range min(len(titles), len(values)) {
			if n, err := strconv.ParseUint(values[j], 10, 64); err == nil && slices.Contains(names, titles[j]) {
				all[titles[j]] = n
			}
		}
	}
	if len(all) != len(names) {
		t.Fatalf("of the counters %v there are only %v", names, all)
	}
	return all
}

// blame says who has failed which requests of a load that has ended, and
// checks that handoverd has failed none. p is any process on the server.
//
// A connection that was made and then cut off was either waiting in the accept
// queue when its listener was closed, or somebody had accepted it. The
// listener is one and the same socket all the time, and has dropped none. So
// somebody had accepted it, and that was not handoverd, which accepts nothing:
// see wantAcceptsNothing.
func (l listenerProof) blame(p *process, res load.Result, n int) (cut int64) {
	t := l.s.t
	t.Helper()
	if c := l.s.cookie(); c != l.cookie {
		t.Errorf("the listener is socket %d now, and was %d", c, l.cookie)
	}
	for name, was := range l.drops {
		if is := counters(t, p.pid(), name)[name]; is != was {
			t.Errorf("%s has grown from %d to %d", name, was, is)
		}
	}
	cut = res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	ours := res.Failed() - cut
	if ours != 0 || res.ClientFault != 0 || res.OK == 0 {
		t.Errorf("%d requests failed by handoverd, want none: %v", ours, res)
	}
	if most := int64(res.Workers * n); cut > most {
		t.Errorf("%d requests were cut off, but %d clients cannot have had more than %d connections in %d programs that ended", cut, res.Workers, most, n)
	}
	t.Logf("%d requests, %d refused, %d failed by handoverd, %d cut off by %s itself, which had accepted their connections: the listener was socket %d all the time and dropped none, and handoverd accepted none",
		res.Requests, res.Refused, ours, cut, l.s.f.name, l.cookie)
	for _, e := range res.FirstErrors[:min(3, len(res.FirstErrors))] {
		t.Log(e)
	}
	return cut
}

// replace replaces the program n times under load.
func (s *stage) replace(n int) (cut int64) {
	s.t.Helper()
	owner := s.begin()
	s.wantVersion(1)
	proof := s.prove(owner)
	load := s.load()
	load.awaitMore(1)
	begin := time.Now()
	last := uint64(n) + 1
	for generation := uint64(2); generation <= last; generation++ {
		successor := s.next(generation)
		load.awaitMore(generation)
		s.wantAcceptsNothing(owner, successor)
		owner.wantCode(0)
		if text := owner.text(); !strings.Contains(text, "its program ended after") || strings.Contains(text, "did not stop in time") {
			s.t.Errorf("the old program did not stop by itself:\n%s", text)
		}
		s.wantVersion(generation)
		owner = successor
	}
	took := time.Since(begin)
	res := load.stop()
	for generation := uint64(1); generation <= last; generation++ {
		if res.Generations[strconv.FormatUint(generation, 10)] == 0 {
			s.t.Errorf("generation %d has answered nothing", generation)
		}
	}
	cut = proof.blame(owner, res, n)
	s.t.Logf("%s was replaced %d times in %v", s.f.name, n, took.Round(time.Millisecond))
	s.end(owner)
	return cut
}

// replaceAlone does the same without handoverd, for comparison: the test
// passes the listener to each version, and stops the old one when the new one
// answers.
func (s *stage) replaceAlone(n int) (cut int64) {
	s.t.Helper()
	f := s.listen(webAddress(s.bench))
	defer f.Close()
	var old *process
	var load *generator
	for generation := uint64(1); generation <= uint64(n)+1; generation++ {
		p := s.alone(generation, f)
		s.awaitVersion(generation)
		if load == nil {
			load = s.load()
		}
		if old != nil {
			old.signal(s.f.stop)
			old.await()
		}
		load.awaitMore(generation)
		old = p
	}
	res := load.stop()
	cut = res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	s.t.Logf("without handoverd: %s was replaced %d times: %d requests, %d refused, %d cut off", s.f.name, n, res.Requests, res.Refused, cut)
	old.signal(s.f.stop)
	old.await()
	s.wantEmpty()
	return cut
}

// listen listens for programs that are started without handoverd. The socket
// does not block, as that of handoverd does not: not to be changed by os/exec,
// which clears O_NONBLOCK of what was so when it became a File.
func (s *stage) listen(address string) *os.File {
	s.t.Helper()
	ln := s.server.listenOn(s.t, address)
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0) // it blocks now
	if err != nil {
		s.t.Fatal(err)
	}
	inherited := os.NewFile(uintptr(fd), "web")
	if err := unix.SetNonblock(fd, true); err != nil {
		s.t.Fatal(err)
	}
	return inherited
}

// listenOn listens on an address of the host.
func (h *host) listenOn(t testing.TB, address string) net.Listener {
	t.Helper()
	var ln net.Listener
	var err error
	if e := h.do(func() { ln, err = net.Listen("tcp", address) }); e != nil {
		err = e
	}
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// alone starts a version with the listener as descriptor 3, in all the ways
// that programs are told of it.
func (s *stage) alone(generation uint64, f *os.File) *process {
	s.t.Helper()
	argv := s.f.argv(version{s.bench, s.executable, generation})
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, argv...)...)
	cmd.Env = environment("LISTEN_FDS=1", "NGINX=3;", "FD_WEB=3", fmt.Sprintf("HANDOVERD_GENERATION=%d", generation))
	cmd.ExtraFiles = []*os.File{f}
	return launch(s.t, s.server, s.dir, cmd)
}
