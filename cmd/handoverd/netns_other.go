//go:build !linux

package main

import "errors"

func networkNamespace() (uint64, error) { return 0, errors.ErrUnsupported }
