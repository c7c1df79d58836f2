//go:build !linux

package main

import (
	"context"
	"errors"

	"github.com/handoverd/handoverd/tests/bench/report"
)

func measure(context.Context, *options) (*report.Results, error) {
	return nil, errors.New("measuring needs Linux; -render works everywhere")
}
