//go:build !linux

package scm_test

import (
	"context"
	"errors"
	"testing"

	"github.com/handoverd/handoverd/scm"
)

func TestUnsupported(t *testing.T) {
	if _, err := scm.Dial(context.Background(), "unix", "none"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Dial = %v, want errors.ErrUnsupported", err)
	}
}
