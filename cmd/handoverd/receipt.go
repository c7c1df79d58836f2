package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/handoverd/handoverd/handover"
)

// receipts writes the record of this generation's takeover to the file that
// --receipt names, again whenever more of it is known. A nil receipts writes
// nothing.
type receipts struct {
	a       *app
	path    string
	sockets []handover.SocketStatus // as long as there were any
}

// newReceipts makes sure that the file can be written, before anything is taken
// over.
func newReceipts(a *app, path string) (*receipts, error) {
	if path == "" {
		return nil, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return nil, usagef("--receipt: %s is there and no regular file: name another", path)
	}
	r := &receipts{a: a, path: path}
	name, err := r.temporary(nil)
	if err != nil {
		return nil, usagef("--receipt: %w: name a file in a directory that is there and can be written", err)
	}
	return r, os.Remove(name)
}

// write replaces the file, all at once: who reads it finds a whole record.
func (r *receipts) write() {
	if r == nil {
		return
	}
	rec, err := r.a.gen.Receipt()
	if len(rec.Sockets) > 0 {
		r.sockets = rec.Sockets
	}
	rec.Sockets = r.sockets
	if err == nil {
		err = r.replace(rec)
	}
	if err != nil {
		r.a.log.Warn("receipt not written", "file", r.path, "error", err)
	}
}

func (r *receipts) replace(rec handover.Receipt) error {
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	name, err := r.temporary(append(text, '\n'))
	if err != nil {
		return err
	}
	if err := os.Rename(name, r.path); err != nil {
		os.Remove(name)
		return err
	}
	return nil
}

// temporary writes text into a new file beside the receipt.
func (r *receipts) temporary(text []byte) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(r.path), "."+filepath.Base(r.path)+"-")
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if e := f.Chmod(0o644); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return f.Name(), err
}

// receiptText is a receipt for people, or "" for a first generation.
func receiptText(r handover.Receipt) string {
	if r.From == nil {
		return ""
	}
	from := strings.TrimSpace(r.From.Program + " " + r.From.Build)
	parts := []string{fmt.Sprintf("%s from generation %d (%s)", plural(len(r.Sockets), "socket"), r.From.Generation, from)}
	if !r.Steps.Ready.IsZero() && r.Steps.Owner.After(r.Steps.Ready) {
		parts = append(parts, "owner "+short(r.Steps.Owner.Sub(r.Steps.Ready))+" after ready")
	}
	if !r.Steps.Paused.IsZero() && r.Steps.Owner.After(r.Steps.Paused) {
		parts = append(parts, "accept paused for "+short(r.Steps.Owner.Sub(r.Steps.Paused)))
	}
	if n := queued(r.Sockets); n > 0 {
		parts = append(parts, plural(n, "connection")+" waited")
	}
	return strings.Join(parts, ", ")
}

// queued counts the connections that waited to be accepted.
func queued(all []handover.SocketStatus) (n int) {
	for _, s := range all {
		if s.Queue != nil {
			n += *s.Queue
		}
	}
	return n
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// short is a short duration for people.
func short(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
