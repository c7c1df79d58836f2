package child

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

// readied runs Ready elsewhere.
func readied(t testing.TB, p *Program) <-chan error {
	c := make(chan error, 1)
	ctx := ctxOf(t)
	go func() { c <- p.Ready(ctx) }()
	return c
}

func TestReadyByNotification(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config(tcpSocket(t, "web"))
	c.Ready = mustReadiness(t, "notify")
	events := record(&c)
	p := start(t, c)
	a := s.next()
	result := readied(t, p)
	socket := a.env("NOTIFY_SOCKET")
	// Others are ignored, whatever they say, and so is nonsense.
	for range 5 {
		if err := sendNotify(socket, "READY=1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{
		"READY=0", "READY=11", "READY", "XREADY=1", "=READY=1", "ready=1", "", "\n\n", "STATUS=READY=1",
		"READY=1" + strings.Repeat("\nX=", maxMessage/3), // too long
	} {
		a.do("notify %q", text)
	}
	a.do("barrier") // all of it was dealt with
	select {
	case err := <-result:
		t.Fatalf("ready: %v", err)
	default:
	}
	if got := events.await(t, EventStatus, 1); got.Text != "READY=1" {
		t.Errorf("status %q", got.Text)
	}
	a.do("notify %q", "STATUS=up\x1b[31m\nMAINPID="+strconv.Itoa(os.Getpid())+"\nREADY=1")
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if got := events.await(t, EventStatus, 2); got.Text != "up[31m" {
		t.Errorf("status %q", got.Text)
	}
	if p.MainPID() != a.PID {
		t.Errorf("main pid is %d: not the program's", p.MainPID())
	}
}

// A descendant may speak for the program, and be named by it.
func TestDescendantNotifies(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready = mustReadiness(t, "notify")
	p := start(t, c)
	a := s.next()
	child := a.do("child")
	b := s.next()
	b.do("child")
	d := s.next()
	if strconv.Itoa(b.PID) != child || d.PPID != b.PID {
		t.Fatal("not the family that was asked for")
	}
	d.do("notify %q", "MAINPID="+child+"\nREADY=1")
	if err := p.Ready(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if p.MainPID() != b.PID || p.PID() != a.PID {
		t.Errorf("main pid %d, pid %d, want %d, %d", p.MainPID(), p.PID(), b.PID, a.PID)
	}
}

// Descriptors that come with notifications do not stay.
func TestNotifiedDescriptorsAreClosed(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready = mustReadiness(t, "notify")
	start(t, c)
	a := s.next()
	for range 100 {
		a.do("barrier")
	}
	// Those of strangers neither.
	if err := barrier(a.env("NOTIFY_SOCKET")); err != nil {
		t.Error(err)
	}
}

func TestNotifySocketWithoutADirectory(t *testing.T) {
	leak.Check(t)
	t.Setenv("TMPDIR", "/nonexistent")
	s := &stage{t: t}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@child-test-%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s.ln, s.path = ln, ln.Addr().String()
	c := s.config()
	c.Ready = mustReadiness(t, "notify")
	p := start(t, c)
	a := s.next()
	if got := a.env("NOTIFY_SOCKET"); !strings.HasPrefix(got, "@") {
		t.Errorf("NOTIFY_SOCKET=%s", got)
	}
	a.do("notify %q", "READY=1")
	if err := p.Ready(ctxOf(t)); err != nil {
		t.Error(err)
	}
}

// What a process that was killed has left in the directory for temporary
// files is removed by the next one, and nothing else.
func TestNotifyDirectoriesAreSwept(t *testing.T) {
	leak.Check(t)
	temp, err := os.MkdirTemp("", "sweep")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	t.Setenv("TMPDIR", temp)
	stale := filepath.Join(temp, notifyPrefix+"stale")
	other := filepath.Join(temp, notifyPrefix+"other")
	for _, dir := range []string{stale, other} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(stale, "socket")}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	belongs := func(int) int { return 0 }
	a, err := newNotifier(belongs, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	b, err := newNotifier(belongs, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("the stale one: %v", err)
	}
	for _, path := range []string{other, a.name, b.name} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	a.close()
	b.close()
	left, _ := filepath.Glob(filepath.Join(temp, "*"))
	if len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestTimeToGetReadyIsExtended(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready, c.ReadyTimeout = mustReadiness(t, "notify"), patience
	p := start(t, c)
	a := s.next()
	for _, text := range []string{"7200000000", "1"} { // it is never made shorter
		a.do("notify %q", "EXTEND_TIMEOUT_USEC="+text)
		a.do("barrier")
		p.call(func() {
			if left := time.Until(p.readyTimer.at); left < time.Hour {
				t.Errorf("%v left", left)
			}
		})
	}
	a.do("notify %q", "READY=1")
	if err := p.Ready(ctxOf(t)); err != nil {
		t.Error(err)
	}
}

func TestAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a alarm
		a.extend(time.Second) // is off
		if a.c() != nil {
			t.Error("an alarm that is off goes off")
		}
		begin := time.Now()
		a.set(time.Second)
		a.extend(time.Millisecond)
		a.extend(time.Minute)
		<-a.c()
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("after %v", d)
		}
		a.set(time.Second)
		a.clear()
		if a.c() != nil {
			t.Error("not cleared")
		}
	})
}

