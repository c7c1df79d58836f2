package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/scm"
)

// inOwnProcess runs the calling test again in a process of its own, so that a
// crash or a limit is that one's alone. In that process it gives false.
func inOwnProcess(t *testing.T, env ...string) bool {
	t.Helper()
	if os.Getenv("HANDOVER_TEST_ALONE") == t.Name() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$",
		"-test.short="+fmt.Sprint(testing.Short()))
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(append(os.Environ(), "HANDOVER_TEST_ALONE="+t.Name()), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(string(out), "\n")
		t.Errorf("in a process of its own: %v\n%s", err, strings.Join(lines[:min(len(lines), 60)], "\n"))
	}
	return true
}

// within fails, with all stacks, when f does not return in time.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(d):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s: not within %v\n%s", what, d, buf[:runtime.Stack(buf, true)])
	}
}

// fdLinks lists this process's descriptors with what they are.
func fdLinks(t testing.TB) (all []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "/proc/") {
			all = append(all, to)
		}
	}
	slices.Sort(all)
	return all
}

// stock is what this process holds.
type stock struct {
	fds        []string
	goroutines int
}

func takeStock(t testing.TB) stock {
	t.Helper()
	return stock{fdLinks(t), runtime.NumGoroutine()}
}

// unchanged asserts that nothing was left behind since s.
func (s stock) unchanged(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		now := takeStock(t)
		more := slices.Clone(now.fds)
		for _, was := range s.fds {
			if i := slices.Index(more, was); i >= 0 {
				more = slices.Delete(more, i, i+1)
			}
		}
		if len(more) == 0 && now.goroutines <= s.goroutines {
			return
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("left behind: %d goroutines, were %d, and the descriptors %v\n%s",
				now.goroutines, s.goroutines, more, buf[:runtime.Stack(buf, true)])
		}
	}
}

// unharmed asserts that the owner serves, tells its status, can be taken over,
// and takes the sockets back again.
func unharmed(t testing.TB, cfg Config, g *Generation, addr string) {
	t.Helper()
	within(t, 20*time.Second, "owner again", func() {
		for g.Phase() != PhaseOwner {
			time.Sleep(time.Millisecond)
		}
	})
	answers(t, addr, fmt.Sprint(g.Number()))
	st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
	if err != nil || st.Generation != g.Number() {
		t.Fatalf("status %+v: %v", st, err)
	}
	if !g.holdsWord() {
		t.Fatalf("the ownership word says %v", g.word.load())
	}
	cfg.Probation = time.Hour
	var b *Generation
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err = Start(testContext(t), cfg)
		// The hello of one who has gone may still be in the queue.
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Code != CodeBusy || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatalf("proper takeover: %v", err)
	}
	defer b.Close()
	var s greeter
	s.serve(t, b, listen(t, b, "app", "", ""))
	ready(t, b)
	answers(t, addr, fmt.Sprint(b.Number()))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	s.wait()
	answers(t, addr, fmt.Sprint(g.Number()))
}

// ended awaits the end of the conversation, and tells the refusal before it.
func (p *peer) ended() (code Code) {
	p.t.Helper()
	for {
		f, fds, err := p.recv(testContext(p.t))
		closeAll(fds)
		if r, ok := f.(*frameRefuse); ok {
			code = r.Code
		}
		if err != nil {
			if !gone(err) {
				p.t.Fatalf("instead of the end: %v", err)
			}
			return code
		}
	}
}

// try is say for what the owner may have stopped listening to.
func (p *peer) try(f any, fds ...int) error {
	p.t.Helper()
	err := p.send(testContext(p.t), f, fds...)
	if err != nil && !gone(err) && !errors.Is(err, unix.EPERM) {
		p.t.Fatalf("send %T: %v", f, err)
	}
	return err
}

// await receives frames until one is of the wanted type, like *frameGranted.
func awaitFrame[F any](p *peer) F {
	p.t.Helper()
	for {
		f := p.next()
		if want, ok := f.(F); ok {
			return want
		}
		if err := errOf(f); err != nil {
			p.t.Fatalf("instead of %T: %v", *new(F), err)
		}
	}
}

func received(first int, cookies ...cookie) frameReceived {
	return frameReceived{Type: typeReceived, First: first, Cookies: cookies}
}

func simple(typ string) frameSimple { return frameSimple{Type: typ} }

// firstBatch goes as far as the first sockets frame, and tells its cookies.
func (p *peer) firstBatch() (cookies []cookie) {
	p.t.Helper()
	p.say(hello(intentTakeover))
	awaitFrame[*frameWelcome](p)
	for _, it := range awaitFrame[*frameSockets](p).Items {
		cookies = append(cookies, it.Cookie)
	}
	return cookies
}

// untilReady goes as far as a successor that has received everything.
func (p *peer) untilReady() {
	p.t.Helper()
	p.say(hello(intentTakeover))
	p.receiveAll()
}

func (p *peer) untilGranted() {
	p.t.Helper()
	p.untilReady()
	p.say(simple(typeReady))
	awaitFrame[*frameGranted](p)
}

const silence = Code("-") // closed without a refusal

