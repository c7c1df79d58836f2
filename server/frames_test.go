package server

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
)

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return append(binary.BigEndian.AppendUint32(append(b, flags), stream), payload...)
}

// randomFrames begins with SETTINGS and has field blocks of several frames, in
// which nothing may be inserted.
func randomFrames(rng *rand.Rand, n int) (frames [][]byte, fixed []bool) {
	add := func(b []byte, f bool) { frames, fixed = append(frames, b), append(fixed, f) }
	add(frame(4, 0, 0, make([]byte, 6*rng.IntN(4))), true)
	for range n {
		switch rng.IntN(4) {
		case 0:
			add(frame(4, flagAck, 0, nil), false)
		case 1:
			add(frame(frameData, 0, 1, bytes.Repeat([]byte{frameGoAway}, rng.IntN(40000))), false)
		case 2:
			add(frame(framePing, 0, 0, []byte("12345678")), false)
		case 3:
			kind := byte(frameHeaders)
			for range rng.IntN(3) {
				add(frame(kind, 0, 1, make([]byte, rng.IntN(300))), kind == frameContinuation)
				kind = frameContinuation
			}
			add(frame(kind, flagEndHeaders, 1, make([]byte, rng.IntN(300))), kind == frameContinuation)
		}
	}
	return frames, fixed
}

// A recorder keeps what is written. It fails some writes in the middle, as a
// deadline does.
type recorder struct {
	net.Conn
	rng   *rand.Rand
	short bool
	bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) { return r.Buffer.Read(b) }

func (r *recorder) Write(b []byte) (int, error) {
	if r.short && r.rng.IntN(4) == 0 {
		n := r.rng.IntN(len(b) + 1)
		r.Buffer.Write(b[:n])
		return n, os.ErrDeadlineExceeded
	}
	return r.Buffer.Write(b)
}

// Wherever the farewell becomes due, and however the frames are cut, it comes
// once, whole, and where it may.
func TestFarewellIsPutBetweenFrames(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 1))
		frames, fixed := randomFrames(rng, 1+rng.IntN(20))
		stream := bytes.Join(frames, nil)
		rec := &recorder{rng: rng, short: seed%2 == 1}
		c := &h2Conn{Conn: rec}
		due := rng.IntN(len(stream))
		concurrent := seed%4 == 0
		var told sync.WaitGroup
		for sent := 0; sent < len(stream); {
			if sent >= due && due >= 0 {
				due = -1
				c.due.Store(true)
				if concurrent {
					told.Go(c.tryFarewell)
				} else {
					c.tryFarewell()
				}
			}
			piece := stream[sent:]
			if rng.IntN(3) > 0 {
				piece = piece[:1+rng.IntN(min(len(piece), 5000))]
			}
			n, err := c.Write(piece)
			if err != nil && !rec.short {
				t.Fatal(err)
			}
			sent += n
		}
		told.Wait()
		if due >= 0 {
			c.due.Store(true)
		}
		for c.due.Load() { // it became due in the last piece
			if c.tryFarewell(); !c.out.between() {
				t.Fatal("not between frames at the end")
			}
		}

		got := rec.Bytes()
		seen := 0
		for i, f := range frames {
			if bytes.HasPrefix(got, farewell) {
				if seen++; fixed[i] {
					t.Errorf("seed %d: farewell before frame %d of type %d", seed, i, f[3])
				}
				got = got[len(farewell):]
			}
			if !bytes.HasPrefix(got, f) {
				t.Fatalf("seed %d: frame %d is damaged", seed, i)
			}
			got = got[len(f):]
		}
		if bytes.Equal(got, farewell) {
			seen, got = seen+1, nil
		}
		if seen != 1 || len(got) > 0 {
			t.Fatalf("seed %d: %d farewells, %d bytes left over", seed, seen, len(got))
		}
	}
}

// A slowConn says when it is written to, and waits.
type slowConn struct {
	recorder
	entered, release chan struct{}
}

func (c *slowConn) Write(b []byte) (int, error) {
	c.entered <- struct{}{}
	<-c.release
	return c.recorder.Write(b)
}

// It becomes due while net/http writes, which then writes nothing more.
func TestFarewellFollowsAWriteUnderWay(t *testing.T) {
	settings := frame(4, 0, 0, nil)
	slow := &slowConn{entered: make(chan struct{}, 2), release: make(chan struct{})}
	c := &h2Conn{Conn: slow}
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.Write(settings)
	}()
	<-slow.entered
	c.due.Store(true)
	c.tryFarewell() // must not wait
	close(slow.release)
	<-written
	if got := slow.Bytes(); !bytes.Equal(got, append(settings, farewell...)) {
		t.Errorf("wrote %q", got)
	}
}

// Only the answer to our own PING counts, however it is cut.
func TestAnswerToTheFarewellIsSeen(t *testing.T) {
	other := frame(framePing, flagAck, 0, []byte("whatever"))
	request := frame(framePing, 0, 0, farewellPing[:])
	hidden := frame(frameData, 0, 1, frame(framePing, flagAck, 0, farewellPing[:]))
	answer := frame(framePing, flagAck, 0, farewellPing[:])
	for size := 1; size < 30; size++ {
		c := &h2Conn{Conn: &recorder{}, acked: make(chan struct{})}
		for _, tt := range []struct {
			bytes []byte
			want  bool
		}{{other, false}, {request, false}, {hidden, false}, {answer, true}, {answer, true}} {
			c.Conn.(*recorder).Buffer.Write(tt.bytes)
			for b := make([]byte, size); ; {
				if _, err := c.Read(b); err == io.EOF {
					break
				}
			}
			if c.heard != tt.want {
				t.Errorf("read in pieces of %d: heard = %v after %q", size, c.heard, tt.bytes)
			}
		}
	}
}

func BenchmarkFrameScanner(b *testing.B) {
	head, payload := frame(frameData, 0, 1, make([]byte, 100))[:9], make([]byte, 100)
	var s frameScanner
	for b.Loop() {
		s.pass(head)
		s.pass(payload)
	}
}
