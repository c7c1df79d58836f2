package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/handoverd/handoverd/tests/bench/peer"
)

// patience is how long anything may take that has to happen.
const patience = 30 * time.Second

// Ports for servers are below those that the kernel gives to connections, so
// that a server that lets go of its port for a moment gets it again.
const firstPort, lastPort = 20000, 32000

// A lab is where everything happens: a directory, programs, and who hears what
// the servers tell.
type lab struct {
	dir    string
	module string // directory of this module
	root   string // directory of the main module
	cert   string
	key    string

	events *net.UnixConn
	heard  chan struct{} // closed when nobody listens to events any more

	mu      sync.Mutex
	told    []peer.Event
	changed chan struct{} // closed when there is another event
	port    int
	names   int
	mine    map[int]bool // processes that are reaped where they were started
}

func newLab(ctx context.Context) (_ *lab, err error) {
	l := &lab{changed: make(chan struct{}), heard: make(chan struct{}), port: firstPort, mine: make(map[int]bool)}
	if l.dir, err = os.MkdirTemp("", "hb"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(l.dir)
		}
	}()
	for _, m := range []struct {
		path string
		dir  *string
	}{{"github.com/handoverd/handoverd/tests/bench", &l.module}, {"github.com/handoverd/handoverd", &l.root}} {
		out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", m.path).Output()
		if err != nil {
			return nil, fmt.Errorf("go list %s: %w: run it in its own directory", m.path, err)
		}
		*m.dir = strings.TrimSpace(string(out))
	}
	if err := l.makeCertificate(); err != nil {
		return nil, err
	}
	if err := adoptOrphans(); err != nil {
		return nil, err
	}
	l.events, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: l.path("events")})
	if err != nil {
		return nil, err
	}
	go l.hear()
	return l, nil
}

// close ends whatever still runs and removes the directory.
func (l *lab) close() {
	l.sweep()
	l.events.Close()
	<-l.heard
	os.RemoveAll(l.dir)
}

// sweep kills all processes that came from here.
func (l *lab) sweep() {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		all := descendants(os.Getpid())
		if len(all) == 0 {
			return
		}
		kill(all)
		l.reap(all)
	}
}

// reap reaps those of some processes that have ended as orphans.
func (l *lab) reap(pids []int) {
	for _, pid := range pids {
		if !l.isMine(pid) {
			reapOrphan(pid)
		}
	}
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// unique makes a name that no other site has: events go by it.
func (l *lab) unique(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names++
	return fmt.Sprintf("%s-%d", name, l.names)
}

// start starts a process whose output goes into a file.
func (l *lab) start(cmd *exec.Cmd, log string) (*process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, err := startProcess(cmd, log)
	if err == nil {
		l.mine[p.pid()] = true
	}
	return p, err
}

func (l *lab) isMine(pid int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mine[pid]
}

// hear collects what servers tell.
func (l *lab) hear() {
	defer close(l.heard)
	b := make([]byte, 4096)
	for {
		n, err := l.events.Read(b)
		if err != nil {
			return
		}
		var e peer.Event
		if json.Unmarshal(b[:n], &e) != nil {
			continue
		}
		l.mu.Lock()
		l.told = append(l.told, e)
		close(l.changed)
		l.changed = make(chan struct{})
		l.mu.Unlock()
	}
}

// event finds what was told by a generation.
func (l *lab) event(site string, generation int, name string) (peer.Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.told, func(e peer.Event) bool {
		return e.Site == site && e.Generation == generation && e.Name == name
	})
	if i < 0 {
		return peer.Event{}, false
	}
	return l.told[i], true
}

// await waits until a generation tells something, or until a process has ended
// that should: ended may be nil.
func (l *lab) await(ctx context.Context, ended <-chan struct{}, site string, generation int, name string) (peer.Event, error) {
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if e, ok := l.event(site, generation, name); ok {
			return e, nil
		}
		select {
		case <-changed:
		case <-ended:
			// What it has told may still be on the way.
			ended, timeout = nil, time.After(time.Second)
		case <-ctx.Done():
			return peer.Event{}, ctx.Err()
		case <-timeout:
			return peer.Event{}, fmt.Errorf("generation %d of %s has not told %q", generation, site, name)
		}
	}
}

// freePort finds one that is neither in use nor handed out for connections.
func (l *lab) freePort() (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ; l.port < lastPort; l.port++ {
		addr := fmt.Sprintf("127.0.0.1:%d", l.port)
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		ln.Close()
		l.port++
		return addr, nil
	}
	return "", errors.New("no free port")
}

// makeCertificate makes a certificate for this machine.
func (l *lab) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, &t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	l.cert, l.key = l.path("cert.pem"), l.path("key.pem")
	return errors.Join(
		os.WriteFile(l.cert, certPEM, 0o600), os.WriteFile(l.key, keyPEM, 0o600),
		os.WriteFile(l.path("both.pem"), slices.Concat(certPEM, keyPEM), 0o600)) // HAProxy wants one file
}