var hostileClients = []struct {
	name string
	play func(*peer)
	want Code // "": whatever it is, the conversation ends
}{
	{"silent", func(p *peer) {}, silence},
	{"one byte", func(p *peer) { p.raw("x") }, CodeProtocol},
	{"half a frame", func(p *peer) { p.raw(`{"type":"hello","proto`) }, CodeProtocol},
	{"no object", func(p *peer) { p.raw(`[]`) }, CodeProtocol},
	{"wrong types in it", func(p *peer) { p.raw(`{"type":"hello","protocols":"1","intent":7}`) }, CodeProtocol},
	{"deep nesting", func(p *peer) { p.raw(`{"type":"hello","x":` + strings.Repeat("[", 30_000)) }, CodeProtocol},
	{"64 KiB of zeros", func(p *peer) { p.raw(strings.Repeat("\x00", maxFrame)) }, CodeProtocol},
	{"1 MiB", func(p *peer) {
		if err := p.big(1 << 20); err != nil {
			p.t.Skipf("the kernel does not send such a packet: %v", err)
		}
	}, silence},
	{"unknown type", func(p *peer) { p.raw(`{"type":"gimme"}`) }, CodeProtocol},
	{"no type", func(p *peer) { p.raw(`{}`) }, CodeProtocol},
	{"unknown intent", func(p *peer) { p.say(hello("steal")) }, CodeProtocol},
	{"no protocol", func(p *peer) { p.raw(`{"type":"hello","intent":"takeover"}`) }, CodeVersion},
	{"100 protocols", func(p *peer) {
		h := hello(intentTakeover)
		h.Protocols = make([]int, 100)
		p.say(h)
	}, CodeProtocol},
	{"program of 5 KiB", func(p *peer) {
		h := hello(intentTakeover)
		h.Program = strings.Repeat("x", 5<<10)
		p.say(h)
	}, CodeProtocol},
	{"negative probation", func(p *peer) {
		p.raw(`{"type":"hello","protocols":[1],"intent":"takeover","probation_ms":-1}`)
	}, CodeProtocol},
	{"ready first", func(p *peer) { p.say(simple(typeReady)) }, CodeProtocol},
	{"received first", func(p *peer) { p.say(received(0, 1)) }, CodeProtocol},
	{"commit first", func(p *peer) { p.say(simple(typeCommit)) }, CodeProtocol},
	{"an owner's frame first", func(p *peer) { p.say(welcome(1)) }, CodeProtocol},
	{"a report from the future", func(p *peer) {
		h := hello(intentReport)
		h.Generation = 99
		p.say(h)
	}, CodeProtocol},
	{"a report that is a ready", func(p *peer) {
		p.say(hello(intentReport))
		p.try(simple(typeReady))
	}, CodeProtocol},
	{"hello, then gone", func(p *peer) { p.say(hello(intentTakeover)); p.conn.Close() }, ""},

	{"second hello before the sockets are received", func(p *peer) {
		p.firstBatch()
		p.say(hello(intentTakeover))
	}, CodeProtocol},
	{"ready before received", func(p *peer) { p.firstBatch(); p.say(simple(typeReady)) }, CodeProtocol},
	{"alive before received", func(p *peer) { p.firstBatch(); p.say(simple(typeAlive)) }, CodeProtocol},
	{"rubbish before received", func(p *peer) { p.firstBatch(); p.raw("{") }, ""},
	{"received before the sockets", func(p *peer) {
		p.say(received(0, 7))
		p.try(hello(intentTakeover))
	}, ""},
	{"received with wrong first", func(p *peer) { c := p.firstBatch(); p.say(received(1, c...)) }, CodeProtocol},
	{"received with negative first", func(p *peer) { c := p.firstBatch(); p.say(received(-1, c...)) }, ""},
	{"received with huge first", func(p *peer) { c := p.firstBatch(); p.say(received(maxItems-1, c...)) }, CodeProtocol},
	{"received with too few", func(p *peer) { c := p.firstBatch(); p.say(received(0, c[1:]...)) }, CodeProtocol},
	{"received with too many", func(p *peer) { c := p.firstBatch(); p.say(received(0, append(c, 1)...)) }, CodeProtocol},
	{"received with none", func(p *peer) { p.firstBatch(); p.say(received(0)) }, CodeProtocol},
	{"received with a wrong cookie", func(p *peer) { c := p.firstBatch(); c[0]++; p.say(received(0, c...)) }, CodeProtocol},
	{"received with swapped cookies", func(p *peer) {
		c := p.firstBatch()
		c[0], c[1] = c[1], c[0]
		p.say(received(0, c...))
	}, CodeProtocol},
	{"received and then silent", func(p *peer) { p.firstBatch() }, ""},

	{"the same received twice", func(p *peer) {
		c := p.firstBatch()
		p.say(received(0, c...))
		p.try(received(0, c...))
	}, CodeProtocol},
	{"hello when ready is due", func(p *peer) { p.untilReady(); p.say(hello(intentTakeover)) }, CodeProtocol},
	{"alive when not granted", func(p *peer) { p.untilReady(); p.say(simple(typeAlive)) }, CodeProtocol},
	{"commit when not granted", func(p *peer) { p.untilReady(); p.say(simple(typeCommit)) }, CodeProtocol},
	{"granted by the successor", func(p *peer) {
		p.untilReady()
		p.say(frameGranted{Type: typeGranted, Generation: 2})
	}, CodeProtocol},
	{"rollback when not granted", func(p *peer) { p.untilReady(); p.say(simple(typeRollback)) }, silence},
	{"silent when ready is due", func(p *peer) { p.untilReady() }, CodeTimeout},
	{"gone when ready is due", func(p *peer) { p.untilReady(); p.conn.Close() }, ""},

	{"ready twice", func(p *peer) { p.untilGranted(); p.say(simple(typeReady)) }, silence},
	{"hello in probation", func(p *peer) { p.untilGranted(); p.say(hello(intentTakeover)) }, silence},
	{"rubbish in probation", func(p *peer) { p.untilGranted(); p.raw("rubbish") }, silence},
	{"commit without the word", func(p *peer) { p.untilGranted(); p.say(simple(typeCommit)) }, silence},
	{"rollback in probation", func(p *peer) { p.untilGranted(); p.say(simple(typeRollback)) }, silence},
	{"silent in probation", func(p *peer) { p.untilGranted() }, silence},
	{"alive once, then silent", func(p *peer) { p.untilGranted(); p.say(simple(typeAlive)) }, silence},
	{"gone in probation", func(p *peer) { p.untilGranted(); p.conn.Close() }, ""},
}

// big sends one packet of n bytes, if the kernel lets it.
func (p *peer) big(n int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*n); err != nil {
		return err
	}
	sa, err := unix.Getpeername(p.fd())
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	return unix.Send(fd, make([]byte, n), unix.MSG_NOSIGNAL)
}

// fd finds the descriptor of the peer's connection by its cookie.
func (p *peer) fd() int {
	p.t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		var fd int
		fmt.Sscan(e.Name(), &fd)
		if sa, err := unix.Getpeername(fd); err == nil {
			if un, ok := sa.(*unix.SockaddrUnix); ok && un.Name != "" {
				return fd
			}
		}
	}
	p.t.Fatal("no connection to the control socket")
	return -1
}

