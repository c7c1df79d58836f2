package deploy

import (
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// A project is one of the compose files at work.
type project struct {
	t       testing.TB
	compose []string // the command
	name    string
	values  map[string]string // of the variables in the file
}

// newProject makes a project that listens on loopback.
func newProject(t testing.TB, file string) *project {
	t.Helper()
	leak.Check(t)
	tag := imageTag(t)
	p := &project{t: t, name: uniqueName(), values: map[string]string{
		"BLUE_IMAGE": tag, "GREEN_IMAGE": tag, "NETWORK_IMAGE": tag,
		"LISTEN": "web=tcp://127.0.0.1:0", "PORT": "127.0.0.1:", "PROBATION": "200ms",
	}}
	p.compose = append(composeCommand(t), "--project-name", p.name, "--file", deployed(t, "compose/"+file))
	t.Cleanup(func() {
		if _, err := p.run("down", "--volumes", "--timeout", "5"); err != nil {
			t.Error(err)
		}
	})
	return p
}

// composeCommand is the plugin of the engine's client, or the older program.
func composeCommand(t testing.TB) []string {
	t.Helper()
	for _, c := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		args := append(c[1:len(c):len(c)], "version", "--short")
		if out, err := exec.Command(c[0], args...).CombinedOutput(); err == nil {
			t.Logf("%s %s", strings.Join(c, " "), strings.TrimSpace(string(out)))
			return c
		}
	}
	lacking(t, "docker compose is needed (Debian's package docker-compose)")
	return nil
}

func (p *project) run(args ...string) (output string, err error) {
	var more []string
	for k, v := range p.values {
		more = append(more, k+"="+v)
	}
	all := append(p.compose[1:len(p.compose):len(p.compose)], args...)
	return command(environment(more...), p.compose[0], all...)
}

func (p *project) mustRun(args ...string) string {
	p.t.Helper()
	out, err := p.run(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// up has a service started, or replaced by one with this revision.
func (p *project) up(service string, revision int) *container {
	p.t.Helper()
	p.values[strings.ToUpper(service)+"_REVISION"] = strconv.Itoa(revision)
	p.mustRun("up", "--detach", service)
	return p.container(service)
}

// container is that of a service. Its name differs between versions of
// compose.
func (p *project) container(service string) *container {
	p.t.Helper()
	id := mustDocker(p.t, "ps", "--all", "--quiet",
		"--filter", "label=com.docker.compose.project="+p.name, "--filter", "label=com.docker.compose.service="+service)
	if id == "" || strings.Contains(id, "\n") {
		p.t.Fatalf("containers of %s: %q, want one", service, id)
	}
	c := &container{p.t, id}
	p.t.Cleanup(func() { // before it is removed
		if p.t.Failed() {
			if text, err := docker("logs", id); err == nil {
				p.t.Logf("%s, %s:\n%s", service, id, text)
			}
		}
	})
	return c
}

// healthy tells what the health command says inside of a service.
func (p *project) healthy(service string) bool {
	_, err := p.run("exec", "-T", service, "/handoverd", "health")
	return err == nil
}

func other(colour string) string {
	if colour == "blue" {
		return "green"
	}
	return "blue"
}

// address is where blue, the first one, listens as clients see it, and as this
// machine does.
func (p *project) address(file string) (public, direct string) {
	p.t.Helper()
	if file == "compose.yaml" {
		public = p.container("blue").listening()
		return public, public
	}
	network := p.container("network")
	return network.published(), network.bridged()
}

// Each colour in turn is replaced while it is parked, and takes over from the
// other one.
func TestComposeBlueGreenBlueFailsNoRequest(t *testing.T) {
	for _, tt := range []struct {
		name, file  string
		full, short int // takeovers
	}{
		{"host network", "compose.yaml", 20, 2},
		{"network of a third container", "compose.network.yaml", 4, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProject(t, tt.file)
			last := p.up("blue", 1)
			last.awaitLog("msg=serving ")
			public, direct := p.address(tt.file)
			fresh, kept := makeLoad(t, direct, false), makeLoad(t, public, true)
			n, colour := scale(tt.full, tt.short), "blue"
			for generation := 2; generation <= n+1; generation++ {
				colour = other(colour)
				next := p.up(colour, generation)
				fresh.awaitMore(generation)
				last.awaitLog("msg=\"parked: ")
				if got := last.restarts() + next.restarts(); got != 0 {
					t.Errorf("the engine has restarted containers %d times", got)
				}
				last = next
			}
			kept.awaitMore(n + 1)
			if !p.healthy(colour) || p.healthy(other(colour)) {
				t.Errorf("want %s healthy, and the parked one not", colour)
			}
			fresh.wantPerfect(n + 1)
			kept.wantPerfect(n + 1)
		})
	}
}

// A container that dies in probation costs what it had accepted. The engine
// starts it again, and it takes over again.
func TestComposeGreenDiesInProbation(t *testing.T) {
	for _, file := range []string{"compose.yaml", "compose.network.yaml"} {
		t.Run(file, func(t *testing.T) {
			p := newProject(t, file)
			blue := p.up("blue", 1)
			blue.awaitLog("msg=serving ")
			_, direct := p.address(file)
			load := makeLoad(t, direct, false)
			p.values["PROBATION"] = "30m"
			green := p.up("green", 2)
			load.awaitMore(2)
			green.crash()
			blue.awaitLog("this generation serves on")
			load.awaitMore(3) // 2 is used up
			if green.restarts() != 1 || blue.restarts() != 0 {
				t.Errorf("green was restarted %d times, blue %d times, want 1 and 0", green.restarts(), blue.restarts())
			}
			p.mustRun("stop", "green") // in probation, that gives back
			load.awaitMore(1)
			if !p.healthy("blue") {
				t.Error("blue is not healthy")
			}
			load.wantOnlyCut(1)
		})
	}
}

// A holder keeps what comes while nothing serves.
func TestComposeEveryServiceDiesBesideAHolder(t *testing.T) {
	p := newProject(t, "compose.network.yaml")
	blue := p.up("blue", 1)
	blue.awaitLog("msg=serving ")
	load := makeLoad(t, p.container("network").bridged(), false)
	n := scale(3, 1)
	for i := range n {
		blue.crash()
		blue.await("the engine starts it again", func() bool { return blue.restarts() == i+1 })
		load.awaitMore(1) // a first generation again
	}
	load.wantOnlyCut(n)
}

// If the third container ends, and the engine starts it again, what connects
// waits at the new holder until the service is started again, too.
func TestComposeNetworkContainerDies(t *testing.T) {
	p := newProject(t, "compose.network.yaml")
	p.up("blue", 1).awaitLog("msg=serving ")
	network := p.container("network")
	network.crash()
	network.await("the engine starts it again", func() bool { return network.restarts() == 1 })
	network.await("it listens", func() bool { return strings.Count(network.logs(), "msg=serving ") == 2 })
	c, err := net.DialTimeout("tcp", network.bridged(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("GET /healthz HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	p.mustRun("restart", "blue")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 200 ") {
		t.Errorf("answer %.100q, %v", answer, err)
	}
}
