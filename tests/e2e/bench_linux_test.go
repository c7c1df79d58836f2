package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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
	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/internal/site"
)

// A bench is where one set of generations lives: a directory with a control
// socket, a host on which they run, and one for their clients.
type bench struct {
	t      testing.TB
	dir    string
	socket string
	server *host
	client *host
	plain  *http.Client // on client, a connection for each request
}

func newBench(t testing.TB) *bench {
	t.Helper()
	leak.Check(t)
	// t.TempDir has the name of the test, which may be too long for a socket.
	dir, err := os.MkdirTemp("", "hd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, dir: dir, socket: filepath.Join(dir, "s")}
	b.server, b.client = newNetwork(t)
	b.plain = b.client.client(t, false)
	t.Cleanup(b.endOwner)
	return b
}

// endOwner ends whoever owns the socket still, which need not be a child of
// this process.
func (b *bench) endOwner() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := b.operator().Status(ctx)
	if err != nil {
		return
	}
	if _, err := b.operator().Stop(ctx, nil); err != nil && !errors.Is(err, handover.ErrNoOwner) {
		syscall.Kill(st.PID, syscall.SIGKILL)
	}
}

func (b *bench) operator() handover.Operator { return handover.Operator{Socket: b.socket} }

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// command makes a command line for this bench's socket.
func (b *bench) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program, append([]string{args[0], "--socket", b.socket}, args[1:]...)...)
	// On a busy machine a healthy process is late, too; where that is the
	// subject a test says so.
	cmd.Env = environment("HANDOVERD_ALIVE_TIMEOUT=30s", "HANDOVERD_STEP_TIMEOUT=30s")
	return cmd
}

// listener is what serve gets if the test does not say otherwise: a free port
// of the server.
func (b *bench) listener() string { return "web=tcp://" + net.JoinHostPort(b.server.addr, "0") }

// serve starts a first generation and waits until it serves.
func (b *bench) serve(args ...string) *process {
	b.t.Helper()
	if !strings.Contains(strings.Join(args, " "), "--listen") {
		args = append(args, "--listen", b.listener())
	}
	p := launch(b.t, b.server, b.dir, b.serving("serve", args...))
	b.awaitOwner(1)
	return p
}

// takeover starts a successor and waits for nothing.
func (b *bench) takeover(args ...string) *process {
	b.t.Helper()
	return launch(b.t, b.server, b.dir, b.serving("takeover", args...))
}

// serving makes the command line of a process that serves. It cuts off no
// connection that a test on a busy machine leaves alone for a while.
func (b *bench) serving(command string, args ...string) *exec.Cmd {
	return b.command(append([]string{command, "--drain-timeout=10m"}, args...)...)
}

// succeed has a new process take over, quickly, and waits until it owns the
// sockets for good.
func (b *bench) succeed(generation uint64, args ...string) *process {
	b.t.Helper()
	p := b.takeover(append([]string{"--probation=100ms"}, args...)...)
	b.awaitOwner(generation)
	return p
}

// run runs a command on the server to its end.
func (b *bench) run(args ...string) (output string, code int) {
	b.t.Helper()
	return b.runOn(b.server, b.command(args...))
}

func (b *bench) runOn(h *host, cmd *exec.Cmd) (output string, code int) {
	b.t.Helper()
	p := launch(b.t, h, b.dir, cmd)
	p.await()
	return p.text(), p.code
}

// wantRun runs a command and checks its exit code and what it says.
func (b *bench) wantRun(want int, says string, args ...string) string {
	b.t.Helper()
	output, code := b.run(args...)
	if code != want || !strings.Contains(output, says) {
		b.t.Fatalf("%v: exit code %d, want %d, and %q in the output:\n%s", args, code, want, says, output)
	}
	return output
}

// status runs the status command and reads its JSON.
func (b *bench) status() (*handover.Status, error) {
	b.t.Helper()
	cmd := b.command("status", "--json")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := b.server.start(cmd); err != nil {
		return nil, err
	}
	kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("status: %w: %s", err, errs.String())
	}
	st := new(handover.Status)
	return st, json.Unmarshal(out.Bytes(), st)
}

// awaitStatus polls until the owner's status is as wanted, and returns it.
func (b *bench) awaitStatus(what string, cond func(*handover.Status) bool) *handover.Status {
	b.t.Helper()
	var st *handover.Status
	var err error
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if st, err = b.operator().Status(ctx); err == nil && cond(st) {
			return st
		}
		if time.Now().After(end) {
			b.t.Fatalf("not within %v: %s; the status is %+v, error %v", patience, what, st, err)
		}
	}
}

// awaitPhase polls until a generation is in a phase, and answers for the set.
func (b *bench) awaitPhase(generation uint64, phase handover.Phase) *handover.Status {
	b.t.Helper()
	return b.awaitStatus(fmt.Sprintf("generation %d is in phase %v", generation, phase), func(st *handover.Status) bool {
		return st.Generation == generation && st.Phase == phase
	})
}

// awaitOwner polls until a generation owns the sockets for good.
func (b *bench) awaitOwner(generation uint64) *handover.Status {
	b.t.Helper()
	return b.awaitPhase(generation, handover.PhaseOwner)
}

// address is where a socket of the set is bound.
func (b *bench) address(name string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := b.operator().Status(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range st.Sockets {
		if s.Name == name {
			return s.Address
		}
	}
	b.t.Fatalf("no socket %q in %+v", name, st.Sockets)
	return ""
}

// url is that of a path at the listener web.
func (b *bench) url(path string) string { return "http://" + b.address("web") + path }

// wantGeneration checks who answers a new connection.
func (b *bench) wantGeneration(want uint64) {
	b.t.Helper()
	wantAnswer(b.t, b.plain, b.url("/healthz"), want, "ok\n")
}

// wantAnswer checks an answer's body and who gave it.
func wantAnswer(t testing.TB, c *http.Client, url string, generation uint64, want string) {
	t.Helper()
	body, gen := get(t, c, url)
	if gen != strconv.FormatUint(generation, 10) || body != want {
		t.Fatalf("%s: generation %q answers %q, want %d and %q", url, gen, body, generation, want)
	}
}

// get fetches url and returns the answer's body and generation.
func get(t testing.TB, c *http.Client, url string) (body, generation string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", url, res.Status, b)
	}
	return string(b), res.Header.Get(site.GenerationHeader)
}