// Whatever a client does, the owner serves on, ends the conversation within
// the configured times, holds nothing of it, and the next takeover works.
func TestHostileClients(t *testing.T) {
	for _, tt := range hostileClients {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			cfg.StepTimeout, cfg.ReadyTimeout, cfg.AliveTimeout = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
			// What follows proves that it works, not how fast.
			proper := cfg
			proper.StepTimeout = 20 * time.Second
			g, _, addr := owner(t, cfg)
			unharmed(t, proper, g, addr)
			before := takeStock(t)
			p := dialPeer(t, cfg)
			tt.play(p)
			if tt.want != "" {
				got := p.ended()
				if tt.want == silence {
					tt.want = ""
				}
				if got != tt.want {
					t.Errorf("refused with code %q, want %q", got, tt.want)
				}
			}
			p.close()
			within(t, 10*time.Second, "owner again", func() {
				for g.Phase() != PhaseOwner {
					time.Sleep(time.Millisecond)
				}
			})
			before.unchanged(t)
			unharmed(t, proper, g, addr)
			before.unchanged(t)
		})
	}
}

// A client pushes descriptors that nobody asked for, at each step: none stays
// open in the owner.
func TestDescriptorsNobodyAskedFor(t *testing.T) {
	for name, kernelHelps := range map[string]bool{"SO_PASSRIGHTS as the kernel has it": true, "without SO_PASSRIGHTS": false} {
		for step, play := range map[string]func(p *peer, push func(any)){
			"hello":    func(p *peer, push func(any)) { push(hello(intentStatus)) },
			"received": func(p *peer, push func(any)) { c := p.firstBatch(); push(received(0, c...)) },
			"ready":    func(p *peer, push func(any)) { p.untilReady(); push(simple(typeReady)) },
			"alive":    func(p *peer, push func(any)) { p.untilGranted(); push(simple(typeAlive)) },
			"report": func(p *peer, push func(any)) {
				p.say(hello(intentReport))
				push(frameProgress{Type: typeProgress})
			},
		} {
			t.Run(name+"/"+step, func(t *testing.T) {
				leak.Check(t)
				cfg := testConfig(t)
				cfg.StepTimeout, cfg.ReadyTimeout, cfg.AliveTimeout = time.Second, time.Second, time.Second
				g, _, addr := owner(t, cfg)
				p := dialPeer(t, cfg)
				play(p, func(f any) {
					var ours *link
					eventually(t, "the conversation", func() bool {
						g.do(func() {
							for l := range g.conns {
								ours = l
							}
						})
						return ours != nil
					})
					if !kernelHelps {
						if err := ours.conn.SetPassRights(true); err != nil && !errors.Is(err, errors.ErrUnsupported) {
							t.Fatal(err)
						}
					}
					r, w, err := os.Pipe()
					if err != nil {
						t.Fatal(err)
					}
					defer r.Close()
					fd, err := sockFD(w)
					if err != nil {
						t.Fatal(err)
					}
					p.try(f, fd)
					w.Close()
					// The last copy is gone when the pipe says so.
					r.SetReadDeadline(time.Now().Add(10 * time.Second))
					if _, err := r.Read(make([]byte, 1)); err != io.EOF {
						t.Errorf("the pipe that was pushed is still open: %v", err)
					}
				})
				p.close()
				unharmed(t, cfg, g, addr)
			})
		}
	}
}

