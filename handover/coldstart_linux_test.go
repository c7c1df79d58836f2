package handover

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/internal/leak"
)

// refusesToStart asserts that a cold start fails, says why, and leaves the
// directory as it was.
func refusesToStart(t *testing.T, cfg Config, want string) {
	t.Helper()
	dir := filepath.Dir(cfg.Socket)
	before := names(dir)
	g, err := Start(testContext(t), cfg)
	if err == nil {
		g.Close()
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	if after := names(dir); after != before {
		t.Errorf("the directory had %s, and now has %s", before, after)
	}
}

func names(dir string) string {
	var all []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestUnusablePaths(t *testing.T) {
	leak.Check(t)
	dir := filepath.Dir(testConfig(t).Socket)
	for _, tt := range []struct{ name, path, want string }{
		{"none", "", "no control socket path"},
		{"too long", filepath.Join(dir, strings.Repeat("x", maxPath-len(dir))), "at most 107"},
		{"far too long", "/" + strings.Repeat("x", 5000), "at most 107"},
		{"abstract", "@handover", "abstract"},
		{"no directory", filepath.Join(dir, "none", "app.sock"), "create " + filepath.Join(dir, "none") + " first"},
		{"directory is a file", "/dev/null/app.sock", "directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refusesToStart(t, Config{Socket: tt.path}, tt.want)
			if _, err := (Operator{Socket: tt.path}).Status(testContext(t)); err == nil {
				t.Error("status of nothing")
			}
		})
	}
	longest := filepath.Join(dir, strings.Repeat("x", maxPath-len(dir)-1))
	if len(longest) != maxPath {
		t.Fatal(len(longest))
	}
	g := begin(t, Config{Socket: longest})
	ready(t, g)
	if _, err := (Operator{Socket: longest}).Status(testContext(t)); err != nil {
		t.Errorf("status at the longest path: %v", err)
	}
}

func TestWorldWritableDirectory(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	dir := filepath.Dir(cfg.Socket)
	chmod := func(m fs.FileMode) {
		t.Helper()
		if err := os.Chmod(dir, m); err != nil {
			t.Fatal(err)
		}
	}
	chmod(0o777)
	refusesToStart(t, cfg, "not sticky")
	chmod(0o777 | fs.ModeSticky)
	g := begin(t, cfg)
	ready(t, g)
	chmod(0o777)
	refusesToStart(t, Config{Socket: cfg.Socket, Mode: TakeOverOnly}, "not sticky")
	if _, err := (Operator{Socket: cfg.Socket}).Status(testContext(t)); err == nil {
		t.Error("an operator trusts a socket that anybody could have replaced")
	}
	chmod(0o700)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDirectoryThatIsNotWritable(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	if err := os.Chmod(filepath.Dir(cfg.Socket), 0o755); err != nil {
		t.Fatal(err)
	}
	c := startChildAs(t, cfg.Socket, asUser(t, 12345))
	if got := c.ask("start"); !strings.Contains(got, "permission denied") || !strings.Contains(got, cfg.Socket) {
		t.Errorf("cold start in a directory of somebody else: %s", got)
	}
	c.kill()
	if got := names(filepath.Dir(cfg.Socket)); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// What is at the path and is no stale socket of ours stays there.
func TestPathThatIsTaken(t *testing.T) {
	listenAt := func(network string, alive bool) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			var c interface{ Close() error }
			if network == "unixgram" {
				pc, err := net.ListenPacket(network, path)
				if err != nil {
					t.Fatal(err)
				}
				c = pc
			} else {
				ln, err := net.Listen(network, path)
				if err != nil {
					t.Fatal(err)
				}
				ln.(*net.UnixListener).SetUnlinkOnClose(false)
				c = ln
			}
			if !alive {
				c.Close()
				if network == "unixgram" { // package net has removed it
					fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
					if err == nil {
						err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
						unix.Close(fd)
					}
					if err != nil && !errors.Is(err, unix.EADDRINUSE) {
						t.Fatal(err)
					}
				}
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}
	for _, tt := range []struct {
		name  string
		put   func(t *testing.T, path string)
		want  string // "": starts
		modes []Mode
	}{
		{"a regular file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is no socket", []Mode{TakeOverOrStart, StartOnly}},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is no socket", []Mode{TakeOverOrStart, StartOnly}},
		{"a dangling symlink", func(t *testing.T, path string) {
			if err := os.Symlink("nowhere", path); err != nil {
				t.Fatal(err)
			}
		}, "is no socket", []Mode{TakeOverOrStart, StartOnly}},
		{"a live stream socket", listenAt("unix", true), "another kind", []Mode{TakeOverOrStart, StartOnly, TakeOverOnly}},
		{"a live datagram socket", listenAt("unixgram", true), "another kind", []Mode{TakeOverOrStart, StartOnly, TakeOverOnly}},
		{"a stale stream socket", listenAt("unix", false), "", []Mode{StartOnly}},
		{"a stale datagram socket", listenAt("unixgram", false), "", []Mode{StartOnly}},
		{"a stale socket", listenAt("unixpacket", false), "", []Mode{TakeOverOrStart}},
		{"a symlink for the lock", func(t *testing.T, path string) {
			if err := os.Symlink("elsewhere", path+".lock"); err != nil {
				t.Fatal(err)
			}
		}, ".lock", []Mode{TakeOverOrStart, StartOnly}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			for _, mode := range tt.modes {
				cfg := testConfig(t)
				cfg.Mode = mode
				tt.put(t, cfg.Socket)
				if tt.want != "" {
					refusesToStart(t, cfg, tt.want)
					continue
				}
				g := begin(t, cfg)
				ready(t, g)
				if err := g.Close(); err != nil {
					t.Fatal(err)
				}
				if left := names(filepath.Dir(cfg.Socket)); left != "" {
					t.Errorf("left behind: %s", left)
				}
			}
		})
	}
}

func TestRelativePath(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	t.Chdir(filepath.Dir(cfg.Socket))
	cfg.Socket = "app.sock"
	chain(t, cfg, 3, func(g *Generation) { listen(t, g, "app", "tcp", "127.0.0.1:0") }, func(*Generation) {})
	if left := names("."); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestModeOfTheControlSocket(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	// Nothing else runs here that could make a file meanwhile.
	old := syscall.Umask(0)
	g := begin(t, cfg)
	syscall.Umask(old)
	ready(t, g)
	for _, name := range []string{cfg.Socket, cfg.Socket + ".lock"} {
		st, err := os.Lstat(name)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
		}
	}
}

// The path belongs to somebody else by now: it stays.
func TestReplacedPathsStay(t *testing.T) {
	leak.Check(t)
	cfg := testConfig(t)
	app := filepath.Join(filepath.Dir(cfg.Socket), "app")
	g := begin(t, cfg)
	listen(t, g, "app", "unix", app)
	ready(t, g)
	for _, path := range []string{cfg.Socket, app} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{cfg.Socket, app} {
		if c, err := net.Dial("unixpacket", path); err != nil {
			t.Errorf("somebody else's socket: %v", err)
		} else {
			c.Close()
		}
	}
}

// Cold starts at once, in processes of their own: one is generation 1, and
// all others take over from it or are told to try again.
func TestColdStartsAtOnce(t *testing.T) {
	for _, n := range []int{2, 20} {
		t.Run("take over or start", func(t *testing.T) {
			cfg := testConfig(t)
			first, later := 0, 0
			for _, got := range startAtOnce(t, cfg.Socket, n) {
				switch {
				case got == "ok 1":
					first++
				case strings.HasPrefix(got, "ok "), strings.Contains(got, "refused (busy)"), strings.Contains(got, "refused (not_ready)"):
					later++
				default:
					t.Errorf("a start failed: %s", got)
				}
			}
			if first != 1 || first+later != n {
				t.Errorf("%d first generations, %d others of %d", first, later, n)
			}
		})
		t.Run("start only", func(t *testing.T) {
			cfg := testConfig(t)
			won, owned := 0, 0
			for _, got := range startAtOnce(t, cfg.Socket, n, "mode start") {
				switch {
				case got == "ok 1":
					won++
				case strings.Contains(got, ErrOwned.Error()):
					owned++
				default:
					t.Errorf("a start failed: %s", got)
				}
			}
			if won != 1 || won+owned != n {
				t.Errorf("%d won, %d were told that it is owned, of %d", won, owned, n)
			}
		})
	}
}

// startAtOnce tells what n children answered to start.
func startAtOnce(t *testing.T, socket string, n int, before ...string) []string {
	t.Helper()
	all := make([]*child, n)
	for i := range all {
		all[i] = startChild(t, socket)
		all[i].do(before...)
	}
	said := make([]string, n)
	var wg sync.WaitGroup
	for i, c := range all {
		c.tell("start")
		wg.Go(func() {
			line, err := c.out.ReadString('\n')
			if err != nil {
				line = err.Error()
			}
			said[i] = strings.TrimSpace(line)
		})
	}
	wg.Wait()
	for _, c := range all {
		c.kill()
	}
	// Dead or not, they are no obstacle.
	g := begin(t, Config{Socket: socket})
	if g.Number() != 1 {
		t.Errorf("generation %d after all have died", g.Number())
	}
	g.Close()
	return said
}
