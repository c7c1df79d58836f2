package handover

import "testing"

// What is rehearsed is what will be played: a frame that does not even pass its
// own checks would leave half of it out.
func TestRehearsalsAreOfValidFrames(t *testing.T) {
	for _, r := range append(ownersFrames, successorsFrames...) {
		p, err := encodeFrame(r.frame)
		if err != nil {
			t.Errorf("%+v: %v", r.frame, err)
			continue
		}
		if !r.reads {
			continue
		}
		if _, err := decodeFrame(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}
