package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// An engine is the container engine of this machine, with an image of the
// program.
type engine struct {
	image  string
	unique string // part of the name of all that the tests make
}

// engineStep bounds one command of the engine, of which building the image
// is the longest.
const engineStep = 2 * time.Minute

// docker runs a command of the engine.
func docker(args ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), engineStep)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0") // needs no plugin
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func mustDocker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// newEngine builds the image from the Dockerfile, from nothing but what the
// .dockerignore lets through.
func newEngine(t testing.TB) *engine {
	t.Helper()
	leak.Check(t)
	if !realRoot() {
		lacking(t, "only root is in the network namespace of containers with host networking")
	}
	if out, err := docker("version", "--format", "{{.Server.Version}}"); err != nil {
		lacking(t, "a running container engine is needed: %v", err)
	} else {
		t.Logf("docker engine %s", out)
	}
	dir := t.TempDir()
	for _, name := range []string{"Dockerfile", ".dockerignore"} {
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := build(filepath.Join(dir, "dist", "handoverd"), false); err != nil {
		t.Fatal(err)
	}
	e := &engine{unique: fmt.Sprintf("handoverd-e2e-%d", os.Getpid())}
	e.image = e.unique + ":test"
	steps := mustDocker(t, "build", "--force-rm", "--tag", e.image, dir)
	t.Cleanup(func() {
		if _, err := docker("image", "rm", "--force", e.image); err != nil {
			t.Error(err)
		}
		removeStages(steps)
	})
	return e
}

var builtImage = regexp.MustCompile(`(?m)^ ---> ([0-9a-f]{12})$`)

// removeStages removes what a build leaves behind besides its image: the
// images of earlier stages, which only its output names. Those that are gone
// already, or that others use, are not touched.
func removeStages(output string) {
	for _, m := range slices.Backward(builtImage.FindAllStringSubmatch(output, -1)) {
		_, _ = docker("image", "rm", m[1])
	}
}

// volume makes a named volume. It is removed after the containers that the
// test makes later.
func (e *engine) volume(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("%s-%s", e.unique, strings.ToLower(filepath.Base(t.TempDir())))
	mustDocker(t, "volume", "create", name)
	t.Cleanup(func() {
		if _, err := docker("volume", "rm", "--force", name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// A container of the image.
type container struct {
	t    testing.TB
	name string
	args []string
}

// start starts a container: options of the engine, and the command line of
// handoverd.
func (e *engine) start(t testing.TB, name string, options []string, args ...string) *container {
	t.Helper()
	c := &container{t: t, name: e.unique + "-" + name, args: args}
	t.Cleanup(c.tearDown)
	if err := c.run(e.image, options); err != nil {
		t.Fatal(err)
	}
	return c
}

// startPublished is start with the container's port 8080 published on
// loopback. Between the search for a free port and its use somebody else may
// take it: then another one is tried.
func (e *engine) startPublished(t testing.TB, name string, options []string, args ...string) *container {
	t.Helper()
	c := &container{t: t, name: e.unique + "-" + name, args: args}
	t.Cleanup(c.tearDown)
	for range 20 {
		err := c.run(e.image, append(options[:len(options):len(options)], "--publish", "127.0.0.1:"+freePort(t)+":8080"))
		if err == nil {
			return c
		}
		if text := err.Error(); !strings.Contains(text, "already allocated") && !strings.Contains(text, "already in use") {
			t.Fatal(err)
		}
		c.remove() // it has been created
	}
	t.Fatal("each port that was free was taken")
	return nil
}

func (c *container) run(image string, options []string) error {
	run := append([]string{"run", "--detach", "--name", c.name}, options...)
	_, err := docker(append(append(run, image), c.args...)...)
	return err
}

// freePort finds a port of loopback that is free and below those that the
// kernel gives to connections, as other tests make by the thousand.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		if ln, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

func (c *container) tearDown() {
	if c.t.Failed() {
		if text, err := docker("logs", c.name); err == nil {
			c.t.Logf("container %s %v:\n%s", c.name, c.args, text)
		}
	}
	// Not an error if it is gone.
	if _, err := docker("rm", "--force", "--volumes", c.name); err != nil && !strings.Contains(err.Error(), "No such container") {
		c.t.Error(err)
	}
}

func (c *container) logs() string {
	c.t.Helper()
	return mustDocker(c.t, "logs", c.name)
}

func (c *container) awaitLog(text string) {
	c.t.Helper()
	what := fmt.Sprintf("%q in the log of %s", text, c.name)
	awaitEvery(c.t, 100*time.Millisecond, what, func() bool { return strings.Contains(c.logs(), text) })
}

// wantCode waits for the end and checks the exit code.
func (c *container) wantCode(want string) {
	c.t.Helper()
	if code := mustDocker(c.t, "wait", c.name); code != want {
		c.t.Fatalf("container %s %v: exit code %s, want %s", c.name, c.args, code, want)
	}
}

func (c *container) wantRunning() {
	c.t.Helper()
	if state := mustDocker(c.t, "inspect", "--format", "{{.State.Status}}", c.name); state != "running" {
		c.t.Fatalf("container %s %v is %s", c.name, c.args, state)
	}
}

func (c *container) remove() {
	c.t.Helper()
	mustDocker(c.t, "rm", c.name)
}

// address is where the container's log says that it listens.
func (c *container) address() string {
	c.t.Helper()
	c.awaitLog("msg=serving ")
	for line := range strings.Lines(c.logs()) {
		if _, rest, ok := strings.Cut(line, "msg=listening name=web network=tcp address="); ok {
			return strings.TrimSpace(rest)
		}
	}
	c.t.Fatalf("%s does not say where it listens", c.name)
	return ""
}

// published is where the engine publishes the container's port 8080.
func (c *container) published() string {
	c.t.Helper()
	address, _, _ := strings.Cut(mustDocker(c.t, "port", c.name, "8080/tcp"), "\n")
	if !strings.HasPrefix(address, "127.0.0.1:") {
		c.t.Fatalf("port 8080 is published at %q, want an address of 127.0.0.1", address)
	}
	return address
}