// whyNotReady is why the last probe failed.
func whyNotReady(p *Program) (why error) {
	p.call(func() {
		if last := p.probeErr.Load(); last != nil {
			why = *last
		}
	})
	return why
}

func TestNotReadyInTime(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready = mustReadiness(t, "tcp://127.0.0.1:1")
	p := start(t, c)
	a := s.next()
	eventually(t, "probed", func() bool { return whyNotReady(p) != nil })
	p.call(func() { p.readyTimer.set(time.Millisecond) })
	err := p.Ready(ctxOf(t))
	if !errors.Is(err, ErrNotReady) || !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%v, want %v, and why", err, ErrNotReady)
	}
	a.do("say it still runs")
}

func TestReadyIsCancelled(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready = mustReadiness(t, "notify")
	p := start(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Ready(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestReadyByHTTP(t *testing.T) {
	for status, ready := range map[int]bool{200: true, 204: true, 302: true, 404: false, 503: false} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			leak.Check(t)
			s := newStage(t)
			socket := tcpSocket(t, "web")
			c := s.config(socket)
			c.Ready = mustReadiness(t, "http://"+socket.Address+"/health")
			p := start(t, c)
			s.next().do("http %d", status)
			if ready {
				if err := p.Ready(ctxOf(t)); err != nil {
					t.Error(err)
				}
				return
			}
			eventually(t, "refused for that", func() bool {
				why := whyNotReady(p)
				return why != nil && strings.Contains(why.Error(), strconv.Itoa(status))
			})
			if p.wasReady() {
				t.Error("ready")
			}
		})
	}
}

