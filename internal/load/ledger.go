package load

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"sync"
)

// pageBits is how many requests of a worker one page of a Ledger covers.
const pageBits = 1 << 12

// Ledger is a handler that counts how often each request has arrived, so that
// a test can show that none was executed twice. It answers as /echo does: with
// the body and the X-Request-Id of the request.
//
// It knows requests by the ids of this package. Runs that share a Ledger need
// different seeds, which they have unless Config.Seed sets one. It needs about
// a bit of memory for each request. The zero value is ready.
type Ledger struct {
	mu     sync.Mutex
	report LedgerReport
	pages  map[requestID]*[pageBits / 64]uint64 // by the id of their first bit
}

// LedgerReport is what has arrived at a Ledger.
type LedgerReport struct {
	Seen            int64    `json:"seen"`             // different ids
	Duplicated      int64    `json:"duplicated"`       // requests whose id had arrived before
	FirstDuplicates []string `json:"first_duplicates"` // the ids of the first of these
	Foreign         int64    `json:"foreign"`          // requests without an id of this package; not checked
}

// Report returns what has arrived so far.
func (l *Ledger) Report() LedgerReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.report
	r.FirstDuplicates = append([]string(nil), r.FirstDuplicates...)
	return r
}

// ServeHTTP counts the request as soon as it is here, whatever becomes of it.
func (l *Ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(requestIDHeader)
	l.enter(id)
	if id != "" {
		w.Header().Set(requestIDHeader, id)
	}
	w.Header().Set("Content-Type", contentType)
	if r.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	}
	// A long body is sent back while it arrives. HTTP/1.x has to be told so;
	// where that is not supported, neither is it needed.
	var begin bytes.Buffer
	n, err := io.Copy(&begin, io.LimitReader(r.Body, inlineBytes))
	if err == nil && n == inlineBytes {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, err = io.Copy(w, io.MultiReader(&begin, r.Body))
	} else if err == nil {
		_, err = begin.WriteTo(w)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // 200 may have been said already
	}
}

func (l *Ledger) enter(text string) {
	id, known := parseRequestID(text)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !known {
		l.report.Foreign++
		return
	}
	bit := id.seq % pageBits
	id.seq -= bit
	page := l.pages[id]
	if page == nil {
		if l.pages == nil {
			l.pages = make(map[requestID]*[pageBits / 64]uint64)
		}
		page = new([pageBits / 64]uint64)
		l.pages[id] = page
	}
	word, mask := &page[bit/64], uint64(1)<<(bit%64)
	if *word&mask == 0 {
		*word |= mask
		l.report.Seen++
		return
	}
	l.report.Duplicated++
	if len(l.report.FirstDuplicates) < maxSamples {
		l.report.FirstDuplicates = append(l.report.FirstDuplicates, text)
	}
}
