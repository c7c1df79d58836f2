//go:build linux

package main

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/coder/websocket"

	"github.com/handoverd/handoverd/examples/internal/generations"
)

func TestMain(m *testing.M) { generations.Main(m, main) }

// A client reconnects when it is told 1001, and never else.
type client struct {
	t    *testing.T
	url  string
	conn *websocket.Conn

	answers    int
	reconnects int
	newest     int         // generation that has answered
	by         map[int]int // answers of each
}

func (c *client) dial(ctx context.Context) bool {
	var err error
	if c.conn, _, err = websocket.Dial(ctx, c.url, nil); err != nil {
		c.t.Errorf("after %d answers: %v", c.answers, err)
		return false
	}
	return true
}

// exchange sends three messages at once and reads three answers. What has no
// answer when the server goes away is sent to the next one.
func (c *client) exchange(ctx context.Context) bool {
	for answered, sent := 0, 0; answered < 3; {
		for ; sent < 3; sent++ {
			// When this fails, Read says why.
			c.conn.Write(ctx, websocket.MessageText, fmt.Append(nil, c.answers-answered+sent))
		}
		_, text, err := c.conn.Read(ctx)
		switch {
		case websocket.CloseStatus(err) == websocket.StatusGoingAway:
			c.conn.CloseNow()
			c.reconnects++
			if !c.dial(ctx) {
				return false
			}
			sent = answered
			continue
		case err != nil:
			c.t.Errorf("after %d answers of generations %v: %v", c.answers, c.by, err)
			return false
		}
		var by, n int
		if _, err := fmt.Sscanf(string(text), "generation %d: %d", &by, &n); err != nil || n != c.answers || by < c.newest {
			c.t.Errorf("answer %q, want %d, of generation %d or later", text, c.answers, c.newest)
			return false
		}
		answered++
		c.answers++
		c.by[by]++
		c.newest = by
	}
	return true
}

// chat exchanges messages until a generation has answered some.
func (c *client) chat(until int) {
	ctx, cancel := context.WithTimeout(c.t.Context(), generations.Patience)
	defer cancel()
	if c.conn == nil && !c.dial(ctx) {
		return
	}
	for c.by[until] < 30 && c.exchange(ctx) {
	}
}

// Over five takeovers, twenty clients send messages all the time. Each is told
// 1001 once per takeover, and no message is lost or dealt with twice.
func TestClientsAreToldAndGoOn(t *testing.T) {
	const connections, last = 20, 6
	s := generations.New(t)
	processes := []*generations.Process{s.Next()}
	clients := make([]*client, connections)
	for i := range clients {
		clients[i] = &client{t: t, url: "ws://" + s.Address, by: map[int]int{}}
	}
	for g := 1; g <= last; g++ {
		var done sync.WaitGroup
		t.Cleanup(done.Wait)
		for _, c := range clients {
			done.Go(func() { c.chat(g) })
		}
		if g > 1 {
			processes = append(processes, s.Next())
			processes[g-2].Wait()
		}
		done.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	answers, reconnects := 0, 0
	for _, c := range clients {
		answers += c.answers
		reconnects += c.reconnects
		if c.reconnects != last-1 || len(c.by) != last {
			t.Errorf("a client was told 1001 %d times and has answers of generations %v; want %d times and each of %d", c.reconnects, c.by, last-1, last)
		}
		c.conn.Close(websocket.StatusNormalClosure, "")
	}
	processes[last-1].Stop()
	answered := 0
	for i, p := range processes {
		log := p.Wait()
		if generations.Figure(log, "killed") != 0 {
			t.Errorf("generation %d says\n%s", i+1, log)
		}
		answered += generations.Figure(log, "messages answered")
	}
	if answered != answers {
		t.Errorf("%d messages were answered, clients saw %d", answered, answers)
	}
	t.Logf("%d messages on %d clients, %d reconnects, none lost or answered twice", answers, connections, reconnects)
}
