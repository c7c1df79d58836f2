//go:build !unix

package main

import "errors"

func descriptorLimit() (uint64, error) { return 0, errors.ErrUnsupported }
