package load

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestRequestIDs(t *testing.T) {
	for _, id := range []requestID{{0, 1, 2}, {12, 345, 1<<64 - 1}, {1<<64 - 1, 1<<64 - 1, 0}} {
		text := string(id.append(nil))
		if back, ok := parseRequestID(text); back != id || !ok {
			t.Errorf("%+v is %q is %+v", id, text, back)
		}
	}
	for _, text := range []string{"", "w", "w1-2", "w1-2-3", "1-2-0000000000000003", "w1-02-0000000000000003", "ww1-2-0000000000000003",
		"w1-2-000000000000000A", "w1--0000000000000003", "w1-2-0000000000000003-", "w1-2-00000000000000003", "w99999999999999999999-2-0000000000000003"} {
		if id, ok := parseRequestID(text); ok {
			t.Errorf("%q is %+v", text, id)
		}
	}
}

func TestLedgerCounts(t *testing.T) {
	var l Ledger
	enter := func(id string) {
		r := httptest.NewRequest("POST", "/echo", strings.NewReader("body"))
		r.Header.Set("X-Request-Id", id)
		w := httptest.NewRecorder()
		l.ServeHTTP(w, r)
		if w.Code != 200 || w.Body.String() != "body" || w.Header().Get("X-Request-Id") != id {
			t.Errorf("answer to %q: %v", id, w)
		}
	}
	id := func(worker, seq, run uint64) string { return string(requestID{worker, seq, run}.append(nil)) }
	// Neighbors in every part of the id are different requests.
	for run := range uint64(2) {
		for worker := range uint64(2) {
			for _, seq := range []uint64{0, 1, 63, 64, pageBits - 1, pageBits, pageBits + 1, 1 << 50} {
				enter(id(worker, seq, run))
			}
		}
	}
	enter("")
	enter("somebody's")
	if r := l.Report(); r.Seen != 32 || r.Duplicated != 0 || r.Foreign != 2 || len(r.FirstDuplicates) != 0 {
		t.Errorf("%+v", r)
	}
	enter(id(1, 64, 1))
	enter(id(0, pageBits, 0))
	enter(id(0, pageBits, 0))
	want := []string{id(1, 64, 1), id(0, pageBits, 0), id(0, pageBits, 0)}
	if r := l.Report(); r.Seen != 32 || r.Duplicated != 3 || !slices.Equal(r.FirstDuplicates, want) {
		t.Errorf("%+v", r)
	}
}

func TestLedgerStaysSmall(t *testing.T) {
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const workers, each = 50, 20_000
	var l Ledger
	before := heap()
	var b []byte
	for worker := range uint64(workers) {
		for seq := range uint64(each) {
			b = requestID{worker, seq + 1, 7}.append(b[:0])
			l.enter(string(b))
		}
	}
	if grown := int64(heap() - before); grown > 1<<20 {
		t.Errorf("%d bytes for %d requests", grown, workers*each)
	}
	if r := l.Report(); r.Seen != workers*each || r.Duplicated != 0 {
		t.Errorf("%+v", r)
	}
}

// What only the ledger finds: all answers are right, and a request was
// executed twice.
func TestLedgerFindsRequestsExecutedTwice(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		for _, twice := range []bool{false, true} {
			var ledger Ledger
			var mu sync.Mutex
			requests := 0
			serve := func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				requests++
				again := twice && requests == 50
				mu.Unlock()
				if again {
					first := r.Clone(r.Context())
					first.Body = http.NoBody
					ledger.ServeHTTP(httptest.NewRecorder(), first)
				}
				ledger.ServeHTTP(w, r)
			}
			cfg := Config{Workers: 2, KeepAlive: true, PostRatio: .5, HTTP2: h2, MaxRequests: 200}
			if h2 {
				cfg.Address = serveH2C(t, serve)
			} else {
				cfg.Address = serveHTTP(t, serve)
				cfg.PipelineRatio = .5
			}
			res := run(t, cfg)
			if err := res.Err(); err != nil {
				t.Fatal(err)
			}
			r := ledger.Report()
			if (r.Duplicated == 1) != twice || len(r.FirstDuplicates) != int(r.Duplicated) || r.Seen != res.Requests {
				t.Errorf("HTTP/2 %v, twice %v: %+v of\n%v", h2, twice, r, res)
			}
		}
	}
}

// Runs that share a ledger do not meet, and a proxy may stand before it.
func TestLedgerOfSeveralRunsBehindAProxy(t *testing.T) {
	var ledger Ledger
	backend := httptest.NewServer(&ledger)
	defer backend.Close()
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: transport}
	addr, addr2 := serveHTTP(t, proxy.ServeHTTP), serveH2C(t, proxy.ServeHTTP)
	var all Result
	for _, cfg := range []Config{
		{Address: addr, KeepAlive: true, PipelineRatio: .5, CutRatio: .5},
		{Address: addr},
		{Address: addr2, HTTP2: true, KeepAlive: true},
	} {
		cfg.Workers, cfg.PostRatio, cfg.BodyMax, cfg.MaxRequests = 2, .5, 40_000, 100
		all.Merge(run(t, cfg))
	}
	if err := all.Err(); err != nil {
		t.Fatal(err)
	}
	if r := ledger.Report(); r.Seen != all.Requests || r.Duplicated != 0 || r.Foreign != 0 {
		t.Errorf("%+v of\n%v", r, all)
	}
}

// A body that does not come whole is not answered as if it had.
func TestLedgerBodyCutOff(t *testing.T) {
	for _, n := range []int{10, inlineBytes, inlineBytes + 10} {
		addr := serveHTTP(t, new(Ledger).ServeHTTP)
		c, err := new(Config).dialers()[0].Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", n+1, make([]byte, n))
		c.(interface{ CloseWrite() error }).CloseWrite()
		answer, _ := io.ReadAll(c)
		c.Close()
		if _, body, found := strings.Cut(string(answer), "\r\n\r\n"); found && len(body) > n {
			t.Errorf("%d bytes of %d were answered with %d", n, n+1, len(body))
		}
	}
}
