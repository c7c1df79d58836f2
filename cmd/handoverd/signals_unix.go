//go:build unix

package main

import (
	"os"
	"syscall"
)

// platformSignals are caught besides those that stop. SIGPIPE is caught rather
// than ignored, since a successor would inherit that.
func platformSignals() []os.Signal { return []os.Signal{syscall.SIGUSR2, syscall.SIGPIPE} }

// programSignals are passed on to the program.
func programSignals() []os.Signal {
	return []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGWINCH}
}

// isUpgrade tells whether sig asks for a successor.
func isUpgrade(sig os.Signal) bool { return sig == syscall.SIGUSR2 }

func isBrokenPipe(sig os.Signal) bool { return sig == syscall.SIGPIPE }

// ownSession makes a process independent of this one's terminal and group.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
