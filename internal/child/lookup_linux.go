package child

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultPath is searched if the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookup finds the executable as a shell in dir with that environment would,
// but for entries of PATH that are not absolute: these are skipped, as os/exec
// refuses them. The error is an *exec.Error or an *fs.PathError.
func lookup(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		if err := executable(path); err != nil {
			return "", &fs.PathError{Op: "execute", Path: path, Err: err}
		}
		return path, nil
	}
	search := defaultPath
	if p, ok := variable(env, "PATH"); ok {
		search = p
	}
	failure := exec.ErrNotFound
	for _, d := range filepath.SplitList(search) {
		if !filepath.IsAbs(d) {
			continue
		}
		path := filepath.Join(d, name)
		switch err := executable(path); err {
		case nil:
			return path, nil
		case unix.EACCES: // as a shell, say so if there is no other
			failure = &fs.PathError{Op: "execute", Path: path, Err: err}
		}
	}
	return "", &exec.Error{Name: name, Err: failure}
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return errnoOf(err)
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	if !info.Mode().IsRegular() {
		return unix.EACCES
	}
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

// variable finds the value of an environment variable; the last one counts.
func variable(env []string, name string) (value string, ok bool) {
	for _, entry := range env {
		if v, found := strings.CutPrefix(entry, name+"="); found {
			value, ok = v, true
		}
	}
	return value, ok
}
