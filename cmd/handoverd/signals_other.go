//go:build !unix

package main

import (
	"os"
	"syscall"
)

// platformSignals: there are none here.
func platformSignals() []os.Signal { return nil }

func isUpgrade(os.Signal) bool { return false }

func isBrokenPipe(os.Signal) bool { return false }

func ownSession() *syscall.SysProcAttr { return nil }

func programSignals() []os.Signal { return nil }
