package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// engineStep bounds one command of the engine.
const engineStep = 3 * time.Minute

// command runs a program to its end. The error has what it printed.
func command(env []string, name string, args ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), engineStep)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func docker(args ...string) (output string, err error) {
	return command(append(os.Environ(), "DOCKER_BUILDKIT=0"), "docker", args...) // the old builder needs no plugin
}

func mustDocker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// unique is part of the name of all that these tests make.
var unique = fmt.Sprintf("handoverd-deploy-%d", os.Getpid())

var made atomic.Int64

// uniqueName is a name for what one test makes.
func uniqueName() string { return fmt.Sprintf("%s-%d", unique, made.Add(1)) }

// An image is the container image of the program under test. It is built when
// it is first asked for.
type image struct {
	dir   string // the build context; has dist/handoverd
	tag   string // "" until it is built
	steps string // what the engine said
}

// theImage is made by TestMain, which removes it.
var theImage *image

// imageTag builds the image, if there is an engine, from the Dockerfile and
// from nothing but what the .dockerignore lets through.
func imageTag(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		lacking(t, "only root is in the network namespace of containers with host networking")
	}
	if theImage.tag == "" {
		out, err := docker("version", "--format", "{{.Server.Version}}")
		if err != nil {
			lacking(t, "a running container engine is needed (Debian's package docker.io): %v", err)
		}
		t.Logf("docker engine %s", out)
		if err := theImage.build(); err != nil {
			t.Fatal(err)
		}
	}
	return theImage.tag
}

func (i *image) build() error {
	for _, name := range []string{"Dockerfile", ".dockerignore"} {
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(i.dir, name), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	var err error
	i.steps, err = docker("build", "--force-rm", "--tag", unique+":test", i.dir)
	if err == nil {
		i.tag = unique + ":test"
	}
	return err
}

var builtImage = regexp.MustCompile(`(?m)^ ---> ([0-9a-f]{12})$`)

// remove removes the image and those of the earlier stages of its build, which
// only the output names. What others use stays.
func (i *image) remove() error {
	if i == nil || i.tag == "" {
		return nil
	}
	_, err := docker("image", "rm", "--force", i.tag)
	for _, m := range slices.Backward(builtImage.FindAllStringSubmatch(i.steps, -1)) {
		_, _ = docker("image", "rm", m[1])
	}
	return err
}

// A container of the engine.
type container struct {
	t    testing.TB
	name string
}

// start starts a container: options of the engine, and the command line of
// handoverd.
func start(t testing.TB, name string, options []string, args ...string) *container {
	t.Helper()
	c := &container{t, name}
	t.Cleanup(c.tearDown)
	run := append([]string{"run", "--detach", "--name", name}, options...)
	mustDocker(t, append(append(run, imageTag(t)), args...)...)
	return c
}

func (c *container) tearDown() {
	if c.t.Failed() {
		if text, err := docker("logs", c.name); err == nil {
			c.t.Logf("container %s:\n%s", c.name, text)
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
	c.await(fmt.Sprintf("%q in the log of %s", text, c.name), func() bool { return strings.Contains(c.logs(), text) })
}

// await polls what takes a command of the engine.
func (c *container) await(what string, cond func() bool) {
	c.t.Helper()
	awaitEvery(c.t, 250*time.Millisecond, what, cond)
}

func (c *container) inspect(format string) string {
	c.t.Helper()
	return mustDocker(c.t, "inspect", "--format", format, c.name)
}

// restarts is how often the engine has started it again.
func (c *container) restarts() int {
	c.t.Helper()
	n, err := strconv.Atoi(c.inspect("{{.RestartCount}}"))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// crash kills the container's first process behind the engine's back, which
// takes it for a crash. A kill that the engine is asked for is none.
func (c *container) crash() {
	c.t.Helper()
	pid, err := strconv.Atoi(c.inspect("{{.State.Pid}}"))
	if err == nil && pid <= 1 {
		err = errors.New("it does not run")
	}
	if err == nil {
		err = kill(pid)
	}
	if err != nil {
		c.t.Fatalf("crash %s: %v", c.name, err)
	}
}

// kill kills a process that runs now, and no other one that gets its number.
func kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0)
}

// listening is where the container's log says that it listens.
func (c *container) listening() string {
	c.t.Helper()
	const mark = "msg=listening name=web network=tcp address="
	c.awaitLog(mark)
	_, rest, _ := strings.Cut(c.logs(), mark)
	address, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(address)
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

// bridged is where the container listens in the engine's own network. Unlike
// a published port, it has no proxy of the engine before it, which accepts
// whether or not anybody listens.
func (c *container) bridged() string {
	c.t.Helper()
	return c.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}") + ":8080"
}

// volume makes a named volume, which is removed after the containers that the
// test makes later.
func volume(t testing.TB) string {
	t.Helper()
	name := uniqueName()
	mustDocker(t, "volume", "create", name)
	t.Cleanup(func() {
		if _, err := docker("volume", "rm", "--force", name); err != nil {
			t.Error(err)
		}
	})
	return name
}
