// Command demo shows a takeover to the eye: it starts a handoverd, puts load
// on it, replaces it several times with independently started successors, and
// counts. It ends by itself, with status 1 if a single request failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/load"
)

// patience is for how long the whole demonstration may run on a slow machine.
const patience = 10 * time.Minute

func main() {
	binary := flag.String("binary", "bin/handoverd", "the handoverd to run")
	takeovers := flag.Int("takeovers", 5, "how many times to replace the server")
	workers := flag.Int("workers", 32, "clients of each of the two kinds")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := run(ctx, *binary, *takeovers, *workers); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// show is the demonstration's stage: a directory, an address, the processes.
type show struct {
	binary, dir, socket, address string
	started                      time.Time
	servers                      []*exec.Cmd
}

func (s *show) say(format string, args ...any) {
	fmt.Printf("%6.2fs  %s\n", time.Since(s.started).Seconds(), fmt.Sprintf(format, args...))
}

func run(ctx context.Context, binary string, takeovers, workers int) error {
	dir, err := os.MkdirTemp("", "handoverd-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &show{binary: binary, dir: dir, socket: filepath.Join(dir, "app.sock"), started: time.Now()}
	defer s.end()

	if err := s.start(ctx, "serve", "--listen", "web=tcp://127.0.0.1:0"); err != nil {
		return err
	}
	s.say("generation 1 serves http://%s, control socket %s", s.address, s.socket)
	clients, err := s.load(ctx, workers)
	if err != nil {
		return err
	}
	s.say("%d clients send without pause and never retry: %d keep their connection, %d connect anew for each request", 2*workers, workers, workers)
	for range takeovers {
		if err := s.watch(ctx, clients, 1500*time.Millisecond); err != nil {
			return err
		}
		if err := s.takeOver(ctx); err != nil {
			return err
		}
	}
	if err := s.watch(ctx, clients, 1500*time.Millisecond); err != nil {
		return err
	}
	return s.report(clients, takeovers)
}

// start starts one handoverd, and returns when it owns the sockets.
func (s *show) start(ctx context.Context, args ...string) error {
	cmd := exec.Command(s.binary, append(args, "--socket", s.socket, "--probation", "500ms", "--log-level", "warn")...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	s.servers = append(s.servers, cmd)
	generation := uint64(len(s.servers))
	return s.until(ctx, func(st *handover.Status) bool {
		for _, socket := range st.Sockets {
			if socket.Name == "web" {
				s.address = socket.Address
			}
		}
		return st.Generation == generation && st.Phase.Owns()
	})
}

// until polls the owner's status.
func (s *show) until(ctx context.Context, ok func(*handover.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := handover.Operator{Socket: s.socket}.Status(ctx)
		if err == nil && ok(st) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the server does not get there: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// takeOver replaces the running server by one that is not its child.
func (s *show) takeOver(ctx context.Context) error {
	old := s.servers[len(s.servers)-1]
	began := time.Now()
	s.say("$ handoverd takeover --socket %s", s.socket)
	if err := s.start(ctx, "takeover"); err != nil {
		return err
	}
	s.say("generation %d (pid %d) owns the sockets, %d ms after its start",
		len(s.servers), s.servers[len(s.servers)-1].Process.Pid, time.Since(began).Milliseconds())
	if err := s.until(ctx, func(st *handover.Status) bool { return st.Phase == handover.PhaseOwner }); err != nil {
		return err
	}
	if err := old.Wait(); err != nil {
		return fmt.Errorf("generation %d: %w", len(s.servers)-1, err)
	}
	s.say("generation %d (pid %d) has drained and ended with status 0", len(s.servers)-1, old.Process.Pid)
	return nil
}

// load starts both kinds of clients.
func (s *show) load(ctx context.Context, workers int) ([]*load.Run, error) {
	var clients []*load.Run
	for _, keep := range []bool{true, false} {
		r, err := load.Start(ctx, load.Config{
			Address: s.address, Workers: workers, KeepAlive: keep, PostRatio: 0.3, BodyMax: 8192,
			SourceAddrs: 8, Duration: patience, Timeout: time.Minute,
		})
		if err != nil {
			return nil, err
		}
		clients = append(clients, r)
	}
	return clients, nil
}

// watch prints what the clients see, for a while, and until the newest server
// has answered one of them.
func (s *show) watch(ctx context.Context, clients []*load.Run, d time.Duration) error {
	last := snapshot(clients)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	now := snapshot(clients)
	for now.Generations[strconv.Itoa(len(s.servers))] == 0 && now.Failed() == 0 {
		t.Reset(10 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("generation %d answers nobody: %w", len(s.servers), ctx.Err())
		}
		now = snapshot(clients)
	}
	s.say("%8d requests answered, %d failed  (%.0f a second)", now.OK, now.Failed(),
		float64(now.OK-last.OK)/(now.Elapsed-last.Elapsed).Seconds())
	return nil
}

func snapshot(clients []*load.Run) load.Result {
	sum := clients[0].Snapshot()
	for _, c := range clients[1:] {
		sum.Merge(c.Snapshot())
	}
	return sum
}

// report stops the clients and prints the result.
func (s *show) report(clients []*load.Run, takeovers int) error {
	kept, fresh := clients[0].Stop(), clients[1].Stop()
	sum := kept
	sum.Merge(fresh)
	fmt.Println()
	fmt.Printf("  %-34s %d\n", "takeovers", takeovers)
	fmt.Printf("  %-34s %d\n", "requests answered", sum.OK)
	fmt.Printf("  %-34s %d\n", "requests failed", sum.Failed())
	fmt.Printf("  %-34s %d refused, %d reset, %d cut off, %d late, %d wrong\n", "  of these",
		sum.Refused, sum.Reset, sum.EOFBeforeAnswer+sum.EOFInAnswer, sum.Timeout, sum.WrongAnswer)
	fmt.Printf("  %-34s %d, and %d of them had to connect again\n", "connections that were kept", kept.Workers, kept.Reconnects())
	fmt.Printf("  %-34s p50 %v, p99 %v, max %v\n", "latency", sum.Latency.Quantile(0.5).Round(time.Microsecond),
		sum.Latency.Quantile(0.99).Round(time.Microsecond), sum.Latency.Max().Round(time.Microsecond))
	fmt.Printf("  answered by generation            ")
	for _, g := range sum.GenerationsSeen {
		fmt.Printf(" %s: %d ", g.Generation, sum.Generations[g.Generation])
	}
	fmt.Println()
	fmt.Println()
	if err := sum.Err(); err != nil {
		return err
	}
	if n := kept.Reconnects(); n != 0 {
		return fmt.Errorf("%d clients had to connect again, want none", n)
	}
	if len(sum.GenerationsSeen) != takeovers+1 {
		return fmt.Errorf("%d generations answered, want %d", len(sum.GenerationsSeen), takeovers+1)
	}
	fmt.Printf("  %s\n", strings.Repeat("─", 60))
	fmt.Printf("  The server was replaced %d times. Nobody noticed.\n\n", takeovers)
	return nil
}

// end stops whatever still runs.
func (s *show) end() {
	for _, cmd := range s.servers {
		if cmd.ProcessState == nil {
			cmd.Process.Signal(os.Interrupt)
		}
	}
	for _, cmd := range s.servers {
		if cmd.ProcessState != nil {
			continue
		}
		kill := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
	}
}
