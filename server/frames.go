package server

// What of HTTP/2 must be known in order to put a frame between two others.
const (
	frameHeadSize     = 9
	frameHeaders      = 1
	framePushPromise  = 5
	framePing         = 6
	frameGoAway       = 7
	frameContinuation = 9

	flagAck        = 1
	flagEndHeaders = 4
)

// A frameScanner follows one direction of an HTTP/2 connection, whose bytes may
// come in pieces of any size. It begins where a frame begins.
type frameScanner struct {
	head  [frameHeadSize]byte // of the frame under way, or of the last one
	data  [8]byte             // payload of the last PING
	have  int                 // bytes of head; zero between two frames
	left  int                 // bytes of the payload that are still to come
	begun bool                // a first frame has passed
	block bool                // more of a field block must follow, nothing else
}

// next takes from p what belongs to the frame under way, and returns how much
// that is.
func (s *frameScanner) next(p []byte) int {
	n := copy(s.head[s.have:], p)
	if s.have += n; s.have < frameHeadSize {
		return n
	}
	if n > 0 {
		s.left = int(s.head[0])<<16 | int(s.head[1])<<8 | int(s.head[2])
	}
	k := min(s.left, len(p)-n)
	if s.head[3] == framePing && s.left <= len(s.data) {
		copy(s.data[len(s.data)-s.left:], p[n:n+k])
	}
	if s.left -= k; s.left == 0 {
		s.end()
	}
	return n + k
}

func (s *frameScanner) end() {
	s.have, s.begun = 0, true
	switch s.head[3] {
	case frameHeaders, framePushPromise, frameContinuation:
		s.block = s.head[4]&flagEndHeaders == 0
	}
}

// pass takes all of p.
func (s *frameScanner) pass(p []byte) {
	for len(p) > 0 {
		p = p[s.next(p):]
	}
}

// between reports whether another frame may be put in here: between two frames,
// not before the SETTINGS that come first, and not within a field block.
func (s *frameScanner) between() bool { return s.have == 0 && s.begun && !s.block }

// isAck reports whether a frame has just ended that answers a PING with data.
func (s *frameScanner) isAck(data [8]byte) bool {
	return s.have == 0 && s.head[3] == framePing && s.head[4]&flagAck != 0 && s.data == data
}
