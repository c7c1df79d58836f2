package load

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

// maxCuts is how often a write is cut without Config.CutBytes.
const maxCuts = 3

// cutter makes writes in pieces.
type cutter struct {
	cfg  *Config
	ctx  context.Context // ends pauses
	ends []int           // of the pieces of the next write
}

// whole makes one piece of n bytes.
func (c *cutter) whole(n int) { c.ends = append(c.ends[:0], n) }

// cutBatch cuts the bytes of a batch of requests. Half of the cuts are in a
// head, or right behind it, since most of the bytes may be bodies.
func (c *cutter) cutBatch(rng *rand.Rand, batch []request) {
	size := 0
	for i := range batch {
		size += len(batch[i].bytes)
	}
	c.cut(rng, size, func() (from, to int) {
		if rng.IntN(2) == 0 {
			return 0, size
		}
		k := rng.IntN(len(batch))
		for i := range k {
			from += len(batch[i].bytes)
		}
		return from, from + len(batch[k].bytes) - len(batch[k].body)
	})
}

// cut cuts size bytes, two at least, into two pieces at least. place says from
// where to where a cut may be.
func (c *cutter) cut(rng *rand.Rand, size int, place func() (from, to int)) {
	c.ends = c.ends[:0]
	if most := c.cfg.CutBytes; most > 0 {
		for at := 0; at < size; {
			at += 1 + rng.IntN(min(most, size-1, size-at))
			c.ends = append(c.ends, at)
		}
		return
	}
	for range 1 + rng.IntN(maxCuts) {
		from, to := place()
		from, to = max(from, 1), min(to, size-1)
		c.ends = append(c.ends, from+rng.IntN(to-from+1))
	}
	slices.Sort(c.ends)
	c.ends = append(slices.Compact(c.ends), size)
}

// write writes b in the pieces that were made.
func (c *cutter) write(rng *rand.Rand, w io.Writer, b []byte) error {
	from := 0
	for i, end := range c.ends {
		if i > 0 && c.cfg.CutPause > 0 {
			if !waitFor(c.ctx, time.Duration(rng.Int64N(int64(c.cfg.CutPause)+1))) {
				return errAborted
			}
		}
		if _, err := w.Write(b[from:end]); err != nil {
			return err
		}
		from = end
	}
	return nil
}
