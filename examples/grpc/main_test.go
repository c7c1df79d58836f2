//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/handoverd/handoverd/examples/internal/generations"
)

func TestMain(m *testing.M) { generations.Main(m, main) }

// A client has one connection at a time, and repeats nothing.
type client struct {
	t     *testing.T
	conn  *grpc.ClientConn
	calls atomic.Int64 // that were answered
	sent  atomic.Int64 // that were put on a connection; those that are repeated count twice
}

func newClient(t *testing.T, address string) *client {
	t.Helper()
	c := &client{t: t}
	var err error
	c.conn, err = grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(false)),
		grpc.WithDisableRetry(), // gRPC still repeats what a GOAWAY refuses: sent shows that
		grpc.WithStatsHandler(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}

// HandleRPC and the others make a client a stats.Handler.
func (c *client) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutHeader); ok {
		c.sent.Add(1)
	}
}

func (c *client) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (c *client) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (c *client) HandleConn(context.Context, stats.ConnStats)                       {}

// generationOf checks an answer, and says who gave it.
func (c *client) generationOf(answer *wrapperspb.StringValue, to string) (generation int) {
	var echo string
	if _, err := fmt.Sscanf(answer.Value, "generation %d: %s", &generation, &echo); err != nil || echo != to {
		c.t.Errorf("answer %q, want one to %q", answer.Value, to)
	}
	return generation
}

// say makes unary calls, one after another, until a generation has answered
// some of them.
func (c *client) say(until int) {
	ctx, cancel := context.WithTimeout(c.t.Context(), generations.Patience)
	defer cancel()
	for i, answers := 0, 0; answers < 20; i++ {
		text, answer := fmt.Sprint("call", i), new(wrapperspb.StringValue)
		if err := c.conn.Invoke(ctx, "/example.Echo/Say", wrapperspb.String(text), answer); err != nil {
			c.t.Errorf("call %d failed: %v", i, err)
			return
		}
		c.calls.Add(1)
		if c.generationOf(answer, text) >= until {
			answers++
		}
	}
}

// A stream is a Chat.
type stream struct {
	grpc.ClientStream
	c *client
}

func (c *client) open(ctx context.Context) *stream {
	c.t.Helper()
	s, err := c.conn.NewStream(ctx, &service.Streams[0], "/example.Echo/Chat")
	if err != nil {
		c.t.Fatal(err)
	}
	return &stream{s, c}
}

// exchange sends a message, and returns the generation that answers.
func (s *stream) exchange(text string) int {
	s.c.t.Helper()
	answer := new(wrapperspb.StringValue)
	if err := errors.Join(s.SendMsg(wrapperspb.String(text)), s.RecvMsg(answer)); err != nil {
		s.c.t.Fatalf("a stream failed: %v", err)
	}
	return s.c.generationOf(answer, text)
}

// end ends the stream, and expects status OK.
func (s *stream) end() {
	s.c.t.Helper()
	if err := s.CloseSend(); err != nil {
		s.c.t.Error(err)
	}
	if err := s.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		s.c.t.Errorf("a stream ended with %v", err)
	}
	s.c.calls.Add(1)
}

// Over five takeovers, sixteen calls at a time on four connections, and one
// long stream of each generation but the last, which is used until the end.
func TestNoCallFails(t *testing.T) {
	const connections, each, last = 4, 4, 6
	ctx, cancel := context.WithTimeout(t.Context(), 2*generations.Patience)
	defer cancel()
	s := generations.New(t)
	processes := []*generations.Process{s.Next()}
	keeper := newClient(t, s.Address)
	clients := []*client{keeper}
	for range connections {
		clients = append(clients, newClient(t, s.Address))
	}
	var long []*stream
	for g := 1; g <= last; g++ {
		var done sync.WaitGroup
		t.Cleanup(done.Wait)
		for _, c := range clients[1:] {
			for range each {
				done.Go(func() { c.say(g) })
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
			if by := l.exchange(fmt.Sprint("during", g)); by != i+1 {
				t.Errorf("the stream of generation %d is answered by %d", i+1, by)
			}
		}
		if g < last {
			l := keeper.open(ctx)
			if by := l.exchange("begin"); by != g {
				t.Errorf("a stream that was opened in generation %d is answered by %d", g, by)
			}
			long = append(long, l)
		}
	}
	for _, l := range long {
		l.end()
	}
	processes[last-1].Stop()
	var calls, sent, answered int64
	for _, c := range clients {
		calls += c.calls.Load()
		sent += c.sent.Load()
	}
	for i, p := range processes {
		log := p.Wait()
		if !strings.Contains(log, "cut false") {
			t.Errorf("generation %d says\n%s", i+1, log)
		}
		answered += int64(generations.Figure(log, "calls answered"))
	}
	if sent != calls || answered != calls {
		t.Errorf("%d calls, %d sent, %d answered", calls, sent, answered)
	}
	t.Logf("%d calls by %d generations, none failed or repeated; %d streams lasted over takeovers", calls, last, len(long))
}

// A stream that does not end is cut when the grace is over, and the process
// ends. A connection that says nothing does not change that.
func TestEndlessStreamIsCut(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*generations.Patience)
	defer cancel()
	s := generations.New(t, "-grace", "500ms")
	first := s.Next()
	c := newClient(t, s.Address)
	endless := c.open(ctx)
	if by := endless.exchange("begin"); by != 1 {
		t.Errorf("answered by %d", by)
	}
	silent, err := net.Dial("tcp", s.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	second := s.Next()
	if err := endless.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Unavailable {
		t.Errorf("an endless stream ended with %v, want Unavailable", err)
	}
	if log := first.Wait(); !strings.Contains(log, "cut true") {
		t.Errorf("the first generation says\n%s", log)
	}
	again := c.open(ctx)
	if by := again.exchange("again"); by != 2 {
		t.Errorf("answered by %d", by)
	}
	again.end()
	second.Stop()
}
