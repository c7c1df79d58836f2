package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/handoverd/handoverd/internal/site"
)

// The same as with TCP for a listener that is a Unix socket.
func TestForeignProgramsOnUnixSockets(t *testing.T) {
	n := rounds(5, 2)
	t.Run("gunicorn", func(t *testing.T) {
		f := gunicorn().under("notify", loadSpec{Workers: 16, PostRatio: .5})
		f.unix = true
		newStage(t, f).replace(n)
	})
	// It passes bytes on, and ends at once when it is told to: what it has
	// accepted is cut off.
	t.Run("systemd-socket-proxyd", func(t *testing.T) {
		f := foreign{
			name: "systemd-socket-proxyd", debian: "systemd", unix: true, stop: syscall.SIGTERM,
			argv: func(v version) []string { return []string{v.executable, v.b.backend(v)} },
		}
		newStage(t, f.under("none", loadSpec{Workers: 16})).replace(n)
	})
}

// backend serves a version on a Unix socket of its own, for a proxy that knows
// no HTTP.
func (b *bench) backend(v version) (path string) {
	b.t.Helper()
	path = b.path("backend-" + strconv.FormatUint(v.generation, 10))
	ln, err := net.Listen("unix", path)
	if err != nil {
		b.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, v.colour()) })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(site.GenerationHeader, strconv.FormatUint(v.generation, 10))
		w.Header().Set("X-Request-Id", r.Header.Get("X-Request-Id"))
		io.Copy(w, r.Body)
	})
	srv := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	b.t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return path
}

// A name server is replaced while it is asked. Two programs that read one UDP
// socket share what comes; what neither has read waits for the next one.
func TestForeignProgramOnUDP(t *testing.T) {
	// It listens to LISTEN_FDS only where systemd runs: sd_booted(3).
	const booted = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec \"$@\""
	f := foreign{
		name: "unbound", debian: "unbound", ready: "notify",
		argv: func(v version) []string {
			conf := v.fill("unbound.conf", map[string]string{"Host": v.b.server.addr, "Port": strconv.Itoa(webPort)})
			return []string{"unshare", "--mount", "sh", "-c", booted, "sh", v.executable, "-d", "-p", "-c", conf}
		},
	}
	s := newStage(t, f)
	owner := s.serve(s.args(1, "--listen", "web=udp://"+webAddress(s.bench))...)
	cookie := s.cookie()
	ask := s.askNames(16)
	ask.await("blue-1")
	n := rounds(20, 3)
	for generation := uint64(2); generation <= uint64(n)+1; generation++ {
		successor := s.next(generation)
		owner.wantCode(0)
		ask.await(fmt.Sprintf("%s-%d", version{generation: generation}.colour(), generation))
		owner = successor
	}
	answered, lost := ask.end()
	if s.cookie() != cookie {
		t.Error("the socket is another one")
	}
	if answered == 0 || lost > int64(16*n) {
		t.Errorf("%d questions answered, %d lost; 16 clients cannot have lost more than 16 in each of %d programs that ended", answered, lost, n)
	}
	t.Logf("%s was replaced %d times: %d questions answered, %d lost by a program that ended with them read and not answered", f.name, n, answered, lost)
	s.end(owner)
}

// questions are what clients of a name server ask, one after the other, and
// never twice.
type questions struct {
	t    testing.TB
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu    sync.Mutex
	texts map[string]int64 // answers
	lost  int64
	errs  []error
}

// answerTime is how long a client waits for an answer before the question
// counts as lost. It ends nothing but the wait for what never comes.
const answerTime = 15 * time.Second

func (s *stage) askNames(clients int) *questions {
	s.t.Helper()
	q := &questions{t: s.t, stop: make(chan struct{}), texts: map[string]int64{}}
	s.t.Cleanup(q.close)
	for i := range clients {
		c, err := s.client.dial("udp", webAddress(s.bench))
		if err != nil {
			s.t.Fatal(err)
		}
		q.wg.Go(func() {
			defer c.Close()
			q.ask(c, uint16(i))
		})
	}
	return q
}

func (q *questions) close() {
	q.once.Do(func() { close(q.stop) })
	q.wg.Wait()
}

func (q *questions) ask(c net.Conn, id uint16) {
	for tick := time.NewTicker(2 * time.Millisecond); ; id += 1000 {
		select {
		case <-q.stop:
			tick.Stop()
			return
		case <-tick.C:
		}
		text, err := askVersion(c, id)
		q.mu.Lock()
		var timeout net.Error
		switch {
		case err == nil:
			q.texts[text]++
		case errors.As(err, &timeout) && timeout.Timeout():
			q.lost++
		default:
			q.errs = append(q.errs, err)
		}
		q.mu.Unlock()
	}
}

// askVersion asks once, and waits for the answer.
func askVersion(c net.Conn, id uint16) (text string, err error) {
	name, err := dnsmessage.NewName("version.test.")
	if err != nil {
		return "", err
	}
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}},
	}
	out, err := question.Pack()
	if err != nil {
		return "", err
	}
	if _, err := c.Write(out); err != nil {
		return "", err
	}
	c.SetReadDeadline(time.Now().Add(answerTime))
	for in := make([]byte, 1024); ; {
		n, err := c.Read(in)
		if err != nil {
			return "", err
		}
		var answer dnsmessage.Message
		if err := answer.Unpack(in[:n]); err != nil {
			return "", err
		}
		if answer.ID != id {
			continue // late, to a question that was given up
		}
		if len(answer.Answers) != 1 {
			return "", fmt.Errorf("%d answers, %v", len(answer.Answers), answer.RCode)
		}
		txt, ok := answer.Answers[0].Body.(*dnsmessage.TXTResource)
		if !ok {
			return "", errors.New("the answer is no text")
		}
		return strings.Join(txt.TXT, ""), nil
	}
}

// await waits for an answer of a version.
func (q *questions) await(text string) {
	q.t.Helper()
	await(q.t, "version "+text+" answers", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.texts[text] > 0
	})
}

// end ends the questions, of which none may have had an error: that is what an
// ICMP message of a closed port is.
func (q *questions) end() (answered, lost int64) {
	q.t.Helper()
	q.close()
	for _, err := range q.errs {
		q.t.Error(err)
	}
	for _, n := range q.texts {
		answered += n
	}
	return answered, q.lost
}
