//go:build linux

package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

func TestSecondRunReplacesTheFirst(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	await := func(want string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			resp, err := client.Get("http://" + address)
			if err != nil {
				continue // not there yet
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) == want {
				return
			}
		}
		t.Fatalf("no answer %q within 20 s", want)
	}
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- run(t.Context(), socket, address) }()
	await("generation 1\n")
	go func() { second <- run(t.Context(), socket, address) }()
	await("generation 2\n")
	op := handover.Operator{Socket: socket}
	if err := op.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if _, err := op.Stop(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
}
