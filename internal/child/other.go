//go:build !linux

package child

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

var errUnsupported = fmt.Errorf("programs with inherited sockets on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// A Program is one that was started by Start. There is none on this system.
type Program struct{}

// Start fails with errors.ErrUnsupported.
func Start(context.Context, Config) (*Program, error) { return nil, errUnsupported }

// Shim does nothing.
func Shim() {}

func (*Program) Ready(context.Context) error          { return errUnsupported }
func (*Program) Supervise() error                     { return errUnsupported }
func (*Program) Signal(syscall.Signal) error          { return errUnsupported }
func (*Program) Stop(context.Context) (Report, error) { return Report{}, errUnsupported }
func (*Program) Done() <-chan struct{}                { return nil }
func (*Program) Err() error                           { return errUnsupported }
func (*Program) Report() Report                       { return Report{} }
func (*Program) PID() int                             { return 0 }
func (*Program) MainPID() int                         { return 0 }
func (*Program) Restarts() int                        { return 0 }

// A Reaper waits for orphans. There is none on this system.
type Reaper struct{}

// StartReaper fails with errors.ErrUnsupported.
func StartReaper(subreaper bool) (*Reaper, error) { return nil, errUnsupported }

func (*Reaper) Reaped() uint64 { return 0 }
func (*Reaper) Close() error   { return nil }
