package faults

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// directory is a file system of its own for the control socket.
type directory struct {
	t    testing.TB
	path string
}

// newDirectory mounts one that holds few files.
func newDirectory(t testing.TB) *directory {
	t.Helper()
	d := &directory{t: t, path: filepath.Join(t.TempDir(), "run")}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("faults", d.path, "tmpfs", 0, "mode=700,size=64k,nr_inodes=16"); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(d.path, unix.MNT_DETACH) })
	return d
}

// makeReadOnly mounts the directory once more, over itself and read-only:
// files that are open stay so.
func (d *directory) makeReadOnly() (undo func()) {
	d.t.Helper()
	err := unix.Mount(d.path, d.path, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", d.path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		d.t.Fatalf("mount read-only: %v", err)
	}
	d.wantNoFile(unix.EROFS)
	return func() { unix.Unmount(d.path, unix.MNT_DETACH) }
}

// fill makes files until there is no room for another one.
func (d *directory) fill() (undo func()) {
	d.t.Helper()
	var names []string
	for i := 0; ; i++ {
		name := filepath.Join(d.path, "full"+strconv.Itoa(i))
		err := os.WriteFile(name, nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			d.t.Fatal(err)
		}
		names = append(names, name)
	}
	d.wantNoFile(unix.ENOSPC)
	return func() {
		for _, name := range names {
			os.Remove(name)
		}
	}
}

// wantNoFile checks that the fault is one.
func (d *directory) wantNoFile(want error) {
	d.t.Helper()
	name := filepath.Join(d.path, "file")
	if err := os.WriteFile(name, nil, 0o600); !errors.Is(err, want) {
		d.t.Fatalf("a file can be made, or not for this reason: %v, want %v", err, want)
	}
}

// files are the names of all files.
func (d *directory) files() (names []string) {
	d.t.Helper()
	entries, err := os.ReadDir(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
