package child

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// sigRTMin is the first real-time signal that programs may use: the C
// libraries keep 32 and 33 for themselves, signal(7).
const sigRTMin, sigRTMax = 34, 64

// ParseSignal parses QUIT, SIGQUIT, quit, 3, or SIGRTMIN+3.
func ParseSignal(text string) (syscall.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n, err := strconv.ParseUint(text, 10, 8); err == nil && n >= 1 && n <= sigRTMax {
		return syscall.Signal(n), nil
	}
	if s := signalNumber("SIG" + name); s != 0 {
		return s, nil
	}
	for prefix, base := range map[string]int{"RTMIN": sigRTMin, "RTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(rest)
		if rest == "" || err == nil && strings.ContainsAny(rest[:1], "+-") {
			if s := base + n; s >= sigRTMin && s <= sigRTMax {
				return syscall.Signal(s), nil
			}
		}
	}
	return 0, fmt.Errorf("%q is no signal: give one like TERM, SIGQUIT or 3", text)
}
