package server

import (
	"net/http"
	"sync/atomic"
	"unsafe"
)

// running counts handlers. Each request would have all processors pass one
// counter around, so there are several, one of which a request keeps to.
type running [16]struct {
	_ [120]byte // away from what is only read: processors fetch cache lines in pairs
	n atomic.Int64
}

// of finds the counter of a request, by where it lies in memory.
func (c *running) of(r *http.Request) *atomic.Int64 {
	// Fibonacci hashing: the high bits of the product are well mixed.
	return &c[uint64(uintptr(unsafe.Pointer(r)))*0x9e3779b97f4a7c15>>60].n
}

// total is what all counters have. It looks at one after the other, so it is zero
// for certain only if no handler can start any more: then each can but fall.
func (c *running) total() int64 {
	var sum int64
	for i := range c {
		sum += c[i].n.Load()
	}
	return sum
}