// A thousand clients that connect and say nothing do not keep others out.
func TestThousandSilentClients(t *testing.T) {
	leak.Check(t)
	needFDs(t, 3000)
	cfg := testConfig(t)
	g, _, addr := owner(t, cfg)
	before := takeStock(t)
	silent := func(n int) (all []*scm.Conn) {
		for range n {
			c, err := scm.Dial(testContext(t), "unixpacket", cfg.Socket)
			if errors.Is(err, unix.EAGAIN) {
				// The queue is full: what a client does then is to wait.
				eventually(t, "room in the queue", func() bool {
					c, err = scm.Dial(testContext(t), "unixpacket", cfg.Socket)
					return err == nil
				})
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
		return all
	}
	conns := silent(1000)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	began := time.Now()
	unharmed(t, cfg, g, addr)
	if d := time.Since(began); d > DefaultStepTimeout/2 {
		t.Errorf("a status and a takeover took %v", d)
	}
	g.do(func() {
		if len(g.conns) > maxConversations || len(g.pending) > maxPending {
			t.Errorf("%d conversations, %d without a hello", len(g.conns), len(g.pending))
		}
	})
	for _, c := range conns {
		c.Close()
	}
	conns = nil
	before.unchanged(t)
}

// Clients that are refused, and then stay, do not keep others out.
func TestThousandRefusedClients(t *testing.T) {
	leak.Check(t)
	needFDs(t, 3000)
	cfg := testConfig(t)
	g, _, addr := owner(t, cfg)
	for range 1000 {
		conn, err := scm.Dial(testContext(t), "unixpacket", cfg.Socket)
		if errors.Is(err, unix.EAGAIN) {
			eventually(t, "room in the queue", func() bool {
				conn, err = scm.Dial(testContext(t), "unixpacket", cfg.Socket)
				return err == nil
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Send(testContext(t), []byte("rubbish"), nil); err != nil && !gone(err) {
			t.Fatal(err)
		}
	}
	unharmed(t, cfg, g, addr)
}

// Clients that speak, and then stay, do not keep others out either.
func TestAsManyReportersAsThereIsRoomFor(t *testing.T) {
	leak.Check(t)
	needFDs(t, 2000)
	cfg := testConfig(t)
	g, _, addr := owner(t, cfg)
	for range maxConversations + maxPending {
		p := dialPeer(t, cfg)
		p.try(hello(intentReport))
		eventually(t, "hello heard", func() (heard bool) {
			g.do(func() { heard = len(g.pending) == 0 })
			return heard
		})
	}
	unharmed(t, cfg, g, addr)
}

// A client that asks and does not read costs the owner one StepTimeout.
func TestClientThatNeverReads(t *testing.T) {
	leak.Check(t)
	needFDs(t, 5000)
	cfg := testConfig(t)
	cfg.StepTimeout = 300 * time.Millisecond
	g := begin(t, cfg)
	var s greeter
	app := listen(t, g, "app", "tcp", "127.0.0.1:0")
	s.serve(t, g, app)
	dir := filepath.Dir(cfg.Socket)
	for i := range 2000 {
		listen(t, g, fmt.Sprintf("%d-%s", i, strings.Repeat("n", 100)), "unix", filepath.Join(dir, fmt.Sprint(i)))
	}
	ready(t, g)
	before := takeStock(t)
	p := dialPeer(t, cfg)
	p.say(hello(intentStatus))
	eventually(t, "the owner's answer stuck", func() bool { return p.conn.Readable() })
	eventually(t, "the owner gives up", func() (none bool) {
		g.do(func() { none = len(g.conns) == 0 })
		return none
	})
	p.close()
	// One that asks to take over and reads nothing.
	p = dialPeer(t, cfg)
	p.say(hello(intentTakeover))
	eventually(t, "handing", func() bool { return g.Phase() == PhaseHanding })
	awaitPhase(t, g, PhaseOwner)
	p.close()
	before.unchanged(t)
	answers(t, app.Addr().String(), "1")
}

// gift is a descriptor that a fake owner hands over, as it describes it.
type gift struct {
	item
	fd int
}

// fake is a fake owner with everything that a real one has.
type fake struct {
	t    testing.TB
	ln   *net.UnixListener
	word *word
	set  []gift // control, lock, word, app
}

func newFake(t testing.TB, cfg Config) *fake {
	t.Helper()
	f := &fake{t: t}
	ln, id, err := bindControl(testContext(t), cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	f.ln = ln
	lock, _, err := lockPath(cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if f.word, err = newWord(settled(1, 0)); err != nil {
		t.Fatal(err)
	}
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		closeFD(lock)
		f.word.close()
		app.Close()
	})
	f.set = []gift{
		{item{Name: nameControl, Kind: kindControl, Network: "unixpacket", Address: cfg.Socket, Dev: id.dev, Ino: id.ino}, f.fdOf(ln)},
		{item{Name: nameLock, Kind: kindLock}, lock},
		{item{Name: nameWord, Kind: kindWord}, f.word.fd},
		{item{Name: "app", Kind: KindListener, Network: "tcp", Address: app.Addr().String()}, f.fdOf(app)},
	}
	return f
}

func (f *fake) fdOf(c any) int {
	f.t.Helper()
	fd, err := sockFD(c.(syscall.Conn))
	if err != nil {
		f.t.Fatal(err)
	}
	return fd
}

// keep closes c at the end of the test and gives its descriptor.
func (f *fake) keep(c io.Closer, err error) int {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return f.fdOf(c)
}

// accept awaits a successor.
func (f *fake) accept() *peer {
	f.t.Helper()
	f.ln.SetDeadline(time.Now().Add(20 * time.Second))
	c, err := f.ln.AcceptUnix()
	if err != nil {
		f.t.Fatal(err)
	}
	conn, err := scm.NewConn(c)
	if err != nil {
		f.t.Fatal(err)
	}
	p := &peer{f.t, newLink(conn, scm.MaxFDs)}
	f.t.Cleanup(p.close)
	return p
}

// give sends gifts as one sockets frame, announced as the items say.
func (p *peer) give(first int, gifts ...gift) {
	p.t.Helper()
	s := frameSockets{Type: typeSockets, First: first}
	var fds []int
	for _, g := range gifts {
		s.Items, fds = append(s.Items, g.item), append(fds, g.fd)
	}
	p.say(s, fds...)
}

// start has a real successor receive everything, and gives both ends.
func (f *fake) start(cfg Config) (*Generation, *peer) {
	f.t.Helper()
	got := make(chan *peer, 1)
	go func() {
		p := f.accept()
		awaitFrame[*frameHello](p)
		w := welcome(len(f.set))
		w.Probation, w.AliveEvery = millis(time.Hour), millis(50*time.Millisecond)
		p.say(w)
		p.give(0, f.set...)
		awaitFrame[*frameReceived](p)
		got <- p
	}()
	g := begin(f.t, cfg)
	return g, <-got
}

// hostileOwners break the transfer. Start fails with want, or with a text.
var hostileOwners = []struct {
	name string
	want any
	play func(*fake, *peer)
}{
	{"welcome with count 0", errFrame, func(f *fake, p *peer) { p.say(welcome(0)) }},
	{"welcome with count -1", errFrame, func(f *fake, p *peer) { p.say(welcome(-1)) }},
	{"welcome with count 65537", errFrame, func(f *fake, p *peer) { p.say(welcome(maxItems + 1)) }},
	{"welcome to an older generation", errFrame, func(f *fake, p *peer) {
		w := welcome(4)
		w.Next = 1
		p.say(w)
	}},
	{"welcome to a generation beyond the word", errFrame, func(f *fake, p *peer) {
		w := welcome(4)
		w.Next = maxGeneration + 1
		p.say(w)
	}},
	{"welcome without heartbeats", errFrame, func(f *fake, p *peer) {
		w := welcome(4)
		w.AliveEvery = 0
		p.say(w)
	}},
	{"welcome with an endless probation", errFrame, func(f *fake, p *peer) {
		w := welcome(4)
		w.Probation = millis(24 * time.Hour)
		p.say(w)
	}},
	{"welcome twice", errFrame, func(f *fake, p *peer) { p.say(welcome(4)); p.try(welcome(4)) }},
	{"rubbish for a welcome", errFrame, func(f *fake, p *peer) { p.raw("rubbish") }},
	{"unknown type for a welcome", errFrame, func(f *fake, p *peer) { p.raw(`{"type":"hola"}`) }},
	{"sockets before welcome", errFrame, func(f *fake, p *peer) { p.give(0, f.set...) }},
	{"granted before welcome", errFrame, func(f *fake, p *peer) { p.say(frameGranted{Type: typeGranted, Generation: 2}) }},
	{"welcome with two descriptors", errFrame, func(f *fake, p *peer) { p.say(welcome(4), f.set[0].fd, f.set[1].fd) }},
	{"welcome with a socket for a pidfd", "no pidfd", func(f *fake, p *peer) { p.say(welcome(4), f.set[3].fd) }},
	{"welcome with a file named pidfd", "no pidfd", func(f *fake, p *peer) {
		name := filepath.Join(filepath.Dir(f.ln.Addr().String()), "pidfd")
		file, err := os.Create(name)
		p.say(welcome(len(f.set)), f.keep(file, err))
		p.tryGive(0, f.set...)
	}},
	{"welcome of 1 MiB", scm.ErrPayloadTruncated, func(f *fake, p *peer) {
		fd := f.fdOfConn(p)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20); err != nil {
			p.t.Skip(err)
		}
		p.raw(strings.Repeat(" ", 1<<20))
	}},

	{"granted before sockets", errFrame, func(f *fake, p *peer) {
		p.say(welcome(4))
		p.try(frameGranted{Type: typeGranted, Generation: 2})
	}},
	{"first out of range", errFrame, func(f *fake, p *peer) { p.say(welcome(4)); p.give(maxItems, f.set...) }},
	{"first not 0", errFrame, func(f *fake, p *peer) { p.say(welcome(4)); p.give(1, f.set...) }},
	{"more items than announced", errFrame, func(f *fake, p *peer) { p.say(welcome(3)); p.give(0, f.set...) }},
	{"no items", errFrame, func(f *fake, p *peer) { p.say(welcome(4)); p.give(0) }},
	{"fewer descriptors than items", errFrame, func(f *fake, p *peer) {
		p.say(welcome(2))
		p.say(frameSockets{Type: typeSockets, Items: []item{f.set[0].item, f.set[1].item}}, f.set[0].fd)
	}},
	{"more descriptors than items", errFrame, func(f *fake, p *peer) {
		p.say(welcome(2))
		p.say(frameSockets{Type: typeSockets, Items: []item{f.set[0].item}}, f.set[0].fd, f.set[1].fd)
	}},
	{"the same batch twice", errFrame, func(f *fake, p *peer) {
		p.say(welcome(8))
		p.give(0, f.set...)
		awaitFrame[*frameReceived](p)
		p.give(0, f.set...)
	}},
	{"the same names again", "sent twice", func(f *fake, p *peer) {
		p.say(welcome(8))
		p.give(0, f.set...)
		awaitFrame[*frameReceived](p)
		p.give(4, f.set...)
	}},
	{"the same name twice", "name sent twice", func(f *fake, p *peer) {
		p.say(welcome(5))
		p.give(0, append(f.set, f.set[3])...)
	}},
	{"the same state twice", "state sent twice", func(f *fake, p *peer) {
		s := gift{item{Name: "s", Kind: kindState}, f.set[2].fd}
		p.say(welcome(6))
		p.give(0, append(f.set, s, s)...)
	}},
	{"a reserved name", errFrame, f4(func(f *fake) gift { return f.as("@mine", KindListener, "tcp") })},
	{"a name with a colon", errFrame, f4(func(f *fake) gift { return f.as("a:b", KindListener, "tcp") })},
	{"a reserved kind under another name", errFrame, f4(func(f *fake) gift { return f.as("lock", kindLock, "") })},
	{"an unknown kind", errFrame, f4(func(f *fake) gift { return f.as("x", "gadget", "") })},
	{"kind and network that differ", errFrame, f4(func(f *fake) gift { return f.as("x", KindPacket, "tcp") })},
	{"a TCP listener as a Unix one", errFrame, f4(func(f *fake) gift { return f.as("x", KindListener, "unix") })},
	{"a TCP listener as tcp6", errFrame, f4(func(f *fake) gift { return f.as("x", KindListener, "tcp6") })},
	{"a TCP listener as a UDP socket", errFrame, f4(func(f *fake) gift { return f.as("x", KindPacket, "udp") })},
	{"a pipe as a listener", errFrame, f4(func(f *fake) gift {
		r, w, err := os.Pipe()
		f.keep(w, err)
		return gift{f.as("x", KindListener, "tcp").item, f.keep(r, err)}
	})},
	{"a connection as a listener", errFrame, f4(func(f *fake) gift {
		c, err := net.Dial("tcp", f.set[3].Address)
		return gift{f.as("x", KindListener, "tcp").item, f.keep(c, err)}
	})},
	{"a UDP socket as a TCP listener", errFrame, f4(func(f *fake) gift {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		return gift{f.as("x", KindListener, "tcp").item, f.keep(c, err)}
	})},
	{"a socket that does not listen", errFrame, f4(func(f *fake) gift {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		file := os.NewFile(uintptr(fd), "idle")
		return gift{f.as("x", KindListener, "tcp").item, f.keep(file, err)}
	})},
	{"a raw socket", errFrame, f4(func(f *fake) gift {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
		if err != nil {
			f.t.Skip(err)
		}
		return gift{f.as("x", KindPacket, "udp").item, f.keep(os.NewFile(uintptr(fd), "raw"), err)}
	})},
	{"a stream socket for the control socket", errFrame, swap(0, func(f *fake) int {
		ln, err := net.Listen("unix", filepath.Join(filepath.Dir(f.set[0].Address), "other"))
		return f.keep(ln, err)
	})},
	{"a connection for the control socket", errFrame, swap(0, func(f *fake) int {
		c, err := net.Dial("unixpacket", f.set[0].Address)
		return f.keep(c, err)
	})},
	{"no control socket", "no control", without(0)},
	{"no lock", "no lock", without(1)},
	{"no word", "no word", without(2)},
	{"an unsealed word", "not sealed", swap(2, func(f *fake) int { return f.memfd(wordSize, 0) })},
	{"an empty word", "memory file of 0 bytes", swap(2, func(f *fake) int { return f.memfd(0, unix.F_SEAL_SHRINK) })},
	{"a word that cannot be written", "ownership word", swap(2, func(f *fake) int {
		return f.memfd(wordSize, unix.F_SEAL_SHRINK|unix.F_SEAL_WRITE)
	})},
	{"a file for the word", "ownership word", swap(2, func(f *fake) int {
		file, err := os.Create(filepath.Join(filepath.Dir(f.set[0].Address), "word"))
		return f.keep(file, err)
	})},
	{"a socket for the word", "ownership word", swap(2, func(f *fake) int { return f.set[3].fd })},

	{"silence before welcome", ErrStuck, func(f *fake, p *peer) {}},
	{"silence before sockets", ErrStuck, func(f *fake, p *peer) { p.say(welcome(4)) }},
	{"silence between batches", ErrStuck, func(f *fake, p *peer) { p.say(welcome(4)); p.give(0, f.set[:2]...) }},
	{"end before welcome", ErrPredecessorDied, func(f *fake, p *peer) {
		// It looks twice: an owner that has just been superseded does that, too.
		p.conn.Close()
		f.accept().conn.Close()
	}},
	{"end before sockets", ErrPredecessorDied, func(f *fake, p *peer) { p.say(welcome(4)); p.conn.Close() }},
	{"end between batches", ErrPredecessorDied, func(f *fake, p *peer) {
		p.say(welcome(4))
		p.give(0, f.set[:2]...)
		awaitFrame[*frameReceived](p)
		p.conn.Close()
	}},
	{"refusal with descriptors", "refused (busy)", func(f *fake, p *peer) {
		p.say(frameRefuse{Type: typeRefuse, Code: CodeBusy, Message: "later"}, f.set[0].fd, f.set[3].fd)
	}},
	{"refusal instead of sockets", "refused (internal)", func(f *fake, p *peer) {
		p.say(welcome(4))
		p.say(frameRefuse{Type: typeRefuse, Code: CodeInternal, Message: "sorry"})
	}},
}

// f4 hands over the proper set and one gift more.
func f4(more func(*fake) gift) func(*fake, *peer) {
	return func(f *fake, p *peer) {
		p.say(welcome(len(f.set) + 1))
		p.give(0, append(f.set, more(f))...)
	}
}

// swap hands over the proper set with another descriptor at i.
func swap(i int, other func(*fake) int) func(*fake, *peer) {
	return func(f *fake, p *peer) {
		set := slices.Clone(f.set)
		set[i].fd = other(f)
		p.say(welcome(len(set)))
		p.give(0, set...)
	}
}

func without(i int) func(*fake, *peer) {
	return func(f *fake, p *peer) {
		set := slices.Delete(slices.Clone(f.set), i, i+1)
		p.say(welcome(len(set)))
		p.give(0, set...)
	}
}

// as describes the app listener as something else.
func (f *fake) as(name string, kind Kind, network string) gift {
	return gift{item{Name: name, Kind: kind, Network: network, Address: f.set[3].Address}, f.set[3].fd}
}

func (f *fake) memfd(size int64, seals int) int {
	f.t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		f.t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (p *peer) tryGive(first int, gifts ...gift) {
	s := frameSockets{Type: typeSockets, First: first}
	var fds []int
	for _, g := range gifts {
		s.Items, fds = append(s.Items, g.item), append(fds, g.fd)
	}
	p.try(s, fds...)
}

// fdOfConn finds the descriptor of an accepted connection.
func (f *fake) fdOfConn(p *peer) int {
	f.t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		var fd int
		fmt.Sscan(e.Name(), &fd)
		own, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		un, ok := own.(*unix.SockaddrUnix)
		if info, err := inspect(fd); ok && err == nil && un.Name == f.set[0].Address && !info.accepting {
			return fd
		}
	}
	f.t.Fatal("no accepted connection")
	return -1
}

func TestHostileOwners(t *testing.T) {
	for _, tt := range hostileOwners {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			cfg.Mode = TakeOverOnly
			cfg.StepTimeout = 20 * time.Second
			if tt.want == ErrStuck {
				cfg.StepTimeout = 200 * time.Millisecond
			}
			f := newFake(t, cfg)
			done := make(chan error, 1)
			go func() {
				g, err := Start(testContext(t), cfg)
				if err == nil {
					g.Close()
				}
				done <- err
			}()
			p := f.accept()
			awaitFrame[*frameHello](p)
			tt.play(f, p)
			var err error
			select {
			case err = <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("the successor does not give up")
			}
			switch want := tt.want.(type) {
			case error:
				if !errors.Is(err, want) {
					t.Errorf("%v, want %v", err, want)
				}
			case string:
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %s", err, want)
				}
			}
			p.close()
			if got := f.word.load(); got != settled(1, 0) {
				t.Errorf("the ownership word says %v", got)
			}
		})
	}
}

// later breaks the conversation when everything was received. cmd is what the
// application does meanwhile, result what it is told.
var hostileLater = []struct {
	name   string
	play   func(f *fake, p *peer, g *Generation)
	cmd    func(*Generation) error // nil: Ready
	want   string                  // of cmd's error; "": none
	phase  Phase
	word   ownership
	before bool // play comes before cmd
}{
	{
		name: "granted without the word", want: "the ownership word says", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeReady)
			p.say(frameGranted{Type: typeGranted, Generation: 2})
		},
	},
	{
		name: "granted without the word, before ready", want: "the ownership word says", phase: PhaseDraining, word: declined(1, 0), before: true,
		play: func(f *fake, p *peer, g *Generation) {
			p.say(frameGranted{Type: typeGranted, Generation: 2})
			await(p.t, "end", g.Superseded())
		},
	},
	{
		name: "granted twice", phase: PhaseProbation, word: onProbation(2, 0),
		play: func(f *fake, p *peer, g *Generation) {
			f.grant(p)
			p.say(frameGranted{Type: typeGranted, Generation: 2})
		},
	},
	{
		name: "granted to somebody else", want: "the ownership word says", phase: PhaseDraining, word: onProbation(3, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeReady)
			f.word.at().Store(uint64(onProbation(3, 0)))
			p.say(frameGranted{Type: typeGranted, Generation: 2})
		},
	},
	{
		name: "revoked before granted", want: "out of place", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeReady); p.say(simple(typeRevoked)) },
	},
	{
		name: "ready from the owner", want: "out of place", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeReady); p.say(simple(typeReady)) },
	},
	{
		name: "sockets again", want: "out of place", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeReady)
			s := f.set[3].item
			p.say(frameSockets{Type: typeSockets, Items: []item{s}})
		},
	},
	{
		name: "descriptors nobody asked for", want: "nobody asked for", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeReady)
			p.say(simple(typeAlive), f.set[3].fd, f.set[2].fd)
		},
	},
	{
		name: "rubbish", want: errFrame.Error(), phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeReady); p.raw("rubbish") },
	},
	{
		name: "refused", want: "refused (timeout): too late", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeReady)
			p.say(frameRefuse{Type: typeRefuse, Code: CodeTimeout, Message: "too late"})
		},
	},
	{
		name: "silence", want: ErrStuck.Error(), phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeReady) },
	},
	{
		name: "granted by the word, without a frame", phase: PhaseOwner, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeReady)
			f.word.at().Store(uint64(settled(2, 0)))
		},
	},
	{
		name: "end, alive", want: "still serves", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeReady); p.conn.Close() },
	},
	{
		name: "revoked in probation without the word", phase: PhaseOwner, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) {
			f.grant(p)
			p.say(simple(typeRevoked))
			awaitPhase(p.t, g, PhaseOwner)
		},
	},
	{
		name: "revoked in probation", phase: PhaseDraining, word: settled(1, 1),
		play: func(f *fake, p *peer, g *Generation) {
			f.grant(p)
			awaitPhase(p.t, g, PhaseProbation)
			f.word.at().Store(uint64(settled(1, 1)))
			p.say(simple(typeRevoked))
			awaitPhase(p.t, g, PhaseDraining)
		},
	},
	{
		name: "rubbish in probation", phase: PhaseOwner, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) { f.grant(p); p.raw("{"); awaitPhase(p.t, g, PhaseOwner) },
	},
	{
		name: "end in probation", phase: PhaseOwner, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) { f.grant(p); p.conn.Close(); awaitPhase(p.t, g, PhaseOwner) },
	},
	{
		name: "commit without a grant", want: "out of place", phase: PhaseDraining, word: declined(1, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeReady); p.say(simple(typeCommit)) },
	},
	{
		name: "commit in place of granted", phase: PhaseOwner, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeReady)
			f.word.at().Store(uint64(onProbation(2, 0)))
			p.say(simple(typeCommit))
		},
	},
	{
		name: "commit in place of granted, before ready", phase: PhaseOwner, word: settled(2, 0), before: true,
		play: func(f *fake, p *peer, g *Generation) {
			f.word.at().Store(uint64(onProbation(2, 0)))
			p.say(simple(typeCommit))
			eventually(p.t, "the word moves", func() bool { return f.word.load() == settled(2, 0) })
		},
	},
	{
		name: "rollback is not answered", phase: PhaseDraining, word: settled(2, 0), before: true,
		play: func(f *fake, p *peer, g *Generation) { f.inProbation(p, g) },
		cmd:  stop,
	},
	{
		name: "rollback is answered by a commit", phase: PhaseDraining, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeRollback)
			f.word.at().Store(uint64(settled(2, 0)))
			p.say(simple(typeCommit))
		},
		cmd: stop,
	},
	{
		name: "rollback is answered by the end", phase: PhaseDraining, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeRollback); p.conn.Close() },
		cmd:  stop,
	},
	{
		name: "rollback is answered by rubbish", phase: PhaseDraining, word: settled(2, 0),
		play: func(f *fake, p *peer, g *Generation) { awaitSimple(p, typeRollback); p.raw("rubbish") },
		cmd:  stop,
	},
	{
		name: "rollback is answered by revoked", phase: PhaseDraining, word: settled(1, 1),
		play: func(f *fake, p *peer, g *Generation) {
			awaitSimple(p, typeRollback)
			f.word.at().Store(uint64(settled(1, 1)))
			p.say(simple(typeRevoked))
		},
		cmd: stop,
	},
}

