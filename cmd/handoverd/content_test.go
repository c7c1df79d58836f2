//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"
)

// writeCertificate makes a certificate for 127.0.0.1 and a pool that trusts it.
func (b *bench) writeCertificate() *x509.CertPool {
	b.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for name, data := range map[string][]byte{
		"cert.pem": certPEM, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	} {
		if err := os.WriteFile(b.path(name), data, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return pool
}

func TestTLSAcrossATakeover(t *testing.T) {
	b := newBench(t)
	pool := b.writeCertificate()
	files := []string{"--tls-cert", b.path("cert.pem"), "--tls-key", b.path("key.pem")}
	first := b.start(append([]string{"serve", "--listen", loopback, "--linger=100ms", quick}, files...)...)
	url := "https://" + address(t, b.awaitOwner(1), "default")
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: patience}
	wantGeneration(t, c, url, "1")
	b.start(append([]string{"takeover", "--probation=0", quick}, files...)...)
	b.awaitOwner(2)
	first.wantCode(exitDone)
	wantGeneration(t, c, url, "2")
	// Files that cannot be read are found out before anything is taken.
	b.wantRun(exitFailure, "TLS certificate", "takeover", "--tls-cert", b.path("key.pem"), "--tls-key", b.path("key.pem"))
	b.awaitOwner(2)
}

func TestServesFiles(t *testing.T) {
	b := newBench(t)
	for gen, dir := range []string{b.path("one"), b.path("two")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/f.txt", fmt.Appendf(nil, "of %d", gen+1), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := newClient(t)
	b.start("serve", "--listen", loopback, "--root", b.path("one"), quick)
	url := "http://" + address(t, b.awaitOwner(1), "default") + "/f.txt"
	if body, gen := get(t, c, url); body != "of 1" || gen != "1" {
		t.Fatalf("%q by %s", body, gen)
	}
	b.start("takeover", "--root", b.path("two"), "--probation=0", quick)
	b.awaitOwner(2)
	if body, gen := get(t, c, url); body != "of 2" || gen != "2" {
		t.Fatalf("%q by %s", body, gen)
	}
	b.wantRun(exitFailure, "does not exist", "takeover", "--root", b.path("three"))
}

func TestPassesOn(t *testing.T) {
	b := newBench(t)
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "behind "+r.URL.Path)
	}))
	defer behind.Close()
	b.start("serve", "--listen", loopback, "--proxy", behind.URL, quick)
	url := "http://" + address(t, b.awaitOwner(1), "default")
	if body, gen := get(t, newClient(t), url+"/x"); body != "behind /x" || gen != "1" {
		t.Fatalf("%q by %s", body, gen)
	}
}

func TestUnixListeners(t *testing.T) {
	b := newBench(t)
	path := b.path("http")
	abstract := fmt.Sprintf("@handoverd-test-%d", os.Getpid())
	first := b.start("serve", "--listen", "unix://"+path, "--listen", "x=unix:"+abstract, quick)
	b.awaitOwner(1)
	over := func(address string) *http.Client {
		tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", address)
		}}
		return &http.Client{Transport: tr, Timeout: patience}
	}
	wantGeneration(t, over(path), "http://x", "1")
	wantGeneration(t, over(abstract), "http://x", "1")
	b.start("takeover", "--probation=0", quick)
	b.awaitOwner(2)
	first.wantCode(exitDone)
	wantGeneration(t, over(path), "http://x", "2")
	wantGeneration(t, over(abstract), "http://x", "2")
	b.wantRun(exitDone, "", "stop")
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the path is left: %v", err)
	}
}

func TestPacketsComeBack(t *testing.T) {
	b := newBench(t)
	path := b.path("gram")
	first := b.start("serve", "--listen", "u=udp://127.0.0.1:0", "--listen", "g=unixgram://"+path, quick)
	st := b.awaitOwner(1)
	udp, err := net.Dial("udp", address(t, st, "u"))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	gram, err := net.DialUnix("unixgram", &net.UnixAddr{Name: b.path("client"), Net: "unixgram"}, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer gram.Close()
	ask := func(text string) {
		t.Helper()
		for _, c := range []net.Conn{udp, gram} {
			c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err != nil || string(buf[:n]) != text {
				t.Fatalf("%q, %v", buf[:n], err)
			}
		}
	}
	ask("one")
	second := b.start("takeover", "--probation=0", quick)
	b.awaitOwner(2)
	first.wantCode(exitDone)
	ask("two")
	// What serves no packets cannot take them over, and says so.
	b.wantRun(exitUsage, "serves no packets", "takeover", "--root", b.dir)
	b.awaitOwner(2)
	ask("three")
	b.wantRun(exitDone, "", "stop")
	second.wantCode(exitDone)
}
