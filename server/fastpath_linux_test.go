package server

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
)

// A watchedFile counts what is read through Read. What the kernel sends from
// the descriptor by itself does not come by here.
type watchedFile struct {
	f    *os.File
	read atomic.Int64
}

func (w *watchedFile) Read(b []byte) (int, error) {
	n, err := w.f.Read(b)
	w.read.Add(int64(n))
	return n, err
}

func (w *watchedFile) SyscallConn() (syscall.RawConn, error) { return w.f.SyscallConn() }

// The same file is sent by a bare http.Server, to see that the test sees
// sendfile at all, and by a Server over TCP and over a Unix socket.
func TestFilesAreSentByTheKernel(t *testing.T) {
	const size = 1 << 20
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	reads := make(chan int64, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(name)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		wf := &watchedFile{f: f}
		w.Header().Set("Content-Length", "1048576")
		if n, err := w.(io.ReaderFrom).ReadFrom(wf); n != size || err != nil {
			t.Errorf("sent %d bytes, %v", n, err)
		}
		reads <- wf.read.Load()
	})
	bare, ours := &http.Server{Handler: h}, &Server{Server: http.Server{Handler: h}}
	defer bare.Close()
	defer ours.Close()
	for name, srv := range map[string]interface{ Serve(net.Listener) error }{"bare": bare, "server": ours} {
		t.Run(name, func(t *testing.T) {
			ln := listenTCP(t)
			go srv.Serve(ln)
			c := dialTCP(t, ln.Addr().String())
			if _, body := c.get("/"); len(body) != size {
				t.Errorf("got %d bytes", len(body))
			}
			// net/http reads the first 512 bytes itself.
			if n := <-reads; n > 512 {
				t.Errorf("%d bytes were copied through the process", n)
			}
		})
	}
}

// What a handler gets from Hijack can do what the bare connection can.
func TestHijackedTCPConnection(t *testing.T) {
	srv := &Server{}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if _, ok := c.(interface {
			io.ReaderFrom
			io.WriterTo
			syscall.Conn
			CloseRead() error
			CloseWrite() error
			SetNoDelay(bool) error
		}); !ok {
			t.Errorf("a method of *net.TCPConn is missing in %T", c)
		}
		if _, ok := c.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn); !ok {
			t.Errorf("NetConn is no *net.TCPConn")
		}
	})
	ln := listenTCP(t)
	serve(t, srv, ln)
	c := dialTCP(t, ln.Addr().String())
	c.sendGet("/")
	c.wantEOF()
	eventually(t, "the connection is gone", func() bool { return srv.Counts() == Counts{} })
	wantReport(t, srv.Stop(t.Context()), Report{})
}