// The predecessor's program listens at the same socket, and answers while the
// new one is not ready.
func TestAnswerOfAnotherProcessDoesNotCount(t *testing.T) {
	for _, kind := range []string{"keeps the connection", "closes the connection"} {
		t.Run(kind, func(t *testing.T) {
			leak.Check(t)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			socket := socketOf(t, "web", "tcp", ln.Addr().String(), ln.(*net.TCPListener))
			asked := make(chan struct{}, 1000)
			old := &http.Server{
				ConnState: func(_ net.Conn, state http.ConnState) {
					if state == http.StateNew {
						select {
						case asked <- struct{}{}:
						default:
						}
					}
				},
				Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
			}
			old.SetKeepAlivesEnabled(kind == "keeps the connection")
			serving := make(chan struct{})
			go func() { defer close(serving); old.Serve(ln) }()
			s := newStage(t)
			c := s.config(socket)
			c.Ready = mustReadiness(t, "http://"+socket.Address+"/")
			p := start(t, c)
			a := s.next()
			for range 3 { // three times at least it had its chance
				<-asked
			}
			if p.wasReady() {
				t.Error("ready, though another process answered")
			}
			// Unclear if it was slow to accept, and closed before it could be seen.
			if why := whyNotReady(p); !errors.Is(why, errOtherAnswered) && !errors.Is(why, errAnswerUnclear) {
				t.Errorf("the probe failed for another reason: %v", why)
			}
			a.do("http 200")
			old.Close() // the listener itself stays with the program
			<-serving
			if err := p.Ready(ctxOf(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// An answer is also the program's if a descendant gave it.
func TestAnswerOfADescendantCounts(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config(tcpSocket(t, "web"))
	p := start(t, c)
	a := s.next()
	address := a.do("listen")
	a.do("child")
	s.next()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := acceptor(conn, p.PID()); got != notAccepted {
		t.Errorf("before it was accepted: %v", got)
	}
	web, err := net.Dial("tcp", c.Sockets[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	a.do("http 200")
	eventually(t, "accepted", func() bool { return acceptor(web, p.PID()) == acceptedByProgram })
	if got := acceptor(web, os.Getpid()); got != acceptedByProgram {
		t.Errorf("by a descendant: %v", got)
	}
	if got := acceptor(web, 1); os.Getppid() != 0 && got == acceptedByOther {
		t.Errorf("by a descendant of init: %v", got)
	}
}

func TestReadyByTCP(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	socket := tcpSocket(t, "web")
	c := s.config(socket)
	c.Ready = mustReadiness(t, "tcp://"+socket.Address)
	if err := start(t, c).Ready(ctxOf(t)); err != nil {
		t.Error(err)
	}
}

func TestReadyAfterADelay(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready = mustReadiness(t, "delay=300ms")
	events := record(&c)
	p := start(t, c)
	if err := p.Ready(ctxOf(t)); err != nil {
		t.Error(err)
	}
	if e := events.await(t, EventReady, 1); e.Took < 300*time.Millisecond {
		t.Errorf("ready after %v", e.Took)
	}
}

func TestReadyByCommand(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	flag := filepath.Join(filepath.Dir(s.path), "flag with space")
	c := s.config(tcpSocket(t, "web"))
	c.Ready = mustReadiness(t, `exec=/bin/sh -c 'kill -0 $MAINPID && test -z "$LISTEN_FDS$NOTIFY_SOCKET" && echo x >> "$1.asked" && test -e "$1"' sh "`+flag+`"`)
	p := start(t, c)
	result := readied(t, p)
	eventually(t, "asked twice", func() bool {
		b, _ := os.ReadFile(flag + ".asked")
		return len(b) >= 4
	})
	select {
	case err := <-result:
		t.Fatalf("ready: %v", err)
	default:
	}
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// A command that hangs is killed with what it started.
func TestCommandThatHangs(t *testing.T) {
	leak.Check(t)
	s := newStage(t)
	c := s.config()
	c.Ready = mustReadiness(t, "exec=/proc/self/exe -probe")
	c.Ready.ProbeTimeout = 2 * time.Second
	p := start(t, c)
	var probes []*actor
	for len(probes) < 2 {
		if a := s.next(); a.Argv[1] == "-probe" {
			probes = append(probes, a)
		}
	}
	probes[0].awaitEnd()
	if why := whyNotReady(p); why == nil || !strings.Contains(why.Error(), "not done in time") {
		t.Errorf("why the probe failed: %v", why)
	}
}

func TestDeathBeforeReady(t *testing.T) {
	for name, test := range map[string]struct {
		command string
		want    Exit
		code    int
	}{
		"exit status": {"exit 3", Exit{Status: 3}, 3},
		"status 0":    {"exit 0", Exit{}, 0},
		"signal":      {"kill KILL", Exit{Signal: unix.SIGKILL}, 137},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			s := newStage(t)
			c := s.config()
			c.Ready, c.ReadyTimeout = mustReadiness(t, "notify"), -1
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			c.Stderr = null
			p := start(t, c)
			result := readied(t, p)
			a := s.next()
			for i := range 20 {
				a.do("say reason %d", i)
			}
			a.tell(test.command)
			err = <-result
			death, ok := errors.AsType[*DeathError](err)
			if !ok {
				t.Fatal(err)
			}
			if death.Exit != test.want || death.Ready || death.Exit.Code() != test.code {
				t.Errorf("%+v, code %d", death, death.Exit.Code())
			}
			if text := err.Error(); !strings.Contains(text, "reason 15 | reason 16 | reason 17 | reason 18 | reason 19") ||
				!strings.Contains(text, "before it was ready") || strings.Contains(text, "reason 14") {
				t.Error(text)
			}
			await(t, "done", p.Done())
			if err := p.Supervise(); !errors.Is(err, ErrNotRunning) || !errors.As(err, &death) {
				t.Errorf("Supervise: %v", err)
			}
			if report, err := p.Stop(ctxOf(t)); err != nil || *report.Exit != test.want || report.Killed {
				t.Errorf("Stop: %+v %v", report, err)
			}
			if err := p.Signal(unix.SIGTERM); !errors.Is(err, ErrNotRunning) {
				t.Errorf("Signal: %v", err)
			}
		})
	}
}
