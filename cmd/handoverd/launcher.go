package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/handoverd/handoverd/internal/child"
)

// launcher starts successors, one at a time.
type launcher struct {
	program string   // as in argv[0]
	dir     string   // the working directory at the start
	args    []string // of a successor

	mu      sync.Mutex
	running int // pid of the one that lives, else 0
}

// newLauncher notes how this process was started, so that a successor can be
// started the same way.
func newLauncher(argv []string, cmd *cobra.Command, program []string) (*launcher, error) {
	dir, err := os.Getwd()
	if err != nil && !filepath.IsAbs(argv[0]) {
		return nil, fmt.Errorf("working directory: %w", err)
	}
	args := successorArgs(cmd)
	if len(program) > 0 {
		args = append(append(args, "--"), program...)
	}
	return &launcher{program: argv[0], dir: dir, args: args}, nil
}

// successorArgs is the command line of a successor with the same flags.
// Those that came from the environment come from there again.
func successorArgs(cmd *cobra.Command) []string {
	args := []string{"takeover"}
	if cmd.Name() == "hold" {
		args = []string{"hold", "--takeover"}
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name == "takeover" {
			return
		}
		values := []string{f.Value.String()}
		if r, ok := f.Value.(repeatable); ok {
			values = r.list()
		}
		for _, v := range values {
			args = append(args, "--"+f.Name+"="+v)
		}
	})
	return args
}

// pid is that of the successor that lives, or 0.
func (l *launcher) pid() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running
}

// start starts a successor: what is found now under the name that this
// process was started by. ended is called when that process has ended.
func (l *launcher) start(ended func(pid int, err error)) (pid int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := l.program
	if strings.ContainsRune(name, filepath.Separator) && !filepath.IsAbs(name) {
		name = filepath.Join(l.dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return 0, err
	}
	if err := keepDescriptors(); err != nil {
		return 0, err
	}
	cmd := &exec.Cmd{
		Path: path, Args: append([]string{l.program}, l.args...), Dir: l.dir,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: ownSession(),
	}
	release, err := child.Own(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		return 0, err
	}
	l.running = cmd.Process.Pid
	// Nobody waits for this goroutine: it lives as long as the successor,
	// which is to outlive this process.
	go func() {
		defer release()
		l.reap(cmd, ended)
	}()
	return l.running, nil
}

func (l *launcher) reap(cmd *exec.Cmd, ended func(int, error)) {
	err := cmd.Wait()
	l.mu.Lock()
	l.running = 0
	l.mu.Unlock()
	ended(cmd.Process.Pid, err)
}

// upgrade starts a successor, in answer to a signal.
func (a *app) upgrade() {
	if phase := a.gen.Phase(); !phase.Owns() {
		a.log.Warn("no successor started: this generation does not own the sockets", "phase", phase.String())
		return
	}
	if pid := a.child.pid(); pid != 0 {
		a.log.Warn("no successor started: the one before is still on its way", "pid", pid)
		return
	}
	a.notify.reloading()
	pid, err := a.child.start(a.childEnded)
	if err != nil {
		a.log.Error("no successor started", "error", err)
		a.console.say("no successor started: %v", err)
		a.notify.ready(false, "serving")
		return
	}
	a.log.Info("successor started", "pid", pid, "program", a.child.program)
	a.console.say("started a successor, pid %d", pid)
}

// childEnded notes the end of a successor that was started here.
func (a *app) childEnded(pid int, err error) {
	if !a.gen.Phase().Owns() {
		return // it took over, and this process drains
	}
	a.log.Error("the successor ended without taking over, this generation serves on", "pid", pid, "error", err)
	a.console.say("the successor, pid %d, ended without taking over (%v); this process serves on", pid, err)
	a.notify.ready(false, "serving")
}
