package load

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// serveH2C serves h with net/http, HTTP/2 without TLS only.
func serveH2C(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// h2peer is the server's end of an HTTP/2 connection. It keeps to the rules,
// as far as its functions do.
type h2peer struct {
	*http2.Framer
	conn     *net.TCPConn
	number   int // of the connection, from 1
	settings []http2.Setting
	// heard is called for each frame, before anything else is done with it. It
	// returns false to have the connection closed. May be nil.
	heard func(f http2.Frame) bool
	// keepWindows has the peer grant nothing by itself.
	keepWindows bool

	open  map[uint32]*h2request
	whole int
	block bytes.Buffer
	hpack *hpack.Encoder
}

// h2request is a request as it has come.
type h2request struct {
	stream uint32
	id     string
	body   []byte
}

// serveH2 answers HTTP/2 requests. begin may be nil. answer is called with the
// number of the request on its connection, from 1, when all of it is there. It
// returns false to have the connection closed.
func serveH2(t testing.TB, begin func(p *h2peer), answer func(p *h2peer, n int, r *h2request) bool) string {
	t.Helper()
	var conns atomic.Int64
	return serveConns(t, func(c *net.TCPConn) {
		p := &h2peer{Framer: http2.NewFramer(c, c), conn: c, number: int(conns.Add(1)), open: make(map[uint32]*h2request)}
		p.AllowIllegalWrites = true
		p.ReadMetaHeaders = hpack.NewDecoder(tableBytes, nil)
		p.hpack = hpack.NewEncoder(&p.block)
		if begin != nil {
			begin(p)
		}
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
			return
		}
		p.WriteSettings(p.settings...)
		for p.serveFrame(answer) {
		}
		c.CloseWrite()
		io.Copy(io.Discard, c) // what is unread would make the end a reset
	})
}

func (p *h2peer) serveFrame(answer func(p *h2peer, n int, r *h2request) bool) bool {
	f, err := p.ReadFrame()
	if err != nil || p.heard != nil && !p.heard(f) {
		return false
	}
	var r *h2request
	ended := false
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			p.WriteSettingsAck()
		}
	case *http2.MetaHeadersFrame:
		r = &h2request{stream: f.StreamID}
		for _, h := range f.RegularFields() {
			if h.Name == "x-request-id" {
				r.id = h.Value
			}
		}
		p.open[r.stream] = r
		ended = f.StreamEnded()
	case *http2.DataFrame:
		if r = p.open[f.StreamID]; r == nil {
			return true
		}
		r.body = append(r.body, f.Data()...)
		if n := f.Length; n > 0 && !p.keepWindows {
			p.WriteWindowUpdate(0, n)
			p.WriteWindowUpdate(r.stream, n)
		}
		ended = f.StreamEnded()
	case *http2.RSTStreamFrame:
		delete(p.open, f.StreamID)
	}
	if !ended {
		return true
	}
	delete(p.open, r.stream)
	p.whole++
	return answer(p, p.whole, r)
}

// head writes a header; fields are names and values.
func (p *h2peer) head(stream uint32, end bool, fields ...string) {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.hpack.WriteField(hpackField(fields[i], fields[i+1]))
	}
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.block.Bytes(), EndHeaders: true, EndStream: end})
}

func hpackField(name, value string) hpack.HeaderField {
	return hpack.HeaderField{Name: name, Value: value}
}

// good writes a correct answer.
func (p *h2peer) good(r *h2request) {
	p.head(r.stream, false, ":status", "200", "x-request-id", r.id, "handoverd-generation", "1",
		"content-length", strconv.Itoa(len(r.body)))
	p.WriteData(r.stream, true, r.body)
}
