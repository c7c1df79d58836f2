package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// console is standard error: log lines, lines for people, and below them at
// most one line of progress. On anything but a terminal only log lines get
// there.
type console struct {
	w        io.Writer
	terminal bool
	width    func() int

	mu      sync.Mutex
	bar     *progressbar.ProgressBar
	subject string
	max     int64
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
	if c.bar == nil {
		return c.w.Write(p)
	}
	c.bar.Clear()
	n, err := c.w.Write(p)
	c.bar.RenderBlank()
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
	subject  string // a new one begins a new bar
	text     string
	now, max int64 // max 0: it is not known how much there is
}

const barWidth = 20

// show puts p in place of the present line of progress.
func (c *console) show(p progress) {
	if !c.terminal {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bar == nil || c.subject != p.subject || c.max != p.max {
		c.clearLocked()
		c.bar, c.subject, c.max = c.newBar(p.max), p.subject, p.max
	}
	// The bar, the percentage, and the blanks around them.
	if room := c.width() - barWidth - 12; len(p.text) > room {
		p.text = p.text[:max(room, 0)]
	}
	// Both render; a full bar would be a finished one. What a terminal does
	// not take is lost, and nothing else.
	if p.max > 0 {
		_ = c.bar.Set64(min(max(p.now, 0), p.max-1))
	}
	c.bar.Describe(p.text)
}

func (c *console) newBar(limit int64) *progressbar.ProgressBar {
	options := []progressbar.Option{
		progressbar.OptionSetWriter(c.w),
		progressbar.OptionUseANSICodes(true),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionShowDescriptionAtLineEnd(),
		progressbar.OptionSetWidth(barWidth),
		progressbar.OptionSetSpinnerChangeInterval(0), // show turns it
		progressbar.OptionSpinnerType(14),
		progressbar.OptionSetTheme(progressbar.Theme{Saucer: "█", SaucerPadding: "░"}),
	}
	if limit <= 0 {
		limit = -1
	}
	return progressbar.NewOptions64(limit, options...)
}

// clear removes the line of progress.
func (c *console) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clearLocked()
}

func (c *console) clearLocked() {
	if c.bar != nil {
		c.bar.Clear()
		c.bar = nil
	}
}
