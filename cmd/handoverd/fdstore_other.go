//go:build !linux

package main

import (
	"errors"
	"os"
)

func sendWithFile(string, *os.File) error { return errors.ErrUnsupported }
