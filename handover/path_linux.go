package handover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlBacklog is the length of the control listener's queue.
const controlBacklog = 1024

// maxPath is what sun_path holds besides its terminating zero: unix(7).
const maxPath = 107

// checkPath tells whether a control socket may live at path.
func checkPath(path string) error {
	if path == "" {
		return errors.New("no control socket path given")
	}
	if len(path) > maxPath {
		return fmt.Errorf("control socket path %.60s... has %d bytes, but the kernel takes at most %d: choose a shorter one", path, len(path), maxPath)
	}
	if path[0] == '@' || path[0] == 0 {
		return fmt.Errorf("control socket path %q is abstract: abstract names do not cross containers, choose a path in the file system", path)
	}
	dir := filepath.Dir(path)
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("directory of the control socket does not exist: create %s first: %w", dir, err)
	}
	if err != nil {
		return fmt.Errorf("directory of the control socket: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("directory of the control socket: %s is no directory", dir)
	}
	if st.Mode().Perm()&0o002 != 0 && st.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %s is writable by everybody and not sticky, so that anybody could replace the control socket: chmod o-w it, or choose another", dir)
	}
	return nil
}

// lockPath takes the lock that guards a cold start: flock(2) on PATH.lock. It
// belongs to the open file description, so it travels with the descriptor and
// vanishes with the last holder. held tells that somebody else has it.
func lockPath(path string) (fd int, held bool, err error) {
	name := path + ".lock"
	for {
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, false, fmt.Errorf("open lock file %s: %w", name, err)
		}
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			unix.Close(fd)
			if err == unix.EWOULDBLOCK {
				return -1, true, nil
			}
			if err == unix.EINTR {
				continue
			}
			return -1, false, fmt.Errorf("lock %s: %w", name, err)
		}
		// The last owner may have removed the file between our open and our
		// lock; a lock on a file that nobody else finds guards nothing.
		if sameFile(fd, name) {
			return fd, false, nil
		}
		unix.Close(fd)
	}
}

// sameFile tells whether name still leads to the file that fd has open.
func sameFile(fd int, name string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Lstat(name, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// removeLock removes the lock file while its lock fd is held.
func removeLock(fd int, path string) {
	if sameFile(fd, path+".lock") {
		unix.Unlink(path + ".lock")
	}
}

// fileID is the device and inode of a bound path. Zero if there is none.
type fileID struct{ dev, ino uint64 }

func idOf(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fileID{}, fmt.Errorf("%s exists and is no socket: remove it, or choose another path", path)
	}
	return fileID{uint64(st.Dev), st.Ino}, nil //nolint:unconvert // Dev has another type on mips
}

// unlinkOurs removes a socket path only if it is the one that was bound.
func unlinkOurs(path string, id fileID) {
	if now, err := idOf(path); err == nil && id != (fileID{}) && now == id {
		unix.Unlink(path)
	}
}

// removeStale removes a socket path that a crash left behind. If somebody
// listens there, it says so with EADDRINUSE.
func removeStale(network, path string) error {
	if _, err := idOf(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	c, err := net.Dial(network, path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s exists, and it cannot be told whether somebody uses it: %w", path, err)
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove stale socket: %w", &fs.PathError{Op: "unlink", Path: path, Err: err})
	}
	return nil
}

// bindControl makes the control listener with mode 0600 from the first
// instant: bind(2) gives the path the mode of the socket's own inode.
func bindControl(ctx context.Context, path string) (*net.UnixListener, fileID, error) {
	if err := removeStale("unixpacket", path); err != nil {
		return nil, fileID{}, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, cerr)
	}}
	ln, err := lc.Listen(ctx, "unixpacket", path)
	if err != nil {
		return nil, fileID{}, err
	}
	ul := ln.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	id, err := idOf(path)
	if err == nil {
		err = listenAgain(ul)
	}
	if err != nil {
		ul.Close()
		return nil, fileID{}, err
	}
	return ul, id, nil
}

// listenAgain makes SO_PEERCRED and SO_PEERPIDFD on the client's side tell of
// this process: the kernel notes them at listen(2), and a control listener
// that travelled still carries those of the first generation.
func listenAgain(ln *net.UnixListener) error {
	fd, err := sockFD(ln)
	if err != nil {
		return err
	}
	return os.NewSyscallError("listen", unix.Listen(fd, controlBacklog))
}
