//go:build race

package scm_test

const raceEnabled = true
