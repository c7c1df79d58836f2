package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// gopath is where Debian puts the sources of Go packages.
const gopath = "/usr/share/gocode"

// build builds packages of a module into the directory of programs.
func (l *lab) build(ctx context.Context, module string, packages ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", l.path("bin") + "/"}, packages...)
	return l.goTool(ctx, module, nil, args...)
}

func (l *lab) goTool(ctx context.Context, dir string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go %s: %w: %s", args[0], err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// buildAll builds what is always there.
func (l *lab) buildAll(ctx context.Context) error {
	return errors.Join(
		l.build(ctx, l.root, "./cmd/handoverd"),
		l.build(ctx, l.module, "./peers/library", "./peers/program", "./peers/plain", "./peers/taker", "./peers/tableflip"))
}

// buildGrace builds the server of package gracehttp, which knows nothing of
// modules, from the sources that Debian ships.
func (l *lab) buildGrace(ctx context.Context) error {
	for _, pkg := range []string{"grace", "httpdown"} {
		if _, err := os.Stat(filepath.Join(gopath, "src/github.com/facebookgo", pkg)); err != nil {
			return fmt.Errorf("not installed: on Debian, apt-get install golang-github-facebookgo-%s-dev", pkg)
		}
	}
	src := l.path("gopath/src")
	err := errors.Join(
		copyGo(filepath.Join(l.module, "testdata/grace"), filepath.Join(src, "grace")),
		copyGo(filepath.Join(l.module, "peer"), filepath.Join(src, "github.com/handoverd/handoverd/tests/bench/peer")))
	if err != nil {
		return err
	}
	return l.goTool(ctx, src, []string{"GO111MODULE=off", "GOFLAGS=", "GOPATH=" + l.path("gopath") + ":" + gopath},
		"build", "-trimpath", "-ldflags=-s -w", "-o", l.path("bin/grace"), "grace")
}

// buildTableroll builds the server of package tableroll in a module that is made
// for it, since not everybody can get that package.
func (l *lab) buildTableroll(ctx context.Context) error {
	dir := l.path("tableroll")
	err := errors.Join(
		copyGo(filepath.Join(l.module, "testdata/tableroll"), dir),
		copyGo(filepath.Join(l.module, "peer"), filepath.Join(dir, "peer")),
		os.WriteFile(filepath.Join(dir, "peer/go.mod"), []byte("module github.com/handoverd/handoverd/tests/bench/peer\n\ngo 1.26.0\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte(`module tableroll

go 1.26.0

require github.com/handoverd/handoverd/tests/bench/peer v0.0.0

replace github.com/handoverd/handoverd/tests/bench/peer => ./peer
`), 0o644))
	if err != nil {
		return err
	}
	env := []string{"GOFLAGS=-mod=mod"}
	if err := l.goTool(ctx, dir, env, "get", "github.com/ngrok-oss/tableroll/v2@latest"); err != nil {
		return errors.New("its module cannot be had from the module proxy")
	}
	return l.goTool(ctx, dir, env, "build", "-trimpath", "-ldflags=-s -w", "-o", l.path("bin/tableroll"), ".")
}

// copyGo copies the Go files of a directory.
func copyGo(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(from, "*.go"))
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(name)), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// installed looks for a program and asks for its version.
func installed(ctx context.Context, name, flag string) (string, error) {
	if _, err := exec.LookPath(name); err != nil {
		return "", fmt.Errorf("not installed: on Debian, apt-get install %s", name)
	}
	out, err := exec.CommandContext(ctx, name, flag).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, flag, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first, nil
}
