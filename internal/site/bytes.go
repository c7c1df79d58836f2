package site

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

const maxBytes = 10 << 30

// bytes answers with as many bytes of Fill's sequence as are asked for. It
// knows ranges.
func (s *site) bytes(w http.ResponseWriter, r *http.Request) {
	text := r.URL.Query().Get("n")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > maxBytes {
		plain(w, http.StatusBadRequest, fmt.Sprintf(
			"n=%q is not a number between 0 and %d. Ask for bytes like /bytes?n=1000000\n", text, int64(maxBytes)))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	http.ServeContent(w, r, "", time.Time{}, &sequence{size: n})
}

// Fill fills p with the bytes that /bytes answers with from offset on. The
// eight bytes at each multiple of eight are a number in little-endian order,
// the SplitMix64 of their position, so that any piece can be checked by
// itself.
func Fill(p []byte, offset int64) {
	word := uint64(offset) / 8
	if skip := int(offset % 8); skip > 0 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], splitMix64(word))
		p = p[copy(p, b[skip:]):]
		word++
	}
	for ; len(p) >= 8; word++ {
		binary.LittleEndian.PutUint64(p, splitMix64(word))
		p = p[8:]
	}
	if len(p) > 0 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], splitMix64(word))
		copy(p, b[:])
	}
}

func splitMix64(x uint64) uint64 {
	x = (x + 1) * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// sequence is an io.ReadSeeker of Fill's bytes.
type sequence struct{ at, size int64 }

func (q *sequence) Read(p []byte) (int, error) {
	if q.at >= q.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), q.size-q.at)]
	Fill(p, q.at)
	q.at += int64(len(p))
	return len(p), nil
}

func (q *sequence) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += q.at
	case io.SeekEnd:
		offset += q.size
	}
	if offset < 0 {
		return 0, errors.New("site: seek before the beginning")
	}
	q.at = offset
	return offset, nil
}

// Verifier is an io.Writer that takes the answer of /bytes and fails at the
// first byte that is not the right one. Its zero value begins at offset 0.
type Verifier struct {
	// Offset is where the next write belongs, so the number of bytes that were
	// right if it began at 0.
	Offset int64

	want []byte
}

// Write compares p with what /bytes sends at Offset.
func (v *Verifier) Write(p []byte) (int, error) {
	if v.want == nil {
		v.want = make([]byte, 32<<10)
	}
	for done := 0; done < len(p); {
		want := v.want[:min(len(v.want), len(p)-done)]
		Fill(want, v.Offset)
		got := p[done : done+len(want)]
		if !bytes.Equal(got, want) {
			i := firstDifference(got, want)
			v.Offset += int64(i)
			return done + i, fmt.Errorf("site: byte %d is %#02x instead of %#02x", v.Offset, got[i], want[i])
		}
		done += len(want)
		v.Offset += int64(len(want))
	}
	return len(p), nil
}

func firstDifference(a, b []byte) int {
	i := 0
	for a[i] == b[i] {
		i++
	}
	return i
}
