package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/handoverd/handoverd/handover"
)

// notifier tells the service manager, if there is one: sd_notify(3).
// NOTIFY_SOCKET stays in the environment, a successor needs it.
type notifier struct {
	log *slog.Logger
}

func (n *notifier) send(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		n.log.Warn("service manager not notified", "error", err)
	}
}

// ready says that this process serves. After a takeover, and when a takeover
// was undone, it also says that this is the main process now.
func (n *notifier) ready(main bool, status string) {
	lines := []string{daemon.SdNotifyReady, "STATUS=" + status}
	if main {
		lines = append(lines, fmt.Sprintf("MAINPID=%d", os.Getpid()))
	}
	n.send(lines...)
}

func (n *notifier) status(text string) { n.send("STATUS=" + text) }

func (n *notifier) stopping() { n.send(daemon.SdNotifyStopping, "STATUS=stopping, connections drain") }

func (n *notifier) reloading() {
	n.send(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()), "STATUS=a successor starts")
}

// store has the service manager keep a copy of a socket under its name, for the
// next start: FDSTORE=1 in sd_pid_notify_with_fds(3).
func (n *notifier) store(s *handover.Held) error {
	fd, err := s.Duplicate()
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), s.Name)
	defer f.Close()
	return sendWithFile("FDSTORE=1\nFDNAME="+s.Name, f)
}
