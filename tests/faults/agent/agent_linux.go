//go:build faults

package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handoverd/handoverd/handover"
	"golang.org/x/sys/unix"
)

// Agent is the one of this process.
type Agent struct {
	spec    Spec
	ledger  *Ledger
	orders  *os.File
	release chan struct{}
	stop    chan struct{}
	slow    atomic.Bool

	mu     sync.Mutex
	events *json.Encoder
	times  map[string]int // that a step was reached
}

// Start starts the agent that the environment asks for. It is called before
// handover.Start, and lasts until the process ends.
func Start() (*Agent, error) {
	a := &Agent{
		orders:  os.NewFile(OrdersFD, "orders"),
		release: make(chan struct{}),
		stop:    make(chan struct{}),
		events:  json.NewEncoder(os.NewFile(EventsFD, "events")),
		times:   map[string]int{},
	}
	if err := json.Unmarshal([]byte(os.Getenv(Variable)), &a.spec); err != nil {
		return nil, fmt.Errorf("%s: %w", Variable, err)
	}
	for fd := EventsFD; fd <= OrdersFD; fd++ {
		unix.CloseOnExec(fd)
	}
	var err error
	if a.ledger, err = OpenLedger(a.spec.Ledger); err != nil {
		return nil, err
	}
	handover.OnStep = a.step
	go a.obey()
	return a, nil
}

// Label marks this process.
func (a *Agent) Label() byte { return a.spec.Label }

// Stopped is closed by the order Stop.
func (a *Agent) Stopped() <-chan struct{} { return a.stop }

// Tell tells the test.
func (a *Agent) Tell(e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events.Encode(e)
}

// OnEvent is for handover.Config.
func (a *Agent) OnEvent(e handover.Event) {
	if e.Peer != nil {
		return
	}
	t := Event{Kind: Phased, Phase: e.Phase.String()}
	t.Error, t.Class = describe(e.Cause)
	a.Tell(t)
}

// End tells why the program ends.
func (a *Agent) End(err error) {
	t := Event{Kind: Ended}
	t.Error, t.Class = describe(err)
	a.Tell(t)
}

var classes = map[string]error{
	"ErrStuck": handover.ErrStuck, "ErrPredecessorDied": handover.ErrPredecessorDied, "ErrNoOwner": handover.ErrNoOwner,
	"ErrSuperseded": handover.ErrSuperseded, "ErrStopRequested": handover.ErrStopRequested,
	"ErrRolledBack": handover.ErrRolledBack, "ErrRevoked": handover.ErrRevoked,
}

func describe(err error) (text, class string) {
	if err == nil {
		return "", ""
	}
	for name, e := range classes {
		if errors.Is(err, e) {
			class = name
		}
	}
	if r := (*handover.RefusedError)(nil); errors.As(err, &r) {
		class = "refused: " + string(r.Code)
	}
	return err.Error(), class
}

func (a *Agent) step(_ uint64, step string) {
	if step == "accept" {
		a.ledger.Note(a.spec.Label)
		return
	}
	a.mu.Lock()
	a.times[step]++
	n := a.times[step]
	a.events.Encode(Event{Kind: Stepped, Step: step, Nth: n})
	a.mu.Unlock()
	if step == a.spec.Step && n == a.spec.Nth {
		a.act(step, n)
	}
	if a.slow.Load() {
		time.Sleep(a.spec.Delay)
	}
}

func (a *Agent) act(step string, n int) {
	a.Tell(Event{Kind: Acted, Step: step, Nth: n})
	switch a.spec.Action {
	case Block:
		<-a.release
	case Close:
		hangUp()
	case Slow:
		a.slow.Store(true)
	}
}

// hangUp ends the conversations on the control socket as the peer sees it, and
// as this process finds it: shutdown(2) leaves the descriptors to their owners.
func hangUp() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err == nil && isConversation(fd) {
			unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	}
}

func isConversation(fd int) bool {
	for _, q := range []struct{ option, want int }{
		{unix.SO_DOMAIN, unix.AF_UNIX}, {unix.SO_TYPE, unix.SOCK_SEQPACKET}, {unix.SO_ACCEPTCONN, 0},
	} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, q.option); err != nil || got != q.want {
			return false
		}
	}
	return true
}

// obey carries out orders until they end.
func (a *Agent) obey() {
	lines := bufio.NewScanner(a.orders)
	for lines.Scan() {
		switch lines.Text() {
		case Release:
			close(a.release)
		case Stop:
			close(a.stop)
		case Report:
			a.Tell(Event{Kind: Reported, Goroutines: runtime.NumGoroutine()})
		}
	}
	os.Exit(3) // the test has ended
}
