package handover

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/scm"
)

// asUser makes a child another user.
func asUser(t testing.TB, uid uint32) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "needs root, to be another user")
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// inUserNamespace makes a child root of a namespace in which only uid has a
// mapping.
func inUserNamespace(t testing.TB, uid int) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "needs root, to map another user")
	}
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
	return &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: one, GidMappings: one,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
}

// startChildAs is startChild with attributes. Without the right to make
// namespaces the test lacks something.
func startChildAs(t testing.TB, socket string, attr *syscall.SysProcAttr, env ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = append(append(os.Environ(), "HANDOVER_TEST_CHILD="+socket), env...)
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = attr
	c.cmd.Dir = "/"
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		if attr.Cloneflags != 0 {
			lack(t, "needs a namespace of its own: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill() })
	return c
}

// openToAll lets every user connect to the control socket, so that only its
// owner's own check is in the way.
func openToAll(t testing.TB, cfg Config) {
	t.Helper()
	for name, mode := range map[string]os.FileMode{filepath.Dir(cfg.Socket): 0o755, cfg.Socket: 0o666} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// A client of another user gets one frame, which tells it nothing but why.
func TestForeignUserIsRefused(t *testing.T) {
	for _, uid := range []uint32{12345, 65534} {
		t.Run(fmt.Sprint(uid), func(t *testing.T) {
			leak.Check(t)
			attr := asUser(t, uid)
			cfg := testConfig(t)
			g, _, addr := owner(t, cfg)
			openToAll(t, cfg)
			for range 20 { // which of hello and refusal comes first is chance
				c := startChildAs(t, cfg.Socket, attr)
				c.do("mode takeover")
				got := c.ask("start")
				if !strings.Contains(got, "refused (unauthorized)") || !strings.Contains(got, fmt.Sprintf("uid %d may not talk to this process", uid)) {
					t.Fatalf("another user's takeover: %s", got)
				}
				c.kill()
				if testing.Short() {
					break
				}
			}
			if got := g.Phase(); got != PhaseOwner {
				t.Errorf("the owner is %v", got)
			}
			answers(t, addr, "1")
		})
	}
}

// What is sent to a foreign user, frame by frame.
func TestForeignUserLearnsNothing(t *testing.T) {
	if os.Getenv("HANDOVER_TEST_ALONE") == t.Name() {
		p := dialPeer(t, Config{Socket: os.Getenv("HANDOVER_TEST_SOCKET")})
		var got []string
		p.send(testContext(t), hello(intentTakeover))
		buf, fds := make([]byte, maxFrame), make([]int, scm.MaxFDs)
		for {
			n, nfds, err := p.conn.Recv(testContext(t), buf, fds)
			if err != nil {
				break
			}
			got = append(got, fmt.Sprintf("%s with %d descriptors", buf[:n], nfds))
		}
		fmt.Printf("frames: %q\n", got)
		return
	}
	leak.Check(t)
	attr := asUser(t, 12345)
	cfg := testConfig(t)
	owner(t, cfg)
	openToAll(t, cfg)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestForeignUserLearnsNothing$", "-test.count=1")
	cmd.Env = append(os.Environ(), "HANDOVER_TEST_ALONE="+t.Name(), "HANDOVER_TEST_SOCKET="+cfg.Socket)
	cmd.SysProcAttr, cmd.Dir = attr, "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		frames, ok := strings.CutPrefix(line, "frames: ")
		if !ok {
			continue
		}
		if !strings.HasPrefix(frames, `["{\"type\":\"refuse\",\"code\":\"unauthorized\"`) || strings.Count(frames, " with ") != 1 ||
			!strings.Contains(frames, "with 0 descriptors") || strings.Contains(frames, "generation") {
			t.Errorf("a foreign user was sent %s", frames)
		}
		return
	}
	t.Fatalf("no frames:\n%s", out)
}

func TestAllowUIDs(t *testing.T) {
	leak.Check(t)
	attr := asUser(t, 12345)
	cfg := testConfig(t)
	cfg.AllowUIDs = []uint32{12345}
	g, s, addr := owner(t, cfg)
	openToAll(t, cfg)
	c := startChildAs(t, cfg.Socket, attr)
	c.do("mode takeover", "probation -1s", "start", "listen app tcp "+addr, "ready")
	serves(t, addr, 2)
	await(t, "superseded", g.Superseded())
	g.Close()
	s.wait()
	// Now the control socket answers for that user, whom root does not trust
	// unless it is told to.
	strict := cfg
	strict.AllowUIDs, strict.Mode = nil, TakeOverOnly
	_, err := Start(testContext(t), strict)
	if err == nil || !strings.Contains(err.Error(), ErrUntrustedOwner.Error()) || !strings.Contains(err.Error(), "uid 12345") {
		t.Errorf("takeover from a user who is not trusted: %v", err)
	}
	if _, err := (Operator{Socket: cfg.Socket}).Status(testContext(t)); err == nil || !strings.Contains(err.Error(), ErrUntrustedOwner.Error()) {
		t.Errorf("status from a user who is not trusted: %v", err)
	}
	b := begin(t, cfg)
	listen(t, b, "app", "", "")
	ready(t, b)
}

// An owner in a user namespace sees a peer that has no mapping there.
func TestPeerWithoutMappingIsToldOfUserNamespaces(t *testing.T) {
	leak.Check(t)
	const uid = 12345
	attr := inUserNamespace(t, uid)
	cfg := testConfig(t)
	if err := os.Chown(filepath.Dir(cfg.Socket), uid, uid); err != nil {
		t.Fatal(err)
	}
	o := startChildAs(t, cfg.Socket, attr)
	o.do("start", "listen app tcp 127.0.0.1:0", "ready")
	cfg.AllowUIDs, cfg.Mode = []uint32{uid}, TakeOverOnly
	_, err := Start(testContext(t), cfg)
	if err == nil || !strings.Contains(err.Error(), "user namespace") || !strings.Contains(err.Error(), string(CodeUnauthorized)) {
		t.Errorf("a peer without a mapping is told %v", err)
	}
	if got := o.do("phase"); got != "owner" {
		t.Errorf("the owner is %s", got)
	}
}

// And the other way round: a successor in a user namespace sees an owner that
// has no mapping there.
func TestOwnerWithoutMappingIsExplained(t *testing.T) {
	leak.Check(t)
	const uid = 12345
	attr := inUserNamespace(t, uid)
	cfg := testConfig(t)
	cfg.AllowUIDs = []uint32{uid}
	owner(t, cfg)
	openToAll(t, cfg)
	s := startChildAs(t, cfg.Socket, attr)
	s.do("mode takeover")
	if got := s.ask("start"); !strings.Contains(got, ErrUntrustedOwner.Error()) || !strings.Contains(got, "user namespace") {
		t.Errorf("a successor that sees an owner without a mapping says: %s", got)
	}
}

// A client sees who owns the control socket now, not who made it.
func TestCredentialsOfTheControlSocketMove(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	o, addr := firstGeneration(t, cfg.Socket)
	owns := func(pid int, who string) {
		t.Helper()
		conn, err := scm.Dial(testContext(t), "unixpacket", cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		cred, err := conn.PeerCred()
		if err != nil || int(cred.PID) != pid {
			t.Errorf("a client sees pid %d, want %d, %s: %v", cred.PID, pid, who, err)
		}
	}
	owns(o.cmd.Process.Pid, "the first generation")
	long := cfg
	long.Probation = -1
	b := begin(t, long)
	var s greeter
	s.serve(t, b, listen(t, b, "app", "", ""))
	owns(o.cmd.Process.Pid, "the owner until ready")
	ready(t, b)
	owns(os.Getpid(), "this process")
	o.do("superseded")
	c := successor(t, cfg.Socket, addr, "probation 1h")
	c.do("ready")
	owns(c.cmd.Process.Pid, "the successor in probation")
	c.kill()
	serves2 := func() bool {
		st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
		return err == nil && st.Phase == PhaseOwner && st.Generation == 2
	}
	eventually(t, "owner again", serves2)
	owns(os.Getpid(), "this process again")
	b.Close()
	s.wait()
}
