//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/handoverd/handoverd/examples/internal/generations"
)

func TestMain(m *testing.M) { generations.Main(m, main) }

// A client has one HTTP/2 connection at a time.
type client struct {
	t     *testing.T
	http  http.Client
	calls atomic.Int64
}

func newClient(t *testing.T) *client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protocols}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{t: t, http: http.Client{Transport: tr}}
}

// A stream is one request whose body can be written bit by bit.
type stream struct {
	c       *client
	body    *io.PipeWriter
	answers *bufio.Reader
	sent    atomic.Int64 // how often its headers were
	cancel  func()
}

// open begins a request. GetBody lets net/http take another connection if it
// has sent nothing yet: when a GOAWAY comes after it has chosen a connection and
// before it has opened the stream, it closes the body of a request, and without
// GetBody cannot go on (go.dev/issue/62450). What has been sent is not repeated.
func (c *client) open(url, line string) *stream {
	ctx, cancel := context.WithTimeout(c.t.Context(), generations.Patience)
	s := &stream{c: c, cancel: cancel}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { s.sent.Add(1) },
	})
	var body *io.PipeReader
	body, s.body = io.Pipe()
	req, err := http.NewRequestWithContext(ctx, "POST", url, io.NopCloser(body))
	if err != nil {
		c.t.Error(err)
		return nil
	}
	req.GetBody = func() (io.ReadCloser, error) {
		if n := s.sent.Load(); n > 0 {
			return nil, fmt.Errorf("headers were sent %d times already", n)
		}
		return io.NopCloser(body), nil
	}
	go io.WriteString(s.body, line+"\n")
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Errorf("a stream failed: %v", err)
		cancel()
		body.Close()
		return nil
	}
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		c.t.Errorf("%s %s", resp.Proto, resp.Status)
	}
	s.answers = bufio.NewReader(resp.Body)
	return s
}

// hear reads the answer to a line, and returns the generation that gave it.
func (s *stream) hear(line string) (generation int64) {
	text, err := s.answers.ReadString('\n')
	if err != nil {
		s.c.t.Errorf("a stream failed: %v", err)
		return 0
	}
	var echo string
	if _, err := fmt.Sscanf(text, "generation %d: %s\n", &generation, &echo); err != nil || echo != line {
		s.c.t.Errorf("answer %q, want one to %q", text, line)
	}
	return generation
}

// end ends the body, and expects that the answer ends well.
func (s *stream) end() {
	s.body.Close()
	if rest, err := io.ReadAll(s.answers); len(rest) > 0 || err != nil {
		s.c.t.Errorf("a stream ended with %q, %v", rest, err)
	}
	if n := s.sent.Load(); n != 1 {
		s.c.t.Errorf("the headers of a stream were sent %d times", n)
	}
	s.cancel()
	s.c.calls.Add(1)
}

// call sends short streams, one after another, until a generation has answered
// some of them.
func (c *client) call(url string, until int64) {
	for i, answers := 0, 0; answers < 20 && c.t.Context().Err() == nil; i++ {
		line := fmt.Sprint("line", i)
		s := c.open(url, line)
		if s == nil {
			return
		}
		g := s.hear(line)
		if g == 0 {
			return
		}
		s.end()
		if g >= until {
			answers++
		}
	}
}

// Over five takeovers, sixteen streams at a time on four connections, and one
// long stream of each generation but the last, which is used until the end.
func TestNoStreamFails(t *testing.T) {
	const connections, each, last = 4, 4, 6
	s := generations.New(t)
	clients := make([]*client, connections)
	for i := range clients {
		clients[i] = newClient(t)
	}
	processes, keeper := []*generations.Process{s.Next()}, newClient(t)
	url := "http://" + s.Address
	var long []*stream
	for g := int64(1); g <= last; g++ {
		var done sync.WaitGroup
		t.Cleanup(done.Wait)
		for _, c := range clients {
			for range each {
				done.Go(func() { c.call(url, g) })
			}
		}
		if g > 1 {
			processes = append(processes, s.Next())
		}
		done.Wait()
		if t.Failed() {
			t.FailNow()
		}
		for i, l := range long {
			line := fmt.Sprintf("during%d", g)
			io.WriteString(l.body, line+"\n")
			if by := l.hear(line); by != int64(i+1) {
				t.Errorf("the long stream of generation %d is answered by %d", i+1, by)
			}
		}
		if g < last {
			l := keeper.open(url, "begin")
			if l == nil {
				t.FailNow()
			}
			if by := l.hear("begin"); by != g {
				t.Errorf("a stream that was opened in generation %d is answered by %d", g, by)
			}
			long = append(long, l)
		}
	}
	for _, l := range long {
		l.end()
	}
	calls := keeper.calls.Load()
	for _, c := range clients {
		calls += c.calls.Load()
		c.http.CloseIdleConnections()
	}
	// Each stream ran once. One that had run twice, of which the client saw
	// one answer only, would be found here.
	var answered int64
	for i, p := range processes {
		end := p.Wait
		if i == len(processes)-1 {
			end = p.Stop
		}
		log := end()
		if generations.Figure(log, "killed") != 0 {
			t.Errorf("generation %d says\n%s", i+1, log)
		}
		answered += int64(generations.Figure(log, "streams answered"))
	}
	if answered != calls {
		t.Errorf("%d streams were answered, clients saw %d", answered, calls)
	}
	t.Logf("%d streams by %d generations, none failed or repeated; %d lasted over takeovers", calls, last, len(long))
}
