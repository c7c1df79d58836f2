//go:build linux

package handover_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/handoverd/handoverd/handover"
)

// A whole program: whoever runs it takes over from the one that runs already,
// or starts afresh. Here both runs are in one process, one after the other.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "app.sock")

	first, err := run(socket)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ask(first.address))
	second, err := run(socket)
	if err != nil {
		log.Fatal(err)
	}
	<-first.done // it was superseded, has drained and closed
	fmt.Println(ask(second.address), first.address == second.address)
	if err := second.gen.Stop(context.Background()); err != nil {
		log.Fatal(err)
	}
	<-second.done

	// Output:
	// generation 1
	// generation 2 true
}

type program struct {
	gen     *handover.Generation
	address string
	done    chan struct{}
}

func run(socket string) (*program, error) {
	ctx := context.Background()
	gen, err := handover.Start(ctx, handover.Config{Socket: socket, Probation: -1})
	if err != nil {
		return nil, err
	}
	ln, err := gen.Listen("app", "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, gen.Close())
	}
	served := make(chan struct{})
	go func() { // Accept waits until the sockets are ours
		defer close(served)
		for {
			c, err := ln.Accept()
			if err != nil {
				return // net.ErrClosed: they are a successor's
			}
			fmt.Fprintf(c, "generation %d", gen.Number())
			c.Close()
		}
	}()
	if err := gen.Ready(ctx); err != nil {
		return nil, errors.Join(err, gen.Close()) // the predecessor serves on
	}
	p := &program{gen: gen, address: ln.Addr().String(), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		<-gen.Superseded()
		<-served
		gen.Drained(nil)
		gen.Close()
	}()
	return p, nil
}

func ask(address string) string {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// State travels in sealed memory files, made when a successor asks.
func ExampleGeneration_OfferState() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	cfg := handover.Config{Socket: filepath.Join(dir, "app.sock"), Probation: -1}

	old, err := handover.Start(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer old.Close()
	old.OfferState("tickets", func(context.Context) ([]byte, error) { return []byte("secret keys"), nil })
	if err := old.Ready(ctx); err != nil {
		log.Fatal(err)
	}

	successor, err := handover.Start(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer successor.Close()
	keys, err := successor.State("tickets")
	fmt.Printf("%s %v\n", keys, err)
	_, err = successor.State("other")
	fmt.Println(errors.Is(err, handover.ErrNotFound))
	// Output:
	// secret keys <nil>
	// true
}
