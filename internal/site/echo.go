package site

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
)

const (
	requestIDHeader = "X-Request-Id"
	maxEcho         = 256 << 20
	// smallEcho is the longest body that is read whole before it is answered.
	smallEcho = 64 << 10
)

var echoBuffers = sync.Pool{New: func() any {
	b := make([]byte, smallEcho+1)
	return &b
}}

// echo answers with the body of the request. A body beyond smallEcho is sent
// back while it arrives, so its client has to read while it writes.
func (s *site) echo(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if id := r.Header.Get(requestIDHeader); id != "" {
		h.Set(requestIDHeader, id)
	}
	if r.ContentLength > maxEcho {
		plain(w, http.StatusRequestEntityTooLarge, tooLong)
		return
	}
	buf := echoBuffers.Get().(*[]byte)
	defer echoBuffers.Put(buf)
	n, whole, err := readSome(r.Body, *buf)
	if err != nil {
		plain(w, http.StatusBadRequest, fmt.Sprintf("the body ended too early: %v\n", err))
		return
	}
	contentType := r.Header.Get("Content-Type")
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'") // the body is a stranger's
	h.Set("Cache-Control", "no-store")
	if whole {
		h.Set("Content-Length", strconv.Itoa(n))
		w.Write((*buf)[:n])
		return
	}
	streamEcho(w, r, (*buf)[:n])
}

// readSome reads until buf is full or the body has ended, which whole tells.
func readSome(body io.Reader, buf []byte) (n int, whole bool, err error) {
	for n < len(buf) {
		m, err := body.Read(buf[n:])
		n += m
		if errors.Is(err, io.EOF) {
			return n, true, nil
		}
		if err != nil { // io.ErrUnexpectedEOF too: the client has not sent all
			return n, false, err
		}
	}
	return n, false, nil
}

var tooLong = fmt.Sprintf("the body is longer than %d bytes, send less\n", maxEcho)

// streamEcho answers with begin and the rest of the body.
func streamEcho(w http.ResponseWriter, r *http.Request, begin []byte) {
	// HTTP/1.x needs to be told that the body is read on after the answer has
	// begun. Where that is not supported, neither is it needed.
	_ = http.NewResponseController(w).EnableFullDuplex()
	if r.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	}
	body := http.MaxBytesReader(w, r.Body, maxEcho-int64(len(begin)))
	if _, err := w.Write(begin); err != nil {
		return
	}
	if _, err := io.Copy(w, body); err != nil {
		// 200 has been said already: the client must see that this is not all.
		panic(http.ErrAbortHandler)
	}
}
