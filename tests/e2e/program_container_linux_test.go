package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// buildProgram builds the program of testdata, statically.
func buildProgram(t testing.TB, path string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
}

// withProgram is an image of the engine's with the program of testdata, and
// nothing else.
func (e *engine) withProgram(t testing.TB) *engine {
	t.Helper()
	dir := t.TempDir()
	buildProgram(t, filepath.Join(dir, "program"))
	text := "FROM " + e.image + "\nCOPY program /program\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	with := &engine{image: e.unique + ":program", unique: e.unique}
	steps := mustDocker(t, "build", "--force-rm", "--tag", with.image, dir)
	t.Cleanup(func() {
		if _, err := docker("image", "rm", "--force", with.image); err != nil {
			t.Error(err)
		}
		removeStages(steps)
	})
	return with
}

// handoverd is process 1 of a container that has no shell and nothing else:
// what a program does with its children, and how it ends, is handoverd's job.
func TestProgramInContainer(t *testing.T) {
	e := newEngine(t).withProgram(t)
	for _, tt := range []struct {
		name  string
		short bool
		test  func(*testing.T, *engine)
	}{
		{"orphans leave no zombies", true, orphansInContainer},
		{"exit codes pass through", true, exitCodesOfContainer},
		{"a stop takes what the program takes", true, stopOfContainer},
		{"blue and green", false, programsInContainers},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if testing.Short() && !tt.short {
				t.Skip("not in a short run")
			}
			tt.test(t, e)
		})
	}
}

// serveProgram starts a container with the program.
func (e *engine) serveProgram(t testing.TB, name string, options []string, flags []string, program ...string) *container {
	t.Helper()
	args := append([]string{"serve", "--listen", loopback}, flags...)
	return e.start(t, name, options, append(append(args, "--", "/program"), program...)...)
}

// programAddress is where the program's listener web is bound. Only the owner's
// status tells.
func (c *container) programAddress() string {
	c.t.Helper()
	c.awaitLog("msg=serving ")
	var st handover.Status
	text := mustDocker(c.t, "exec", c.name, "/handoverd", "status", "--json")
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		c.t.Fatalf("%v:\n%s", err, text)
	}
	for _, s := range st.Sockets {
		if s.Name == "web" {
			return s.Address
		}
	}
	c.t.Fatalf("no socket web in\n%s", text)
	return ""
}

// orphans is how many there are at least.
const orphans = 1000

func orphansInContainer(t *testing.T, e *engine) {
	c := e.serveProgram(t, "orphans", hostNetwork(e.volume(t)), nil)
	url := "http://" + c.programAddress()
	wantNoOrphans(t, machine.client(t, false), url)
	mustDocker(t, "stop", "--time", "600", c.name)
	c.wantCode("0")
}

// wantNoOrphans has the program of testdata make orphans, and waits until
// nothing is there but process 1 and the program.
func wantNoOrphans(t testing.TB, client *http.Client, url string) {
	t.Helper()
	begin := time.Now()
	if body, err := ask(client, url+"/fork?n="+strconv.Itoa(orphans)); err != nil || body != "" {
		t.Fatalf("fork: %q, %v", body, err)
	}
	forked := time.Since(begin)
	var list string
	most := 0
	awaitEvery(t, 50*time.Millisecond, "no process is left but handoverd and the program", func() bool {
		var err error
		if list, err = ask(client, url+"/processes"); err != nil {
			t.Fatal(err)
		}
		most = max(most, strings.Count(list, " Z "))
		return strings.Count(list, "\n") == 2
	})
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); f[0] != "1" && f[1] != "1" || f[2] == "Z" {
			t.Errorf("processes:\n%s", list)
		}
	}
	t.Logf("%d orphans in %v; at most %d zombies seen at a time, and none after %v", orphans, forked.Round(time.Millisecond), most, (time.Since(begin) - forked).Round(time.Millisecond))
}

