package site

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStatic(t *testing.T) {
	top := t.TempDir()
	root := filepath.Join(top, "root")
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("secret", "secret")
	write("root/file.txt", "a file")
	write("root/sub/index.html", "an index")
	write("root/list/one", "1")
	for link, to := range map[string]string{"out": "../secret", "far": "/etc/hostname", "in": "file.txt", "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Skip("no symbolic links here: ", err)
		}
	}
	files, err := Static(root)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	c, url := serve(t, Header(func() uint64 { return 7 }, files))
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/file.txt", 200, "a file"},
		{"/in", 200, "a file"},
		{"/sub/", 200, "an index"},
		{"/list/", 200, `<a href="one">one</a>`},
		{"/", 200, "file.txt"},
		{"/missing", 404, ""},
		{"/file.txt/x", 404, ""},
		{"/out", 404, ""},
		{"/far", 404, ""},
		{"/loop", 404, ""},
		{"/../secret", 404, ""},
		{"/%2e%2e/secret", 404, ""},
		{"/a%00b", 404, ""},
		{"/" + strings.Repeat("x", 5000), 404, ""},
	} {
		res, body := do(t, c, "GET", url+tt.path, "")
		if res.StatusCode != tt.status || !strings.Contains(body, tt.body) || strings.Contains(body, "secret") {
			t.Errorf("%.40s: %d %.80q, want %d %q", tt.path, res.StatusCode, body, tt.status, tt.body)
		}
		if res.Header.Get(GenerationHeader) != "7" {
			t.Errorf("%.40s: no generation", tt.path)
		}
	}
	if res, body := do(t, c, "GET", url+"/file.txt", "", "Range", "bytes=2-"); res.StatusCode != 206 || body != "file" {
		t.Errorf("range: %d %q", res.StatusCode, body)
	}
}

func TestStaticErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{file: "not a directory", file + "-no": "does not exist", "": "does not exist"} {
		if f, err := Static(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", path, err, want)
			if err == nil {
				f.Close()
			}
		}
	}
}
