package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/handoverd/handoverd/internal/child"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version string

func main() {
	child.Shim() // a process that is to become the program does not return
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run runs the command line args and gives the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	root := newRoot(args, stdout, stderr)
	root.SetArgs(args[1:])
	err := root.ExecuteContext(context.Background())
	if err != nil {
		fmt.Fprintln(stderr, "handoverd: "+describe(err))
	}
	return exitCode(err)
}
