package load

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// relayTo relays to a listener and returns both ends of one connection.
func relayTo(t *testing.T, cfg RelayConfig) (relay *Relay, client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg.Address = ln.Addr().String()
	relay, err = StartRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := relay.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := net.Dial("tcp", relay.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	deadline := time.Now().Add(2 * time.Minute)
	c.SetDeadline(deadline)
	s.SetDeadline(deadline)
	return relay, c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestRelayDelaysAndKeepsOrder(t *testing.T) {
	leak.Check(t)
	const delay = 30 * time.Millisecond
	_, client, server := relayTo(t, RelayConfig{Delay: delay})
	sent := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(sent)
	begin := time.Now()
	go func() {
		client.Write(sent)
		client.CloseWrite()
	}()
	one := make([]byte, 1)
	if _, err := io.ReadFull(server, one); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d < delay {
		t.Errorf("the first byte took %v, want at least %v", d, delay)
	}
	rest, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(append(one, rest...), sent) {
		t.Fatalf("%d bytes arrived changed, error %v", 1+len(rest), err)
	}
	// The other direction is still open, and as slow.
	begin = time.Now()
	server.Write([]byte("answer"))
	server.Close()
	got, err := io.ReadAll(client)
	if err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v", got, err)
	}
	if d := time.Since(begin); d < delay {
		t.Errorf("the answer took %v, want at least %v", d, delay)
	}
}

// Delay is added to each byte, not to each piece after another.
func TestRelayIsNotSlowerWithMorePieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay, pieces = 50 * time.Millisecond, 40
		client, from := net.Pipe()
		to, server := net.Pipe()
		r := &Relay{cfg: RelayConfig{Delay: delay, Window: 1000}, ctx: t.Context()}
		d := r.newDirection(from, to)
		var wg sync.WaitGroup
		wg.Go(d.read)
		wg.Go(d.write)
		begin := time.Now()
		wg.Go(func() {
			for range pieces {
				client.Write([]byte("piece"))
				time.Sleep(time.Millisecond)
			}
			client.Close()
		})
		piece := make([]byte, 5)
		for i := range pieces {
			if _, err := io.ReadFull(server, piece); err != nil {
				t.Fatal(err)
			}
			if got, want := time.Since(begin), delay+time.Duration(i)*time.Millisecond; got != want {
				t.Errorf("piece %d has come after %v, want %v", i, got, want)
			}
		}
		if _, err := server.Read(piece); err == nil {
			t.Error("there is more")
		}
		wg.Wait()
	})
}

func TestRelayPassesReset(t *testing.T) {
	for _, fromServer := range []bool{true, false} {
		t.Run(fmt.Sprint("from server ", fromServer), func(t *testing.T) {
			leak.Check(t)
			_, client, server := relayTo(t, RelayConfig{Delay: 5 * time.Millisecond})
			sender, receiver := client, server
			if fromServer {
				sender, receiver = server, client
			}
			sender.SetLinger(0)
			sender.Close()
			if _, err := receiver.Read(make([]byte, 1)); !isOne(err, resetErrnos) {
				t.Errorf("read: %v, want a reset", err)
			}
		})
	}
}

func TestRelayTargetRefuses(t *testing.T) {
	relay, err := StartRelay(RelayConfig{Address: refusing(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	res := run(t, Config{Address: relay.Addr().String(), MaxRequests: 3})
	if res.Reset+res.EOFBeforeAnswer != 3 || res.Reset == 0 {
		t.Errorf("want resets: %v", res)
	}
}

// A receiver that does not read stops the sender and not the relay's Close.
func TestRelayIsBounded(t *testing.T) {
	leak.Check(t)
	relay, client, _ := relayTo(t, RelayConfig{Window: 1000, MaxConns: 1})
	client.SetDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := client.Write(make([]byte, 64<<20))
	if !isTimeout(err) {
		t.Errorf("wrote %d bytes, error %v, want to be stopped", n, err)
	}
	// MaxConns is reached: a second connection waits in the accept queue.
	c, err := net.Dial("tcp", relay.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("second connection: %v, want it to wait", err)
	}
	if err := relay.Close(); err != nil {
		t.Error(err)
	}
	if err := relay.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestRelayCloseDoesNotWaitForDelay(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	relay, err := StartRelay(RelayConfig{Address: ln.Addr().String(), Delay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", relay.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	relay.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the connection outlives the relay: %v", err)
	}
}

func TestRelayUnderLoad(t *testing.T) {
	leak.Check(t)
	relay, err := StartRelay(RelayConfig{Address: serveHTTP(t, echo), Delay: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	for _, keep := range []bool{true, false} {
		res := run(t, Config{Address: relay.Addr().String(), Workers: 16, KeepAlive: keep, PostRatio: .5, MaxRequests: 300})
		if err := res.Err(); err != nil {
			t.Error(err)
		}
		if l := res.Latency.Min(); l < 4*time.Millisecond {
			t.Errorf("shortest latency %v, want at least the round trip", l)
		}
	}
}

func TestRelayConfigErrors(t *testing.T) {
	for _, cfg := range []RelayConfig{{}, {Address: "127.0.0.1:1", Delay: -1}, {Address: "127.0.0.1:1", Window: -1}} {
		if r, err := StartRelay(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
			r.Close()
		}
	}
}
