package e2e

import (
	"context"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

func TestUnixSocketUnderLoad(t *testing.T) {
	b := newBench(t)
	path := b.path("web")
	takeoversUnderLoad(b, scale(8, 3), 0, loadSpec{Network: "unix", Address: path, PostRatio: .5},
		"--listen", "web=unix://"+path)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the path of the listener after the last stop: %v", err)
	}
}

// Not one packet of a UDP client is lost or answered twice over takeovers.
func TestUDPAcrossTakeovers(t *testing.T) {
	b := newBench(t)
	owner := b.serve("--listen", "dns=udp://"+net.JoinHostPort(b.server.addr, "0"))
	c, err := b.client.dial("udp", b.address("dns"))
	if err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	end := sync.OnceFunc(func() {
		close(stop)
		<-ended
		c.Close()
	})
	t.Cleanup(end)
	sent := 0
	go func() {
		defer close(ended)
		buf := make([]byte, 64)
		for sent < 1_000_000 {
			select {
			case <-stop:
				return
			default:
			}
			text := "packet " + strconv.Itoa(sent)
			sent++
			c.SetDeadline(time.Now().Add(patience))
			_, err := c.Write([]byte(text))
			n := 0
			if err == nil {
				n, err = c.Read(buf)
			}
			if err != nil || string(buf[:n]) != text {
				t.Errorf("sent %q, received %q, error %v", text, buf[:n], err)
				return
			}
		}
	}()
	n := uint64(scale(10, 4))
	for generation := uint64(2); generation <= n+1; generation++ {
		successor := b.succeed(generation)
		owner.wantCode(0)
		owner = successor
	}
	end()
	t.Logf("%d packets sent and echoed over %d takeovers", sent, n)
}

// Listeners of all kinds are the same sockets after a takeover, and each
// answers.
func TestSeveralListenersAcrossTakeover(t *testing.T) {
	b := newBench(t)
	path := b.path("local")
	owner := b.serve("--listen", b.listener(),
		"--listen", "admin=tcp4://"+b.server.addr+":0",
		"--listen", "dns=udp4://"+b.server.addr+":0",
		"--listen", "loop=tcp6://[::1]:0",
		"--listen", "local=unix://"+path,
		"--listen", "gram=unixgram://"+b.path("gram"))
	cookies := func(st *handover.Status) map[string]uint64 {
		all := map[string]uint64{}
		for _, s := range st.Sockets {
			all[s.Name] = s.Cookie
		}
		return all
	}
	before := cookies(b.awaitOwner(1))
	if len(before) != 6 {
		t.Errorf("%d sockets, want 6: %v", len(before), before)
	}
	b.succeed(2)
	owner.wantCode(0)
	if after := cookies(b.awaitOwner(2)); !maps.Equal(before, after) {
		t.Errorf("socket cookies before %v, after %v", before, after)
	}
	for _, name := range []string{"web", "admin"} {
		wantAnswer(t, b.plain, "http://"+b.address(name)+"/healthz", 2, "ok\n")
	}
	wantAnswer(t, b.server.client(t, false), "http://"+b.address("loop")+"/healthz", 2, "ok\n")
	local := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	wantAnswer(t, &http.Client{Transport: local, Timeout: patience}, "http://local/healthz", 2, "ok\n")
	wantPacketEcho(t, b, "udp", b.address("dns"))
}

func wantPacketEcho(t *testing.T, b *bench, network, address string) {
	t.Helper()
	c, err := b.client.dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 16)
	_, err = c.Write([]byte("ping"))
	n := 0
	if err == nil {
		n, err = c.Read(buf)
	}
	if err != nil || string(buf[:n]) != "ping" {
		t.Errorf("%s %s: received %q, error %v", network, address, buf[:n], err)
	}
}

// A successor serves another directory: the old files before the takeover,
// the new ones after it, on the same address.
func TestFilesAcrossTakeover(t *testing.T) {
	b := newBench(t)
	for _, dir := range []string{"old", "new"} {
		if err := os.Mkdir(b.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.path(dir), "file.txt"), []byte(dir), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	owner := b.serve("--root", b.path("old"))
	url := b.url("/file.txt")
	wantAnswer(t, b.plain, url, 1, "old")
	b.succeed(2, "--root", b.path("new"))
	owner.wantCode(0)
	wantAnswer(t, b.plain, url, 2, "new")
}

// The proxy is replaced in front of a server that stays the same.
func TestProxyUnderLoad(t *testing.T) {
	b := newBench(t)
	behind := *b // the same place, with a control socket of its own
	behind.socket = b.path("behind")
	backend := behind.serve()
	takeoversUnderLoad(b, scale(6, 3), 0, loadSpec{KeepAlive: true, PostRatio: .5, Workers: 16}, "--proxy", behind.url(""))
	behind.wantRun(0, "stopped", "stop")
	backend.wantCode(0)
}
