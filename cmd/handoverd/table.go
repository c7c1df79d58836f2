package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// writeStatus writes a status for people.
func writeStatus(w io.Writer, st *handover.Status, now time.Time) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", key, fmt.Sprintf(format, args...))
	}
	line("Generation", "%d, %s", st.Generation, phaseText(st))
	line("Program", "%s", strings.TrimSpace(st.Program+" "+st.Build))
	if st.Revision > 0 {
		line("Revision", "%d", st.Revision)
	}
	line("Process", "pid %d, up %s%s", st.PID, age(now.Sub(st.Started)), ownerText(st, now))
	if text := namespaceText(st.Namespace); text != "" {
		line("Namespace", "%s", text)
	}
	line("Connections", "%s", connectionText(st.Stats)+oldestText(st.Stats))
	if s := st.Successor; s != nil {
		line("Successor", "generation %d prepares: %s, pid %d", s.Generation, strings.TrimSpace(s.Program+" "+s.Build), s.PID)
	}
	if st.LastFailure != "" {
		line("Last failure", "%s", st.LastFailure)
	}
	tw.Flush()
	socketTable(&b, st.Sockets)
	drainTable(&b, st.Draining)
	if len(st.Unclaimed) > 0 {
		fmt.Fprintln(&b, "\nClosed at the takeover, since this generation has no use for them:")
		for _, s := range st.Unclaimed {
			fmt.Fprintf(&b, "  %s %s %s\n", s.Name, s.Network, s.Address)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func phaseText(st *handover.Status) string {
	switch st.Phase {
	case handover.PhaseOwner:
		return "owner"
	case handover.PhaseProbation:
		return "owner on probation for " + seconds(st.Probation) + " more"
	case handover.PhaseHanding:
		return "owner, a successor prepares"
	}
	return st.Phase.String()
}

// namespaceText says what is wrong with the network namespace of the sockets.
func namespaceText(n handover.NamespaceStatus) string {
	names := strings.Join(n.Silent, ", ")
	switch n.Verdict {
	case handover.NetnsForeign:
		return "foreign: the sockets go silent when the container that they were made in is removed"
	case handover.NetnsForeignDead:
		return "foreign and dead: no client reaches " + names + ", since the network device there is gone; start afresh"
	case handover.NetnsDeviceGone:
		return "device gone: no client reaches " + names + ", since no network device that is up has its address"
	}
	return ""
}

func ownerText(st *handover.Status, now time.Time) string {
	if st.Owner.IsZero() {
		return ""
	}
	return ", owner for " + age(now.Sub(st.Owner))
}

func oldestText(st handover.Stats) string {
	if st.Oldest <= 0 {
		return ""
	}
	return ", oldest request " + seconds(st.Oldest)
}

// age is how long something exists, to the second; clocks may differ.
func age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return d.Round(time.Second).String()
}

func socketTable(w io.Writer, all []handover.SocketStatus) {
	if len(all) == 0 {
		fmt.Fprintln(w, "\nNo sockets.")
		return
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "SOCKET\tNETWORK\tADDRESS\tQUEUE")
	for _, s := range all {
		queue := "-"
		if s.Queue != nil && s.Backlog != nil {
			queue = fmt.Sprintf("%d of %d", *s.Queue, *s.Backlog)
		}
		network := s.Network
		if network == "" {
			network = string(s.Kind)
		}
		if s.Kept {
			queue += ", kept unused"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", s.Name, network, orDash(s.Address), queue)
	}
	tw.Flush()
}

func drainTable(w io.Writer, all []handover.PeerStatus) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "DRAINING\tPROGRAM\tCONNECTIONS\tENDED\tOLDEST\tLEFT")
	for _, p := range all {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\n", p.Generation, orDash(strings.TrimSpace(p.Program+" "+p.Build)),
			stateText(p.Stats), orDash(endedText(p.Stats)), orDash(positive(p.Stats.Oldest)), orDash(positive(p.Stats.Remaining)))
	}
	tw.Flush()
}

func stateText(st handover.Stats) string {
	if text := counted(st.Connections); text != "" {
		return text
	}
	return "0"
}

// endedText is "120 moved, 3 finished", the best end first, or "" if there was
// none.
func endedText(st handover.Stats) string {
	return counted(st.Ended, "moved", "finished", "closed", "killed")
}

// counted lists what there is any of: first what is named first, and then the
// others by their names.
func counted(all map[string]int64, first ...string) string {
	var parts []string
	add := func(name string) {
		if n := all[name]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, name))
		}
	}
	for _, name := range first {
		add(name)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !slices.Contains(first, name) {
			add(name)
		}
	}
	return strings.Join(parts, ", ")
}

func positive(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return seconds(d)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
