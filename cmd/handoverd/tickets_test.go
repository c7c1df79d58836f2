//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/site"
)

// tlsClient is an HTTP client that keeps its TLS session, but no connection.
func tlsClient(t *testing.T, pool *x509.CertPool, version uint16) *http.Client {
	c := newClient(t)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{
		RootCAs: pool, MinVersion: version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	return c
}

// wantResumed checks who answers, and whether a session was resumed for it.
func wantResumed(t *testing.T, c *http.Client, url, generation string, want bool) {
	t.Helper()
	res, err := c.Get(url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	if gen := res.Header.Get(site.GenerationHeader); gen != generation || res.TLS.DidResume != want {
		t.Fatalf("answered by generation %s, resumed = %v; want generation %s, %v", gen, res.TLS.DidResume, generation, want)
	}
}

func TestTLSSessionsSurviveTakeovers(t *testing.T) {
	b := newBench(t)
	pool := b.writeCertificate()
	start := func(generation uint64, command string, args ...string) (p *process, url string) {
		p = b.start(append([]string{command, "--tls-cert", b.path("cert.pem"), "--tls-key", b.path("key.pem"), quick}, args...)...)
		return p, "https://" + address(t, b.awaitOwner(generation), "default")
	}
	var clients []*http.Client
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		clients = append(clients, tlsClient(t, pool, version), tlsClient(t, pool, version))
	}
	first, url := start(1, "serve", "--listen", loopback)
	for i, c := range clients {
		wantResumed(t, c, url, "1", false)
		if i%2 == 0 {
			wantResumed(t, c, url, "1", true)
		}
	}
	second, _ := start(2, "takeover", "--probation=0")
	first.wantCode(exitDone)
	for i, c := range clients {
		if i%2 == 0 { // the others go from the first generation to the third
			wantResumed(t, c, url, "2", true)
		}
	}
	late := tlsClient(t, pool, tls.VersionTLS13)
	wantResumed(t, late, url, "2", false)
	third, _ := start(3, "takeover", "--probation=0")
	second.wantCode(exitDone)
	for _, c := range append(clients, late) {
		wantResumed(t, c, url, "3", true)
	}
	for _, p := range []*process{first, second, third} {
		if strings.Contains(p.text(), "can be resumed") {
			t.Errorf("a warning:\n%s", p.text())
		}
	}
}

// Whatever a predecessor says of its tickets, a takeover is none the worse.
func TestTLSSessionsThatCannotBeResumed(t *testing.T) {
	const secret = "hunter2-hunter2-hunter2-hunter2!"
	for what, c := range map[string]struct {
		state string // "" if nothing is offered
		says  string
	}{
		"nothing is offered": {"", "nothing inherited"},
		"something else":     {secret, "something else"},
		"another version":    {"tickets\x02" + secret, "version 2"},
		"cut off":            {"tickets\x01" + secret, "cut off"},
		"too old":            {"tickets\x01\x00\x00\x00\x00\x40\x00\x00\x00" + secret, "younger"},
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t)
			pool := b.writeCertificate()
			old, err := handover.Start(t.Context(), handover.Config{Socket: b.socket, Mode: handover.StartOnly})
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			ln, err := old.Listen("default", "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if c.state != "" {
				err := old.OfferState(ticketState, func(context.Context) ([]byte, error) { return []byte(c.state), nil })
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := old.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			p := b.start("takeover", "--tls-cert", b.path("cert.pem"), "--tls-key", b.path("key.pem"), "--probation=0", "--log-level=debug", quick)
			b.awaitOwner(2)
			client, url := tlsClient(t, pool, tls.VersionTLS13), fmt.Sprint("https://", ln.Addr())
			wantResumed(t, client, url, "2", false)
			wantResumed(t, client, url, "2", true)
			text := p.text()
			if !strings.Contains(text, "level=WARN") || !strings.Contains(text, "can be resumed") || !strings.Contains(text, c.says) {
				t.Errorf("no warning that says %q:\n%s", c.says, text)
			}
			if strings.Contains(text, secret[:7]) {
				t.Errorf("the log shows what was offered:\n%s", text)
			}
		})
	}
}
