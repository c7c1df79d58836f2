package load

import (
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"
)

const (
	subBits    = 5 // 32 buckets for each power of two: at most 3.2 % off
	maxMicros  = 1<<36 - 1
	numBuckets = (36 - subBits + 1) << subBits
)

// Histogram counts durations in log-linear buckets of microseconds. The zero
// value is empty and ready. It is not safe for concurrent use.
type Histogram struct {
	counts   []int64 // numBuckets of them once anything was recorded
	n        int64
	sum      time.Duration
	min, max time.Duration
}

func bucketOf(micros uint64) int {
	shift := max(bits.Len64(micros)-1-subBits, 0)
	return shift<<subBits + int(micros>>shift)
}

// bucketLow is the least number of microseconds that falls into bucket i.
func bucketLow(i int) uint64 {
	shift := max(i>>subBits-1, 0)
	return uint64(i-shift<<subBits) << shift
}

// Record counts one duration.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	if h.counts == nil {
		h.counts = make([]int64, numBuckets)
	}
	if h.n == 0 || d < h.min {
		h.min = d
	}
	h.max = max(h.max, d)
	h.n++
	h.sum += d
	h.counts[bucketOf(min(uint64(d/time.Microsecond), maxMicros))]++
}

// Count is the number of durations recorded.
func (h *Histogram) Count() int64 { return h.n }

// Min and Max are exact.
func (h *Histogram) Min() time.Duration { return h.min }

// Max is the longest duration recorded.
func (h *Histogram) Max() time.Duration { return h.max }

// Mean is the average duration, 0 if there is none.
func (h *Histogram) Mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return h.sum / time.Duration(h.n)
}

// Quantile returns a duration that at least the share q (0 to 1) of those
// recorded do not exceed: the upper end of its bucket, and never more than
// Max.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := max(int64(math.Ceil(q*float64(h.n))), 1)
	for i, c := range h.counts {
		if rank -= c; rank <= 0 {
			if i == numBuckets-1 {
				break
			}
			end := time.Duration(bucketLow(i+1)) * time.Microsecond
			return min(end, h.max)
		}
	}
	return h.max
}

// Merge adds what o has recorded to h.
func (h *Histogram) Merge(o *Histogram) {
	if o.n == 0 {
		return
	}
	if h.counts == nil {
		h.counts = make([]int64, numBuckets)
	}
	if h.n == 0 || o.min < h.min {
		h.min = o.min
	}
	h.max = max(h.max, o.max)
	h.n += o.n
	h.sum += o.sum
	for i, c := range o.counts {
		h.counts[i] += c
	}
}

// Since returns what h has recorded after o, an earlier state of h. Its least
// and longest durations are known no better than to their buckets.
func (h *Histogram) Since(o *Histogram) Histogram {
	d := Histogram{n: h.n - o.n, sum: h.sum - o.sum}
	if d.n == 0 {
		return Histogram{}
	}
	d.counts = slices.Clone(h.counts)
	for i, c := range o.counts {
		d.counts[i] -= c
	}
	first := slices.IndexFunc(d.counts, func(c int64) bool { return c > 0 })
	last := numBuckets - 1
	for last > first && d.counts[last] == 0 {
		last--
	}
	d.min = max(h.min, time.Duration(bucketLow(first))*time.Microsecond)
	d.max = h.max
	if last < numBuckets-1 {
		d.max = min(d.max, time.Duration(bucketLow(last+1))*time.Microsecond)
	}
	return d
}

func (h *Histogram) clone() Histogram {
	c := *h
	c.counts = slices.Clone(h.counts)
	return c
}

// histogramJSON is the wire form: quantiles for readers, buckets for merging.
type histogramJSON struct {
	Count   int64      `json:"count"`
	Sum     int64      `json:"sum_ns"`
	Min     int64      `json:"min_ns"`
	Mean    int64      `json:"mean_ns"`
	P50     int64      `json:"p50_ns"`
	P90     int64      `json:"p90_ns"`
	P99     int64      `json:"p99_ns"`
	P999    int64      `json:"p999_ns"`
	Max     int64      `json:"max_ns"`
	Buckets [][2]int64 `json:"buckets_us"` // lower end in microseconds, count
}

// MarshalJSON writes the quantiles and every bucket that is not empty.
func (h Histogram) MarshalJSON() ([]byte, error) {
	j := histogramJSON{
		Count: h.n, Sum: int64(h.sum), Min: int64(h.min), Mean: int64(h.Mean()), Max: int64(h.max),
		P50: int64(h.Quantile(.5)), P90: int64(h.Quantile(.9)),
		P99: int64(h.Quantile(.99)), P999: int64(h.Quantile(.999)),
		Buckets: [][2]int64{},
	}
	for i, c := range h.counts {
		if c != 0 {
			j.Buckets = append(j.Buckets, [2]int64{int64(bucketLow(i)), c})
		}
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON wrote, so that results of several
// processes can be merged.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var j histogramJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	n := Histogram{sum: time.Duration(j.Sum), min: time.Duration(j.Min), max: time.Duration(j.Max)}
	for _, b := range j.Buckets {
		low, count := b[0], b[1]
		if low < 0 || low > maxMicros || count < 0 {
			return fmt.Errorf("load: histogram bucket of %d µs with count %d", low, count)
		}
		if n.counts == nil {
			n.counts = make([]int64, numBuckets)
		}
		n.counts[bucketOf(uint64(low))] += count
		n.n += count
	}
	if n.n != j.Count {
		return fmt.Errorf("load: histogram of %d has buckets for %d", j.Count, n.n)
	}
	*h = n
	return nil
}
