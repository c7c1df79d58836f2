package peer

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// An Event is something that happened in a server. Times are nanoseconds since
// 1970 by the clock that all processes of the machine share.
type Event struct {
	Site       string `json:"site"`
	Generation int    `json:"generation"`
	Name       string `json:"name"`
	PID        int    `json:"pid"`
	At         int64  `json:"at"`
	Values     []int  `json:"values,omitempty"` // what the name says
}

// A Server is one generation's connection to the benchmark.
type Server struct {
	Generation int

	events net.Conn
}

// New reads the environment. What cannot be read is left out: a server that
// cannot tell is still one.
func New() *Server {
	s := &Server{}
	if b, err := os.ReadFile(os.Getenv("BENCH_GENERATION")); err == nil {
		s.Generation, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if path := os.Getenv("BENCH_EVENTS"); path != "" {
		s.events, _ = net.Dial("unixgram", path)
	}
	return s
}

// Tell reports an event of this moment.
func (s *Server) Tell(name string, values ...int) { s.TellAt(time.Now(), name, values...) }

// TellAt reports an event.
func (s *Server) TellAt(at time.Time, name string, values ...int) {
	if s.events == nil {
		return
	}
	b, err := json.Marshal(Event{os.Getenv("BENCH_SITE"), s.Generation, name, os.Getpid(), at.UnixNano(), values})
	if err == nil {
		s.events.Write(b)
	}
}

// Certificate returns the names of the files with a certificate and its key,
// if the server is to speak TLS.
func Certificate() (cert, key string, ok bool) {
	cert, key = os.Getenv("BENCH_CERT"), os.Getenv("BENCH_KEY")
	return cert, key, cert != ""
}

// An Acceptor is a kind of http.Server.
type Acceptor interface {
	Serve(net.Listener) error
	ServeTLS(ln net.Listener, certFile, keyFile string) error
}

// Serve has srv serve ln, with TLS if that is asked for.
func Serve(srv Acceptor, ln net.Listener) error {
	if cert, key, ok := Certificate(); ok {
		return srv.ServeTLS(ln, cert, key)
	}
	return srv.Serve(ln)
}

// Handler answers each request with its body, its X-Request-Id, and the
// generation. A request for /gc first gives all memory back that is not in use.
func (s *Server) Handler() http.Handler {
	generation := strconv.Itoa(s.Generation)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gc" {
			debug.FreeOSMemory()
		}
		h := w.Header()
		h.Set("Handoverd-Generation", generation)
		if id := r.Header.Get("X-Request-Id"); id != "" {
			h.Set("X-Request-Id", id)
		}
		h.Set("Content-Type", "application/octet-stream")
		if r.ContentLength == 0 {
			h.Set("Content-Length", "0")
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		h.Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	})
}
