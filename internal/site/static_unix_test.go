//go:build unix

package site

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"syscall"
	"testing"
)

// A named pipe without a writer must not hold the request for ever.
func TestStaticNamedPipe(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Skip(err)
	}
	files, err := Static(root)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	w := httptest.NewRecorder()
	files.ServeHTTP(w, httptest.NewRequest("GET", "/pipe", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("status %d", w.Code)
	}
}
