package child

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// A readinessKind is a way to know that a program serves.
type readinessKind int

const (
	readyNone readinessKind = iota
	readyNotify
	readyHTTP
	readyTCP
	readyDelay
	readyExec
)

// DefaultProbeTimeout bounds one attempt of an HTTP, TCP or exec probe.
const DefaultProbeTimeout = 5 * time.Second

// A Readiness is a way to know that the program serves. The zero value takes
// a program that runs for ready. Use ParseReadiness.
type Readiness struct {
	kind  readinessKind
	text  string   // of ParseReadiness
	url   string   // http
	addr  string   // tcp
	words []string // exec
	delay time.Duration

	// ProbeTimeout bounds one attempt of a probe. Default: 5 s.
	ProbeTimeout time.Duration
}

// ParseReadiness parses one of
//
//	notify                 the program says READY=1: sd_notify(3)
//	http://HOST:PORT/PATH  a GET is answered with a status 200 to 399 by this program
//	tcp://HOST:PORT        a connection succeeds. With an inherited listener it does so
//	                       at once, and says nothing: it is for other ports
//	delay=2s               it has run for so long
//	exec=CMD ARGS...       the command ends with exit status 0. It is no shell that
//	                       runs it: words are separated by spaces, "..." and '...'
//	                       keep them together, \ takes the next character as it is
//	                       (in "..." only " and \). MAINPID is the program's pid
//	none                   it runs
//
// Probes are repeated, at first after 50 ms, later after 1 s. They run in the
// network namespace of this process.
func ParseReadiness(text string) (Readiness, error) {
	r := Readiness{text: text}
	fail := func(format string, args ...any) (Readiness, error) {
		return Readiness{}, fmt.Errorf("readiness %q: %w", text, fmt.Errorf(format, args...))
	}
	switch {
	case text == "none":
	case text == "notify":
		r.kind = readyNotify
	case strings.HasPrefix(text, "http://"):
		u, err := url.Parse(text)
		if err != nil {
			return fail("%w", errors.Unwrap(err))
		}
		if u.Hostname() == "" || u.Opaque != "" {
			return fail("no host")
		}
		if u.Port() != "" {
			if err := checkPort(u.Port()); err != nil {
				return fail("%w", err)
			}
		}
		r.kind, r.url = readyHTTP, u.String()
	case strings.HasPrefix(text, "tcp://"):
		host, port, err := net.SplitHostPort(strings.TrimPrefix(text, "tcp://"))
		if err != nil || host == "" {
			return fail("give it as tcp://HOST:PORT")
		}
		if err := checkPort(port); err != nil {
			return fail("%w", err)
		}
		r.kind, r.addr = readyTCP, net.JoinHostPort(host, port)
	case strings.HasPrefix(text, "delay="):
		d, err := time.ParseDuration(strings.TrimPrefix(text, "delay="))
		if err != nil || d < 0 {
			return fail("give the delay like 500ms or 2s")
		}
		r.kind, r.delay = readyDelay, d
	case strings.HasPrefix(text, "exec="):
		words, err := splitWords(strings.TrimPrefix(text, "exec="))
		if err != nil {
			return fail("%w", err)
		}
		if len(words) == 0 || words[0] == "" {
			return fail("no command")
		}
		r.kind, r.words = readyExec, words
	case strings.HasPrefix(text, "https://"):
		return fail("https is not supported: use http, or exec= with a program that knows the certificate")
	default:
		return fail("give notify, http://HOST:PORT/PATH, tcp://HOST:PORT, delay=TIME, exec=CMD or none")
	}
	return r, nil
}

// String is what ParseReadiness accepts.
func (r Readiness) String() string {
	if r.text == "" {
		return "none"
	}
	return r.text
}

// checkPort accepts numbers only: names need a file that an image may lack.
func checkPort(port string) error {
	n := 0
	for _, r := range port {
		if r < '0' || r > '9' || n > 65535 {
			n = 0
			break
		}
		n = 10*n + int(r-'0')
	}
	if n < 1 || n > 65535 {
		return fmt.Errorf("%q is no port: a number from 1 to 65535", port)
	}
	return nil
}

// splitWords splits a command line. See ParseReadiness.
func splitWords(text string) (words []string, err error) {
	var (
		word  strings.Builder
		in    bool // a word, maybe an empty one
		quote byte // that is open, or 0
		taken bool // the character before was a backslash
	)
	for _, r := range []byte(text) { // what is no UTF-8 passes unchanged
		switch {
		case r == 0:
			return nil, errors.New("a zero byte")
		case taken:
			if quote == '"' && r != '"' && r != '\\' {
				word.WriteByte('\\')
			}
			word.WriteByte(r)
			taken = false
		case r == '\\' && quote != '\'':
			taken, in = true, true
		case r == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(r)
		case r == '"' || r == '\'':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteByte(r)
			in = true
		}
	}
	switch {
	case quote != 0:
		return nil, fmt.Errorf("a %c is not closed", quote)
	case taken:
		return nil, errors.New("a backslash at the end")
	case in:
		words = append(words, word.String())
	}
	return words, nil
}
