package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"
)

var contenders = []struct {
	name string
	make func(http.Handler) serverCloser
}{
	{"bare", func(h http.Handler) serverCloser { return &http.Server{Handler: h} }},
	{"server", func(h http.Handler) serverCloser { return &Server{Server: http.Server{Handler: h}} }},
	{"movable", func(h http.Handler) serverCloser { return &moverServer{Server{Server: http.Server{Handler: h}}} }},
}

// A moverServer's connections could be moved, if there were somebody to take them.
type moverServer struct{ Server }

func (s *moverServer) Serve(ln net.Listener) error { return s.Server.Serve(stayListener{ln}) }

type stayListener struct{ net.Listener }

func (stayListener) Movable() bool { return false }

func (stayListener) MoveConn(context.Context, net.Conn, []byte, []byte) error { return ErrNotMovable }

type serverCloser interface {
	Serve(net.Listener) error
	Close() error
}

// benchConn makes requests at the least expense, so that the server's counts.
type benchConn struct {
	net.Conn
	br *bufio.Reader
}

var benchRequest = []byte("GET / HTTP/1.1\r\nHost: test\r\n\r\n")

func (c *benchConn) get() error {
	if _, err := c.Write(benchRequest); err != nil {
		return err
	}
	for {
		line, err := c.br.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err = c.br.Discard(len("hello"))
			return err
		}
	}
}

func benchDial(b *testing.B, ln net.Listener) *benchConn {
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	return &benchConn{c, bufio.NewReaderSize(c, 512)}
}

func benchServe(b *testing.B, srv serverCloser) net.Listener {
	ln := listenTCP(b)
	served := serve(b, srv, ln)
	b.Cleanup(func() {
		srv.Close()
		served()
	})
	return ln
}

func hello5(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }

// BenchmarkRequest is one small request after the other on kept connections.
func BenchmarkRequest(b *testing.B) {
	for _, tt := range contenders {
		b.Run(tt.name, func(b *testing.B) {
			ln := benchServe(b, tt.make(http.HandlerFunc(hello5)))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				c := benchDial(b, ln)
				defer c.Close()
				for pb.Next() {
					if err := c.get(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkConnection is a new connection for each request.
func BenchmarkConnection(b *testing.B) {
	for _, tt := range contenders {
		b.Run(tt.name, func(b *testing.B) {
			ln := benchServe(b, tt.make(http.HandlerFunc(hello5)))
			b.ReportAllocs()
			for b.Loop() {
				c := benchDial(b, ln)
				if err := c.get(); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

// BenchmarkIdleMemory reports what an idle connection costs, both ends of it.
func BenchmarkIdleMemory(b *testing.B) {
	const n = 2000
	for _, tt := range contenders {
		b.Run(tt.name, func(b *testing.B) {
			var bytes uint64
			for b.Loop() {
				ln := benchServe(b, tt.make(http.HandlerFunc(hello5)))
				before := inUse()
				conns := make([]*benchConn, n)
				for i := range conns {
					conns[i] = benchDial(b, ln)
					if err := conns[i].get(); err != nil {
						b.Fatal(err)
					}
				}
				bytes += inUse() - before
				for _, c := range conns {
					c.Close()
				}
			}
			b.ReportMetric(float64(bytes)/float64(b.N)/n, "B/conn")
		})
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// BenchmarkCounts is a look at ten thousand connections.
func BenchmarkCounts(b *testing.B) {
	var r registry
	for range 10_000 {
		near, far := net.Pipe()
		defer near.Close()
		if _, ok := wrap(&r, far, false); !ok {
			b.Fatal("refused")
		}
	}
	for b.Loop() {
		if r.counts().New != 10_000 {
			b.Fatal("wrong count")
		}
	}
}

// BenchmarkAdded is what a Server does in addition to net/http, alone, so that
// it can be seen in spite of all that the network does to the others.
func BenchmarkAdded(b *testing.B) {
	near, far := net.Pipe()
	defer near.Close()
	f := &front{server: new(Server), next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	reg := &f.server.reg
	b.Run("request", func(b *testing.B) {
		c, _ := wrap(reg, far, false)
		e := reg.lookup(c)
		head := make([]byte, 40)
		defer reg.remove(e)
		for b.Loop() {
			e.setReadDeadline(far, time.Time{})
			e.reading(fullRead)
			e.took(head)
			e.setReadDeadline(far, time.Time{})
			f.connState(c, http.StateActive)
			f.ServeHTTP(nil, nil)
			f.connState(c, http.StateIdle)
		}
	})
	b.Run("connection", func(b *testing.B) {
		for b.Loop() {
			c, _ := wrap(reg, far, false)
			f.connState(c, http.StateNew)
			f.connState(c, http.StateClosed)
		}
	})
}
