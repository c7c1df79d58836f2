package scm_test

import (
	"bytes"
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/scm"
)

// FuzzRoundTrip sends any message and receives it into any room. Either all of
// it arrives, or an error says why not and nothing stays open.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("hello"), uint16(2), uint16(8), uint16(2), true)
	f.Add([]byte("hello"), uint16(2), uint16(4), uint16(2), false)
	f.Add([]byte("hello"), uint16(2), uint16(8), uint16(1), true)
	f.Add([]byte(""), uint16(0), uint16(8), uint16(0), true)
	f.Add([]byte("x"), uint16(253), uint16(8), uint16(253), false)
	f.Add([]byte("x"), uint16(254), uint16(8), uint16(300), true)
	f.Add([]byte("x"), uint16(1), uint16(0), uint16(1), true)
	f.Fuzz(func(t *testing.T, p []byte, nfds, size, room uint16, stream bool) {
		if len(p) > 32<<10 || nfds > 400 {
			t.Skip("would not fit into the socket's buffer")
		}
		typ := unix.SOCK_SEQPACKET
		if stream {
			typ = unix.SOCK_STREAM
		}
		ua, ub := unixPair(t, typ)
		a, b := newConn(t, ua), newConn(t, ub)
		w := newWitness(t)
		ctx := context.Background()

		err := a.Send(ctx, p, w.fds(t, int(nfds)))
		switch {
		case len(p) == 0:
			wantErr(t, 0, 0, err, scm.ErrEmpty)
			return
		case nfds > scm.MaxFDs:
			wantErr(t, 0, 0, err, scm.ErrTooManyFDs)
			return
		case err != nil:
			t.Fatal(err)
		}

		buf, fds := make([]byte, size), make([]int, room)
		n, got, err := b.Recv(ctx, buf, fds)
		switch {
		case size == 0:
			wantErr(t, n, got, err, scm.ErrEmpty)
			b.Close() // it consumed nothing
		case nfds > room:
			wantErr(t, n, got, err, scm.ErrUnexpectedFDs)
		case int(size) < len(p) && !stream:
			wantErr(t, n, got, err, scm.ErrPayloadTruncated)
		case err != nil:
			t.Fatal(err)
		default:
			if got != int(nfds) || n != min(len(p), int(size)) || !bytes.Equal(buf[:n], p[:n]) {
				t.Fatalf("Recv = %d bytes, %d descriptors; sent %d, %d", n, got, len(p), nfds)
			}
			closeAll(t, fds[:got])
		}
		w.gone(t)
	})
}
