package e2e

import (
	"bufio"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/site"
)

const queued = 100

// A hundred clients wait in the accept queue of an owner that never accepts.
// Whoever takes over serves them all.
func TestAcceptQueueIsServedBySuccessor(t *testing.T) {
	b := newBench(t)
	owner := b.library(idles, 0)
	b.awaitOwner(1)
	clients := fillQueue(b)
	successor := b.succeed(2)
	wantServed(b, clients, 2)
	owner.wantCode(0)
	b.wantGeneration(2)
	successor.wantAlive()
}

// The clients that a successor on probation has not accepted when it dies are
// served by the predecessor.
func TestAcceptQueueIsServedByPredecessor(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	successor := b.library(idles, 30*time.Minute)
	successor.awaitText(saysReady)
	b.awaitPhase(2, handover.PhaseProbation)
	clients := fillQueue(b)
	successor.kill()
	wantServed(b, clients, 1)
	b.awaitOwner(1)
	owner.wantAlive()
}

// The same when it gives the sockets back.
func TestAcceptQueueIsServedAfterRollback(t *testing.T) {
	b := newBench(t)
	b.serve()
	successor := b.library(idles, 30*time.Minute)
	successor.awaitText(saysReady)
	clients := fillQueue(b)
	b.wantRun(0, "rolled back", "rollback")
	wantServed(b, clients, 1)
	successor.wantCode(0)
}

// fillQueue connects clients that send a request each, and waits until the
// kernel says that they are in the queue.
func fillQueue(b *bench) []net.Conn {
	b.t.Helper()
	address := b.address("web")
	clients := make([]net.Conn, queued)
	for i := range clients {
		c, err := b.client.dial("tcp", address)
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(2 * patience))
		if _, err := c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: queue\r\nConnection: close\r\n\r\n")); err != nil {
			b.t.Fatal(err)
		}
		clients[i] = c
	}
	b.awaitStatus("100 clients are in the queue", func(st *handover.Status) bool {
		for _, s := range st.Sockets {
			if s.Name == "web" {
				return s.Queue != nil && *s.Queue == queued
			}
		}
		return false
	})
	return clients
}

// wantServed checks that each client is answered by a generation.
func wantServed(b *bench, clients []net.Conn, generation uint64) {
	b.t.Helper()
	for i, c := range clients {
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			b.t.Fatalf("client %d: %v", i, err)
		}
		res.Body.Close()
		if gen := res.Header.Get(site.GenerationHeader); res.StatusCode != http.StatusOK || gen != strconv.FormatUint(generation, 10) {
			b.t.Fatalf("client %d: %s from generation %q, want 200 from %d", i, res.Status, gen, generation)
		}
	}
}
