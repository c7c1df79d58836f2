package child

import (
	"strconv"
	"strings"
	"time"
)

// maxMessage is the size of the largest datagram that counts: PAGE_SIZE, as
// sd_notify(3) has no limit, and systemd reads so much.
const maxMessage = 4096

// A message is one datagram of sd_notify(3). Others are ignored. BARRIER=1
// is answered by closing the descriptor that comes with it.
type message struct {
	ready, stopping, reloading bool

	status  *string
	mainPID int
	extend  time.Duration // of the time to get ready, or to stop
}

// parseMessage parses lines NAME=VALUE. A line that makes no sense is ignored
// and does not spoil the others, as in systemd.
func parseMessage(b []byte) (m message) {
	for line := range strings.SplitSeq(string(b), "\n") {
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		switch name {
		case "READY":
			m.ready = m.ready || value == "1"
		case "STOPPING":
			m.stopping = m.stopping || value == "1"
		case "RELOADING":
			m.reloading = m.reloading || value == "1"
		case "STATUS":
			text := printable(value)
			m.status = &text
		case "MAINPID":
			if n, err := strconv.ParseInt(value, 10, 32); err == nil && n > 1 {
				m.mainPID = int(n)
			}
		case "EXTEND_TIMEOUT_USEC":
			// At most a day: whoever needs more asks again.
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				m.extend = time.Duration(min(n, uint64(24*time.Hour/time.Microsecond))) * time.Microsecond
			}
		}
	}
	return m
}

// printable keeps a program from writing to the terminal of whoever reads the
// log.
func printable(text string) string {
	text = strings.ToValidUTF8(text, "�")
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if !strconv.IsPrint(r) {
			return -1
		}
		return r
	}, text)
}
