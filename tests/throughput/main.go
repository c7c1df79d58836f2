// Command throughput compares package server with bare net/http: requests per
// second and CPU time per request, under wrk, a load tool that has nothing to do
// with this project (Debian: apt-get install wrk).
//
// Both serve the same handler, each in a process of its own, in alternating
// rounds of one run, so that whatever else the machine does hits both. What is
// printed is each median and the median of the rounds' ratios.
//
//	go run ./tests/throughput
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/handoverd/handoverd/server"
)

var (
	rounds      = flag.Int("rounds", 15, "rounds, each of which measures both")
	duration    = flag.Duration("duration", 2*time.Second, "of one measurement, in whole seconds")
	connections = flag.Int("connections", 64, "connections of the load tool")
	serve       = flag.String("serve", "", "be the server of that name")
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	if *serve != "" {
		log.Fatal(child(*serve))
	}
	if err := compare(); err != nil {
		log.Fatal(err)
	}
}

func hello(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }

// child serves until its standard input ends.
func child(name string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	h := http.HandlerFunc(hello)
	switch name {
	case "net/http":
		return (&http.Server{Handler: h}).Serve(ln)
	case "server":
		return (&server.Server{Server: http.Server{Handler: h}}).Serve(movable{ln})
	}
	return fmt.Errorf("unknown server %q", name)
}

// movable makes the server do all that it does when connections may move.
type movable struct{ net.Listener }

func (movable) Movable() bool { return false }

func (movable) MoveConn(context.Context, net.Conn, []byte, []byte) error {
	return server.ErrNotMovable
}

// A contender is a server process.
type contender struct {
	name string
	cmd  *exec.Cmd
	addr string

	rate, cost []float64 // requests a second, CPU microseconds per request
}

func start(name string) (*contender, error) {
	c := &contender{name: name, cmd: exec.Command("/proc/self/exe", "-serve", name)}
	c.cmd.Stderr = os.Stderr
	if _, err := c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = fmt.Fscanln(out, &c.addr)
	return c, err
}

// cpu is the CPU time that the process has used.
func (c *contender) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var main int64
	if _, err := fmt.Sscan(string(b), &main); err != nil {
		return 0, err
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.cmd.Process.Pid))
	var sum int64
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", c.cmd.Process.Pid, t.Name()))
		if err != nil {
			continue // a thread that has ended
		}
		var ns int64
		fmt.Sscan(string(b), &ns)
		sum += ns
	}
	return time.Duration(sum), err
}

var requests = regexp.MustCompile(`(\d+) requests in ([\d.]+)(s|ms)`)

// measure makes load once.
func (c *contender) measure(ctx context.Context) error {
	before, err := c.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c", strconv.Itoa(*connections),
		"-d", fmt.Sprintf("%ds", int(duration.Seconds())), "http://"+c.addr+"/").CombinedOutput()
	took := time.Since(begin)
	if err != nil {
		return fmt.Errorf("wrk: %w: %s", err, out)
	}
	after, err := c.cpu()
	if err != nil {
		return err
	}
	m := requests.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("wrk says nothing of requests: %s", out)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return err
	}
	c.rate = append(c.rate, n/took.Seconds())
	c.cost = append(c.cost, float64(after-before)/1e3/n)
	return nil
}

func compare() error {
	if _, err := exec.LookPath("wrk"); err != nil {
		return fmt.Errorf("%w: install it, on Debian with: apt-get install wrk", err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var both [2]*contender
	for i, name := range []string{"net/http", "server"} {
		c, err := start(name)
		if err != nil {
			return err
		}
		defer c.cmd.Process.Kill()
		both[i] = c
	}
	var rates, costs []float64
	for round := range *rounds + 1 {
		order := []int{0, 1}
		if round%2 == 1 {
			order = []int{1, 0}
		}
		for _, i := range order {
			if err := both[i].measure(ctx); err != nil {
				return err
			}
		}
		if round == 0 { // warms up
			for _, c := range both {
				c.rate, c.cost = nil, nil
			}
			continue
		}
		last := len(both[0].rate) - 1
		rates = append(rates, both[1].rate[last]/both[0].rate[last])
		costs = append(costs, both[1].cost[last]/both[0].cost[last])
	}
	for _, c := range both {
		fmt.Printf("%-9s %8.0f requests/s, %6.2f us of CPU each (medians of %d rounds)\n", c.name, median(c.rate), median(c.cost), *rounds)
	}
	fmt.Printf("%-9s %8.3f            %6.3f (medians of the rounds' ratios; from %.3f to %.3f, and %.3f to %.3f)\n", "ratio",
		median(rates), median(costs), slices.Min(rates), slices.Max(rates), slices.Min(costs), slices.Max(costs))
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