func stop(g *Generation) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return g.Stop(ctx)
}

func awaitSimple(p *peer, typ string) {
	p.t.Helper()
	for {
		if s := awaitFrame[*frameSimple](p); s.Type == typ {
			return
		}
	}
}

// grant answers a ready properly, with probation.
func (f *fake) grant(p *peer) {
	f.t.Helper()
	awaitSimple(p, typeReady)
	if !f.word.swap(settled(1, 0), onProbation(2, 0)) {
		f.t.Fatalf("the ownership word says %v", f.word.load())
	}
	p.say(frameGranted{Type: typeGranted, Generation: 2})
}

// inProbation brings g there.
func (f *fake) inProbation(p *peer, g *Generation) {
	f.t.Helper()
	done := make(chan error, 1)
	go func() { done <- g.Ready(testContext(f.t)) }()
	f.grant(p)
	if err := <-done; err != nil {
		f.t.Fatal(err)
	}
}

// Whatever an owner does when its sockets have been received, the successor
// knows within the configured time whether they are its own, and the word says
// the same.
func TestHostileOwnersAfterTheSockets(t *testing.T) {
	for _, tt := range hostileLater {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			cfg := testConfig(t)
			cfg.StepTimeout = 300 * time.Millisecond
			f := newFake(t, cfg)
			g, p := f.start(cfg)
			listen(t, g, "app", "", "")
			cmd := tt.cmd
			if cmd == nil {
				cmd = func(g *Generation) error { return g.Ready(testContext(t)) }
			} else if !tt.before {
				f.inProbation(p, g)
			}
			if tt.before {
				tt.play(f, p, g)
			}
			done := make(chan error, 1)
			go func() { done <- cmd(g) }()
			if !tt.before {
				tt.play(f, p, g)
			}
			var err error
			select {
			case err = <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("no answer")
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("told %v, want %q", err, tt.want)
			}
			if got := g.Phase(); got != tt.phase {
				t.Errorf("%v, want %v (cause: %v)", got, tt.phase, g.Cause())
			}
			if got := f.word.load(); got != tt.word {
				t.Errorf("the ownership word says %v, want %v", got, tt.word)
			}
			if g.Phase().Owns() && !isOpen(g) {
				t.Errorf("%v, and does not accept", g.Phase())
			}
			within(t, 5*time.Second, "Close", func() { g.Close() })
			p.close()
		})
	}
}

