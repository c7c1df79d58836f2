package site

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/handoverd/handoverd/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// serve serves h and returns a client and the base URL.
func serve(t testing.TB, h http.Handler) (*http.Client, string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Client(), s.URL
}

// demo serves the demonstration site as generation 7.
func demo(t testing.TB, change func(*Config)) (*http.Client, string) {
	t.Helper()
	cfg := Config{Generation: func() uint64 { return 7 }, Program: "demo", Build: "abc"}
	if change != nil {
		change(&cfg)
	}
	return serve(t, New(cfg))
}

// do makes a request and returns the answer with its body.
func do(t testing.TB, c *http.Client, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}
