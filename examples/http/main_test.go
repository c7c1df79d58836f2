//go:build linux

package main

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
)

func TestSecondRunReplacesTheFirst(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	const address, patience = "127.0.0.1:0", time.Minute
	op := handover.Operator{Socket: socket, Timeout: patience}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	await := func(want string) {
		t.Helper()
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			st, err := op.Status(t.Context())
			if err != nil {
				continue // not there yet
			}
			resp, err := client.Get("http://" + addressOf(st))
			if err != nil {
				t.Fatal(err) // somebody listens from the beginning
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) == want {
				return
			}
		}
		t.Fatalf("no answer %q within %v", want, patience)
	}
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- run(t.Context(), socket, address) }()
	await("generation 1\n")
	go func() { second <- run(t.Context(), socket, address) }()
	await("generation 2\n")
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

// addressOf is where the program listens.
func addressOf(st *handover.Status) string {
	for _, s := range st.Sockets {
		if s.Name == "http" {
			return s.Address
		}
	}
	return ""
}