// isOpen tells whether g accepts.
func isOpen(g *Generation) bool {
	for _, gate := range []*gate{g.gate, g.controlGate} {
		gate.mu.Lock()
		open := gate.state == gateOpen
		gate.mu.Unlock()
		if !open {
			return false
		}
	}
	return true
}

// States are looked at when they are asked for, and then with care.
func TestHostileStates(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	f := newFake(t, cfg)
	state := func(name string, fd int) {
		f.set = append(f.set, gift{item{Name: name, Kind: kindState}, fd})
	}
	state("unsealed", f.memfd(10, 0))
	state("growing", f.memfd(10, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK))
	state("large", f.memfd(maxState+1, stateSeals))
	state("listener", f.set[3].fd)
	r, w, err := os.Pipe()
	f.keep(w, err)
	state("pipe", f.keep(r, err))
	state("fine", f.memfd(10, stateSeals))
	g, _ := f.start(cfg)
	for name, want := range map[string]string{
		"unsealed": "not sealed", "growing": "not sealed", "large": "the limit is", "listener": "F_GET_SEALS", "pipe": "F_GET_SEALS",
	} {
		if data, err := g.State(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d bytes, %v, want %s", name, len(data), err, want)
		}
	}
	if data, err := g.State("fine"); err != nil || len(data) != 10 {
		t.Errorf("%q %v", data, err)
	}
}

