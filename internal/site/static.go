package site

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// Files serves the files of a directory.
type Files struct {
	root    *os.Root
	handler http.Handler
}

// Static serves the files below root with http.FileServer: index.html for a
// directory that has one, else a list. Symbolic links that lead out of root
// are not followed. The caller closes the Files when no request uses it any
// more.
func Static(root string) (*Files, error) {
	info, err := os.Stat(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the directory to serve, %q, does not exist: create it or name another one", root)
	case err != nil:
		return nil, fmt.Errorf("serve directory: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("%q is not a directory: name the directory to serve", root)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("serve directory: %w", err)
	}
	return &Files{root: r, handler: http.FileServer(rootFS{r})}, nil
}

func (f *Files) ServeHTTP(w http.ResponseWriter, r *http.Request) { f.handler.ServeHTTP(w, r) }

// Close releases the directory.
func (f *Files) Close() error { return f.root.Close() }

// rootFS is an http.FileSystem that hands out *os.File, which net/http can
// send without copying.
type rootFS struct{ root *os.Root }

func (d rootFS) Open(name string) (http.File, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		name = "."
	}
	local, err := filepath.Localize(name)
	if err != nil {
		return nil, fs.ErrNotExist
	}
	// Opening a named pipe would wait for its writer.
	info, err := d.root.Stat(local)
	if err != nil {
		return nil, notFound(err)
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return nil, fs.ErrNotExist
	}
	f, err := d.root.Open(local)
	if err != nil {
		return nil, notFound(err)
	}
	return f, nil
}

// notFound turns errors that are about the name into fs.ErrNotExist: a file
// where a directory should be, a loop of links, and os.Root's refusal of a
// path that leads out, which alone has no errno.
func notFound(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno == syscall.ENOTDIR || errno == syscall.ELOOP || errno == syscall.ENAMETOOLONG {
		return fs.ErrNotExist
	}
	return err
}
