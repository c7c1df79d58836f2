package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

var (
	errMalformed = errors.New("not an HTTP answer")
	errWrongBody = errors.New("not the body that was sent")
)

const (
	maxInterim   = 10      // 1xx answers before the final one
	maxHeaders   = 200     // lines of a header
	maxSkip      = 1 << 20 // bytes of the body of an answer that is not 200
	lengthByEOF  = -1
	lengthChunks = -2
)

// answer is the head of an answer. Its buffers are used again.
type answer struct {
	status int
	length int64 // of the body, or lengthByEOF, lengthChunks
	close  bool  // it said that no request may follow on this connection
	spent  bool  // this side cannot use the connection again
	id     []byte
	ids    int // how many id headers there were
	gen    string
}

// readHead reads up to the empty line, past interim answers.
func (a *answer) readHead(br *bufio.Reader) error {
	for range maxInterim {
		if err := a.readOneHead(br); err != nil {
			return err
		}
		if a.status >= 200 {
			return nil
		}
		if a.status == 101 {
			return fmt.Errorf("%w: switches protocols", errMalformed)
		}
	}
	return fmt.Errorf("%w: more than %d interim answers", errMalformed, maxInterim)
}

func (a *answer) readOneHead(br *bufio.Reader) error {
	gen := a.gen // kept to save the conversion as long as it stays the same
	*a = answer{length: lengthByEOF, id: a.id[:0]}
	line, err := readLine(br)
	if err != nil {
		return err
	}
	if err := a.parseStatus(line); err != nil {
		return err
	}
	for range maxHeaders {
		line, err := readLine(br)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			a.finish()
			return nil
		}
		if err := a.parseHeader(line, gen); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d headers", errMalformed, maxHeaders)
}

func (a *answer) parseStatus(line []byte) error {
	// "HTTP/1.1 200" and perhaps " OK"
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' ||
		len(line) > 12 && line[12] != ' ' {
		return fmt.Errorf("%w: begins with %.60q", errMalformed, line)
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return fmt.Errorf("%w: begins with %.60q", errMalformed, line)
		}
		a.status = a.status*10 + int(c-'0')
	}
	a.close = line[7] == '0'
	return nil
}

func (a *answer) parseHeader(line []byte, lastGen string) error {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || line[colon-1] == ' ' {
		return fmt.Errorf("%w: header line %.60q", errMalformed, line)
	}
	name, value := line[:colon], bytes.TrimSpace(line[colon+1:])
	switch {
	case is(name, "Content-Length"):
		n, err := strconv.ParseUint(string(value), 10, 62)
		if err != nil || a.length >= 0 && a.length != int64(n) {
			return fmt.Errorf("%w: content length %.60q", errMalformed, value)
		}
		if a.length != lengthChunks {
			a.length = int64(n)
		}
	case is(name, "Transfer-Encoding"):
		if !bytes.EqualFold(value, []byte("chunked")) {
			return fmt.Errorf("%w: transfer encoding %.60q", errMalformed, value)
		}
		a.length = lengthChunks
	case is(name, "Connection"):
		for token := range bytes.SplitSeq(value, []byte(",")) {
			a.close = a.close || bytes.EqualFold(bytes.TrimSpace(token), []byte("close"))
		}
	case is(name, requestIDHeader):
		a.id = append(a.id[:0], value...)
		a.ids++
	case is(name, generationHeader):
		if a.gen = lastGen; a.gen != string(value) {
			a.gen = string(value)
		}
	}
	return nil
}

// finish settles the length of the body once all headers are known.
func (a *answer) finish() {
	if a.status < 200 || a.status == 204 || a.status == 304 {
		a.length = 0
	}
	if a.length == lengthByEOF {
		a.close = true
	}
}

// checkID says what is wrong if the answer does not carry the id of q. Who
// answers without echoing, with another status than 200, has no reason to.
func (a *answer) checkID(q *request) error {
	if a.ids != 1 || !bytes.Equal(a.id, q.id) {
		return fmt.Errorf("%s header is %q (seen %d times)", requestIDHeader, a.id, a.ids)
	}
	return nil
}

// matchBody reads the body and compares it with want.
func (a *answer) matchBody(br *bufio.Reader, want []byte) error {
	switch a.length {
	case lengthChunks:
		err := eachChunk(br, func(n int64) error {
			if n > int64(len(want)) {
				return fmt.Errorf("%w: longer by at least %d bytes", errWrongBody, n-int64(len(want)))
			}
			if err := match(br, want[:n]); err != nil {
				return err
			}
			want = want[n:]
			return nil
		})
		if err == nil && len(want) > 0 {
			err = fmt.Errorf("%w: its last %d bytes are missing", errWrongBody, len(want))
		}
		return err
	case lengthByEOF:
		if err := match(br, want); err != nil {
			return err
		}
		if _, err := br.Peek(1); err == nil {
			return fmt.Errorf("%w: longer", errWrongBody)
		} else if !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	}
	if a.length != int64(len(want)) {
		return fmt.Errorf("%w: %d bytes instead of %d", errWrongBody, a.length, len(want))
	}
	return match(br, want)
}

// skipBody reads a body of no interest, up to maxSkip bytes.
func (a *answer) skipBody(br *bufio.Reader) error {
	left := int64(maxSkip)
	skip := func(n int64) error {
		if left -= n; left < 0 {
			return errors.New("too long to skip")
		}
		_, err := br.Discard(int(n))
		return err
	}
	switch a.length {
	case lengthChunks:
		return eachChunk(br, skip)
	case lengthByEOF:
		return nil // the connection is closed anyway
	}
	return skip(a.length)
}

// eachChunk calls read for every chunk, which must consume its n bytes, and
// reads the trailers.
func eachChunk(br *bufio.Reader, read func(n int64) error) error {
	for {
		line, err := readLine(br)
		if err != nil {
			return err
		}
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 62)
		if err != nil {
			return fmt.Errorf("%w: chunk size %.60q", errMalformed, line)
		}
		if n == 0 {
			break
		}
		if err := read(int64(n)); err != nil {
			return err
		}
		if line, err = readLine(br); err != nil {
			return err
		}
		if len(line) > 0 {
			return fmt.Errorf("%w: chunk longer than its size", errMalformed)
		}
	}
	for range maxHeaders {
		line, err := readLine(br)
		if err != nil || len(line) == 0 {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d trailers", errMalformed, maxHeaders)
}

// match reads as many bytes as want has and compares them.
func match(br *bufio.Reader, want []byte) error {
	for at := 0; at < len(want); {
		if _, err := br.Peek(1); err != nil {
			return err
		}
		b, _ := br.Peek(min(br.Buffered(), len(want)-at))
		if !bytes.Equal(b, want[at:at+len(b)]) {
			return fmt.Errorf("%w: differs within bytes %d to %d of %d",
				errWrongBody, at, at+len(b), len(want))
		}
		at += len(b)
		br.Discard(len(b))
	}
	return nil
}

// readLine reads a line and returns it without its end. It is valid until the
// next read. A line that the connection ends in is io.ErrUnexpectedEOF.
func readLine(br *bufio.Reader) ([]byte, error) {
	line, err := br.ReadSlice('\n')
	switch {
	case err == nil:
		return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("%w: line longer than %d bytes", errMalformed, br.Size())
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

// is reports whether name is the header known.
func is(name []byte, known string) bool {
	return len(name) == len(known) && bytes.EqualFold(name, []byte(known))
}
