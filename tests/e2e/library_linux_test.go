package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// librarySpec says what a library program does: a program that uses package
// handover and never accepts a connection.
type librarySpec struct {
	Socket    string
	Listen    string // address of the tcp listener web
	Behaviour behaviour
	Probation time.Duration
}

type behaviour string

const (
	idles   behaviour = "idles"   // gets ready and owns the sockets, until superseded
	unready behaviour = "unready" // never gets ready
	givesUp behaviour = "gives up"
)

// What a library program says when it has come so far.
const (
	saysPrepared = "library program: prepared"
	saysReady    = "library program: ready"
	gaveUpCode   = 17
)

func libraryMain() int {
	var spec librarySpec
	err := json.Unmarshal([]byte(os.Getenv(specVariable)), &spec)
	if err == nil {
		var code int
		if code, err = spec.run(); err == nil {
			return code
		}
	}
	fmt.Println("library program:", err)
	return 1
}

func (s librarySpec) run() (code int, err error) {
	// Nothing lasts longer than the tests.
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	gen, err := handover.Start(ctx, handover.Config{Socket: s.Socket, Probation: s.Probation})
	if err != nil {
		return 0, err
	}
	if _, err := gen.Listen("web", "tcp", s.Listen); err != nil {
		return 0, err
	}
	fmt.Println(saysPrepared)
	switch s.Behaviour {
	case unready:
		<-ctx.Done()
		return 0, ctx.Err()
	case givesUp:
		return gaveUpCode, nil // no Close: the kernel cleans up
	}
	if err := gen.Ready(ctx); err != nil {
		return 0, err
	}
	fmt.Println(saysReady)
	select {
	case <-gen.Superseded():
	case <-ctx.Done():
	}
	if err := gen.Drained(nil); err != nil {
		return 0, err
	}
	return 0, gen.Close()
}

// library starts a library program on the server.
func (b *bench) library(does behaviour, probation time.Duration) *process {
	b.t.Helper()
	text, err := json.Marshal(librarySpec{
		Socket: b.socket, Listen: b.server.addr + ":0", Behaviour: does, Probation: probation,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", string(does))
	cmd.Env = environment(roleVariable+"="+roleLibrary, specVariable+"="+string(text))
	return launch(b.t, b.server, b.dir, cmd)
}
