package load

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReadHeadErrors(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\n"
	tests := map[string]string{
		"version":            "HTTP/2.0 200 OK\r\n\r\n",
		"short":              "HTTP/1.1 20\r\n\r\n",
		"status":             "HTTP/1.1 2x0 OK\r\n\r\n",
		"four digits":        "HTTP/1.1 2000\r\n\r\n",
		"no colon":           ok + "abc\r\n\r\n",
		"space before colon": ok + "Content-Length : 1\r\n\r\n",
		"negative length":    ok + "Content-Length: -1\r\n\r\n",
		"two lengths":        ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"encoding":           ok + "Transfer-Encoding: gzip\r\n\r\n",
		"switch":             "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"endless interim":    strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 20),
		"endless headers":    ok + strings.Repeat("a: b\r\n", 1000),
		"long line":          ok + "a: " + strings.Repeat("b", 10_000),
	}
	for name, text := range tests {
		var a answer
		if err := a.readHead(bufio.NewReader(strings.NewReader(text))); !errors.Is(err, errMalformed) {
			t.Errorf("%s: error %v, want malformed", name, err)
		}
	}
	var a answer
	if err := a.readHead(bufio.NewReader(strings.NewReader(ok + "a: b\r\n"))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("end within the header: %v", err)
	}
}

// Nothing that a server sends may cause a panic, and a body that is accepted
// is the one that was sent.
func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc")
	f.Add("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc")
	f.Add("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\n\nabc", "abc")
	f.Add("HTTP/1.1 503 No\r\nContent-Length: 99999999\r\n\r\n", "")
	f.Fuzz(func(t *testing.T, text, body string) {
		br := bufio.NewReader(strings.NewReader(text))
		var a answer
		if err := a.readHead(br); err != nil {
			return
		}
		if a.status != 200 {
			_ = a.skipBody(br) // any error will do
			return
		}
		if a.matchBody(br, []byte(body)) == nil && a.length != lengthChunks && !strings.Contains(text, body) {
			t.Errorf("found %q in %q", body, text)
		}
	})
}