// An owner lies about the path of a socket, so that the successor would remove
// it some day. The kernel knows better.
func TestOwnerCannotHaveForeignPathsRemoved(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	dir := filepath.Dir(cfg.Socket)
	victim := filepath.Join(dir, "victim")
	other, err := net.Listen("unix", victim)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	id, err := idOf(victim)
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(t, cfg)
	mine, err := net.Listen("unix", filepath.Join(dir, "mine"))
	f.set = append(f.set, gift{
		item{Name: "bait", Kind: KindListener, Network: "unix", Address: victim, Dev: id.dev, Ino: id.ino}, f.keep(mine, err),
	})
	played := make(chan struct{})
	go func() {
		defer close(played)
		p := f.accept()
		awaitFrame[*frameHello](p)
		p.say(welcome(len(f.set)))
		p.give(0, f.set...)
		p.next() // the end
	}()
	if _, err := Start(testContext(t), cfg); err == nil || !strings.Contains(err.Error(), "bound to") {
		t.Errorf("%v", err)
	}
	<-played
	if _, err := os.Lstat(victim); err != nil {
		t.Errorf("the successor removed somebody else's socket: %v", err)
	}
}

// A receiver without room for the descriptors fails with the reason, keeps
// none, and leaves the owner alone.
func TestReceiverAtItsLimitOfDescriptors(t *testing.T) {
	if inOwnProcess(t) {
		return
	}
	// The owner is another process: the limit is this one's.
	cfg := testConfig(t)
	o, addr := firstGeneration(t, cfg.Socket)
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	for room := range 14 {
		before := takeStock(t)
		tight := lim
		free, err := os.Open(os.DevNull) // gets the lowest number
		if err != nil {
			t.Fatal(err)
		}
		tight.Cur = uint64(free.Fd()) + uint64(room)
		free.Close()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &tight); err != nil {
			t.Fatal(err)
		}
		g, err := Start(testContext(t), Config{Socket: cfg.Socket, Mode: TakeOverOnly})
		if err == nil {
			g.Close()
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			t.Fatal(err)
		}
		before.unchanged(t)
		eventually(t, "owner again", func() bool { return o.do("phase") == "owner" })
		serves(t, addr, 1)
		t.Logf("room for %d: %v", room, err)
		if room < 5 && err == nil { // the connection, and four that are handed over
			t.Errorf("started with room for %d descriptors", room)
		}
		if errors.Is(err, scm.ErrControlTruncated) && !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
			t.Errorf("the error does not name the limit: %v", err)
		}
	}
	takesOver(t, cfg.Socket, addr, 2)
}

