package compat

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A frozen peer has nothing in common with what it is to test.
func TestFrozenPeersAreTheirOwn(t *testing.T) {
	files, err := filepath.Glob("v*/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no frozen peers: %v", err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil || strings.Contains(strings.Split(path, "/")[0], ".") && path != "golang.org/x/sys/unix" {
				t.Errorf("%s imports %s", name, imp.Path.Value)
			}
		}
	}
}