func exitCodesOfContainer(t *testing.T, e *engine) {
	for i, tt := range []struct {
		flags []string
		ends  func(*container, string)
		want  string
	}{
		// By itself.
		{[]string{"--restart=never"}, func(_ *container, url string) { ask(machine.client(t, false), url+"/exit?code=42") }, "42"},
		{[]string{"--restart=on-failure"}, func(_ *container, url string) { ask(machine.client(t, false), url+"/exit?code=0") }, "0"},
		// When it was asked to: -code.
		{nil, func(c *container, _ string) { mustDocker(t, "kill", "--signal", "TERM", c.name) }, "7"},
	} {
		c := e.serveProgram(t, fmt.Sprint("code", i), hostNetwork(e.volume(t)), tt.flags, "-code=7")
		tt.ends(c, "http://"+c.programAddress())
		c.wantCode(tt.want)
	}
}

// The engine is told to wait for long, so that it kills nothing: what a stop
// takes then is what it takes. That is printed beside what the program took.
func stopOfContainer(t *testing.T, e *engine) {
	for i, linger := range []time.Duration{0, 2 * time.Second} {
		c := e.serveProgram(t, fmt.Sprint("stop", i), hostNetwork(e.volume(t)), nil, "-linger="+linger.String())
		c.awaitLog("msg=serving ")
		begin := time.Now()
		mustDocker(t, "stop", "--time", "600", c.name)
		took := time.Since(begin)
		c.wantCode("0")
		text := c.logs()
		_, rest, ok := strings.Cut(text, "program: stopped in ")
		if !ok {
			t.Fatalf("the program was not asked to stop:\n%s", text)
		}
		itself, _, _ := strings.Cut(rest, "\n")
		t.Logf("docker stop took %v, of which the program %s", took.Round(time.Millisecond), itself)
	}
}

// Blue and green are containers with the program of testdata, which shuts down
// as net/http does: what its last Accept returns it may not serve any more.
func programsInContainers(t *testing.T, e *engine) {
	options := hostNetwork(e.volume(t))
	flags := []string{"--drain-timeout=10m"}
	blue := e.serveProgram(t, "blue", options, flags, "-linger=0s")
	address := blue.programAddress()
	load := makeLoad(t, machine, loadSpec{Address: address, Think: think, Workers: 16})
	n := scale(4, 2)
	for generation := uint64(2); generation <= uint64(n)+1; generation++ {
		green := e.start(t, fmt.Sprint("green", generation), options, "takeover", "--probation=200ms", "--drain-timeout=10m",
			"--ready", "http://"+address+"/echo", "--", "/program")
		load.awaitMore(generation)
		blue.wantCode("0")
		blue.remove()
		green.wantRunning()
		blue.name, blue.args = green.name, green.args
	}
	res := load.stop()
	cut := res.Reset + res.EOFBeforeAnswer + res.EOFInAnswer
	if res.Failed() != cut || cut > int64(n*res.Workers) || res.ClientFault != 0 {
		t.Errorf("%d refused, %d failed in all, of which %d were cut off", res.Refused, res.Failed(), cut)
	}
	t.Logf("%d containers replaced: %d requests, %d refused, %d cut off by the shutdown of net/http", n, res.Requests, res.Refused, cut)
}

// The same as in a container, where there is no engine: in a pid namespace
// that has its own /proc.
func TestProgramInPidNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		lacking(t, "root makes pid namespaces")
	}
	b := newBench(t)
	path := b.path("program")
	buildProgram(t, path)
	cmd := exec.Command("sh", "-c", `mount -t proc proc /proc && exec "$@"`, "sh",
		program, "serve", "--socket", b.socket, "--listen", "web=tcp://"+webAddress(b), "--", path, "-code=9")
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
	}
	p := launch(t, b.server, b.dir, cmd)
	b.awaitOwner(1)
	wantNoOrphans(t, b.plain, "http://"+webAddress(b))
	p.signal(syscall.SIGTERM)
	p.wantCode(9)
	if text := p.text(); !strings.Contains(text, "program: stopped in") {
		t.Errorf("SIGTERM was not passed on:\n%s", text)
	}
}
