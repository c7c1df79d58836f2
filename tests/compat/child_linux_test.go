package compat

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/tests/compat/v1"
)

// childMain is a peer in a process of its own, where it matters whose process it
// is: pidfds, kills, deaths. It obeys the lines on its standard input, answers
// each with one line, "ok ..." or "error ...", and ends with its input.
func childMain() int {
	c := &childState{path: os.Getenv("COMPAT_TEST_CHILD")}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		said, err := c.obey(strings.Fields(in.Text()))
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok", said)
	}
	return 0
}

type childState struct {
	path string

	// A frozen peer.
	o *v1.Owner
	h *v1.Handover
	s *v1.Successor

	// A present one.
	g  *handover.Generation
	ln net.Listener

	conns []net.Conn
}

func (c *childState) obey(words []string) (said string, err error) {
	ctx := context.Background()
	switch words[0] {
	case "v1-start": // a first generation
		if c.o, err = v1.Start(frozenConfig(c.path)); err == nil {
			err = c.o.Listen("app", "tcp", "127.0.0.1:0")
			said = c.o.Get("app").Address
		}
	case "v1-accept":
		return "", c.keep(c.o.Accept("app"))
	case "v1-hand":
		conn, hello, err := c.o.AcceptControl()
		if err == nil {
			c.h, err = c.o.HandOver(conn, hello)
		}
		return "", err
	case "v1-ready":
		err = c.h.AwaitReady()
	case "v1-grant":
		err = c.h.Grant()
	case "v1-alive":
		_, err = c.h.Await()
	case "v1-committed":
		_, err = c.h.AwaitCommit()
	case "v1-progress":
		err = c.o.Progress(c.h.Conn)
	case "v1-send":
		err = c.o.SendConnections(c.h.Conn, moving(0, c.conns[0]))
	case "v1-withdraw":
		c.o.Withdraw()
	case "v1-takeover":
		c.s, err = v1.TakeOver(frozenConfig(c.path))
	case "v1-say-ready":
		_, err = c.s.Ready()
	case "start", "takeover":
		cfg := currentConfig(c.path)
		if words[0] == "start" {
			cfg.Mode = handover.StartOnly
		}
		if c.g, err = handover.Start(ctx, cfg); err != nil {
			return "", err
		}
		if c.ln, err = c.g.Listen("app", "tcp", "127.0.0.1:0"); err == nil {
			said = c.ln.Addr().String()
		}
	case "ready":
		err = c.g.Ready(ctx)
	case "accept":
		return "", c.keep(c.ln.Accept())
	case "superseded":
		<-c.g.Superseded()
	case "move": // and be killed over it
		go c.ln.(mover).MoveConn(ctx, c.conns[0], []byte("unread 0"), []byte("state 0"))
	default:
		err = fmt.Errorf("unknown command %q", words)
	}
	return said, err
}

func (c *childState) keep(nc net.Conn, err error) error {
	if err == nil {
		c.conns = append(c.conns, nc)
	}
	return err
}

// child is such a process, seen from the test.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startChild(t testing.TB, path string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = append(os.Environ(), "COMPAT_TEST_CHILD="+path)
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	c.in, c.out = in, bufio.NewReader(out)
	must(t, c.cmd.Start())
	t.Cleanup(c.kill)
	return c
}

func (c *child) tell(command string) {
	c.t.Helper()
	_, err := fmt.Fprintln(c.in, command)
	must(c.t, err)
}

// do has the child obey, and gives what it said.
func (c *child) do(commands ...string) (said string) {
	c.t.Helper()
	for _, command := range commands {
		c.tell(command)
		said = c.hear(command)
	}
	return said
}

func (c *child) hear(command string) string {
	c.t.Helper()
	timer := time.AfterFunc(patience, func() { c.cmd.Process.Kill() })
	defer timer.Stop()
	line, err := c.out.ReadString('\n')
	said, ok := strings.CutPrefix(strings.TrimSpace(line), "ok")
	if err != nil || !ok {
		c.t.Fatalf("child: %s: %q, %v", command, line, err)
	}
	return strings.TrimSpace(said)
}

// kill ends the process, if it is there, and returns when it is reaped.
func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
	c.in.Close()
}

// killed waits for a death that somebody else brings about.
func (c *child) killed() {
	c.t.Helper()
	call(c.cmd.Wait).fails(c.t)
	if st, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !st.Signaled() || st.Signal() != syscall.SIGKILL {
		c.t.Fatalf("child: %v", c.cmd.ProcessState)
	}
}
