//go:build linux

package main

import (
	"bytes"
	"strings"
	"testing"
)

// screen is what a terminal shows after it got text.
func screen(text string) (lines []string) {
	line := []rune{}
	col := 0
	for i := 0; i < len(text); {
		rest := text[i:]
		switch {
		case strings.HasPrefix(rest, "\x1b[2K"):
			line, i = line[:0], i+4
		case strings.HasPrefix(rest, "\x1b[0K"):
			line, i = line[:min(col, len(line))], i+4
		case rest[0] == '\r':
			col, i = 0, i+1
		case rest[0] == '\n':
			lines = append(lines, strings.TrimRight(string(line), " "))
			line, col, i = line[:0], 0, i+1
		default:
			r := []rune(rest)[0]
			for len(line) <= col {
				line = append(line, ' ')
			}
			line[col] = r
			col++
			i += len(string(r))
		}
	}
	return append(lines, strings.TrimRight(string(line), " "))
}

func TestConsoleKeepsLogAndProgressApart(t *testing.T) {
	var b bytes.Buffer
	c := newConsole(&b)
	c.show(progress{subject: "x", text: "not on a terminal", max: 3})
	c.say("nor this")
	if b.Len() > 0 {
		t.Fatalf("%q", b.String())
	}
	c.terminal = true
	for i := range int64(4) {
		c.show(progress{subject: "a", text: "three of them", now: i, max: 3})
		c.Write([]byte("log\n"))
	}
	c.show(progress{subject: "b", text: "turning"})
	c.show(progress{subject: "b", text: "turning"})
	c.say("said")
	c.show(progress{subject: "b", text: strings.Repeat("long ", 100)})
	for _, line := range screen(b.String()) {
		if len([]rune(line)) >= 80 {
			t.Errorf("%d columns: %q", len([]rune(line)), line)
		}
	}
	c.show(progress{subject: "c", text: "half", now: 5, max: 10})
	if got, want := screen(b.String()), " 50% ██████████░░░░░░░░░░ half"; got[len(got)-1] != want {
		t.Errorf("the screen shows %q, want %q", got[len(got)-1], want)
	}
	c.clear()
	got := strings.Join(screen(b.String()), "|")
	if want := "log|log|log|log|said|"; got != want {
		t.Errorf("the screen shows %q, want %q", got, want)
	}
}
