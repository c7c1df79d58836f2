package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// console is standard error: log lines, lines for people, and below them at
// most one line of progress. On anything but a terminal only log lines get
// there.
type console struct {
	w        io.Writer
	terminal bool
	width    func() int

	mu    sync.Mutex
	last  progress
	line  string // of progress, as it is shown; "" for none
	turns int    // of the spinner
}

var _ io.Writer = (*console)(nil)

func newConsole(w io.Writer) *console {
	c := &console{w: w, width: func() int { return 80 }}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		c.terminal = true
		c.width = func() int {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
				return w
			}
			return 80
		}
	}
	return c
}

// Write writes log lines above the line of progress.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line == "" {
		return c.w.Write(p)
	}
	fmt.Fprint(c.w, eraseLine)
	n, err := c.w.Write(p)
	fmt.Fprint(c.w, c.line)
	return n, err
}

// say writes a line for people. Programs read the log instead.
func (c *console) say(format string, args ...any) {
	if c.terminal {
		fmt.Fprintf(c, format+"\n", args...)
	}
}

// progress is a line of progress.
type progress struct {
	subject  string // of whom; a new one begins anew
	text     string
	now, max int64 // max 0: it is not known how much there is
}

const barWidth = 20

// eraseLine goes to the beginning of the line and erases it (ECMA-48, EL).
const eraseLine = "\r\x1b[2K"

// spinner turns while it is not known how much there is.
var spinner = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

// show puts p in place of the present line of progress. What a terminal does not
// take is lost, and nothing else.
func (c *console) show(p progress) {
	if !c.terminal {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line == "" || c.last.subject != p.subject {
		c.turns = 0
	}
	c.last = p
	text := []rune(p.text)
	// The bar, the percentage, and the blanks around them.
	if room := max(c.width()-barWidth-12, 0); len(text) > room {
		text = text[:room]
	}
	c.line = fmt.Sprintf("\r%c %s", spinner[c.turns%len(spinner)], string(text))
	if p.max > 0 {
		now := min(max(p.now, 0), p.max)
		full := int(now * barWidth / p.max)
		c.line = fmt.Sprintf("\r%3d%% %s%s %s", now*100/p.max, strings.Repeat("█", full), strings.Repeat("░", barWidth-full), string(text))
	}
	c.turns++
	fmt.Fprint(c.w, eraseLine, c.line)
}

// clear removes the line of progress.
func (c *console) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line != "" {
		fmt.Fprint(c.w, eraseLine)
		c.line = ""
	}
}