// What an owner tells fits its frames, whatever the application makes of it.
func TestLongTextsFitTheFrames(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	g, _, _ := owner(t, cfg)
	for _, n := range []int{1000, 5000, 100_000} {
		g.OfferState("note", func(context.Context) ([]byte, error) { return nil, errors.New(strings.Repeat("x", n)) })
		_, err := Start(testContext(t), cfg)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Code != CodeInternal {
			t.Errorf("refusal with a reason of %d bytes: %.200v", n, err)
		}
		if _, err := (Operator{Socket: cfg.Socket}).Status(testContext(t)); err != nil {
			t.Errorf("status after a failure with a text of %d bytes: %.200v", n, err)
		}
	}
}

func TestStatusAfterManyUnclaimedSockets(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	a := begin(t, cfg)
	for i := range 1000 {
		listen(t, a, fmt.Sprintf("%d-%s", i, strings.Repeat("n", 100)), "tcp", "127.0.0.1:0")
	}
	ready(t, a)
	b := begin(t, cfg)
	ready(t, b)
	st, err := Operator{Socket: cfg.Socket}.Status(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Unclaimed) != 1000 {
		t.Fatalf("%d unclaimed sockets in the status, want 1000", len(st.Unclaimed))
	}
}

// A refusal is heard although the peer has said more than the owner read.
func TestRefusalIsHeardByAPeerThatTalksOn(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	g, _, _ := owner(t, cfg)
	for range 20 {
		release := holdRun(t, g) // so that both frames are there before the owner reads
		p := dialPeer(t, cfg)
		h := hello("steal")
		p.say(h)
		p.say(simple(typeReady))
		release()
		f := p.next()
		if r, ok := f.(*frameRefuse); !ok || r.Code != CodeProtocol {
			t.Fatalf("%v instead of a refusal", f)
		}
		p.close()
	}
}

// holdRun holds a generation's state until release, so that a test chooses the
// order of what queues up meanwhile.
func holdRun(t testing.TB, g *Generation) (release func()) {
	t.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	go g.do(func() { close(held); <-free })
	await(t, "hold of the state", held)
	release = sync.OnceFunc(func() { close(free) })
	t.Cleanup(release)
	return release
}
