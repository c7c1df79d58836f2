package load

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	for i := range numBuckets {
		low := bucketLow(i)
		if bucketOf(low) != i || i > 0 && bucketOf(low-1) != i-1 {
			t.Fatalf("bucket %d begins at %d, but holds %d, and the one before %d",
				i, low, bucketOf(low), bucketOf(low-1))
		}
	}
	if got := bucketOf(maxMicros); got != numBuckets-1 {
		t.Errorf("the largest value is in bucket %d", got)
	}
}

func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var h Histogram
	var all []time.Duration
	for range 20_000 {
		d := time.Duration(rng.ExpFloat64() * float64(3*time.Millisecond))
		all = append(all, d)
		h.Record(d)
	}
	slices.Sort(all)
	for _, q := range []float64{.01, .5, .9, .99, .999, 1} {
		exact := all[int(q*float64(len(all)))-1]
		got := h.Quantile(q)
		if got < exact || float64(got) > float64(exact)*1.04+2000 {
			t.Errorf("quantile %v is %v, exactly %v", q, got, exact)
		}
	}
	if h.Max() != all[len(all)-1] || h.Min() != all[0] || h.Count() != int64(len(all)) {
		t.Errorf("min %v, max %v, count %d", h.Min(), h.Max(), h.Count())
	}
}

func TestHistogramEdges(t *testing.T) {
	var h Histogram
	if h.Quantile(.99) != 0 || h.Mean() != 0 || h.Max() != 0 {
		t.Error("an empty histogram is not all zero")
	}
	h.Record(-time.Second)
	h.Record(1000 * time.Hour)
	if h.Min() != 0 || h.Max() != 1000*time.Hour || h.Quantile(1) != 1000*time.Hour {
		t.Errorf("min %v, max %v, all %v", h.Min(), h.Max(), h.Quantile(1))
	}
}

func TestHistogramMergeAndJSON(t *testing.T) {
	var a, b, both Histogram
	for i := range 1000 {
		d := time.Duration(i*i) * time.Microsecond
		both.Record(d)
		if i%3 == 0 {
			a.Record(d)
		} else {
			b.Record(d)
		}
	}
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var back Histogram
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	a.Merge(&back)
	if a.n != both.n || a.sum != both.sum || a.min != both.min || a.max != both.max || !slices.Equal(a.counts, both.counts) {
		t.Errorf("merged %+v, want %+v", a, both)
	}
	for _, bad := range []string{
		`{"count":1,"buckets_us":[]}`, `{"count":1,"buckets_us":[[-1,1]]}`,
		`{"count":-1,"buckets_us":[[1,-1]]}`, `{"count":1,"buckets_us":[[99999999999999,1]]}`,
	} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func TestHistogramSince(t *testing.T) {
	var h, want Histogram
	h.Record(3 * time.Millisecond)
	h.Record(time.Hour)
	before := h.clone()
	if d := h.Since(&before); d.Count() != 0 || d.Max() != 0 {
		t.Errorf("nothing has been recorded since, but %d", d.Count())
	}
	for i := range 100 {
		h.Record(time.Duration(i) * time.Millisecond)
		want.Record(time.Duration(i) * time.Millisecond)
	}
	d := h.Since(&before)
	if d.Count() != 100 || d.Mean() != want.Mean() {
		t.Errorf("%d of mean %v, want %d of %v", d.Count(), d.Mean(), want.Count(), want.Mean())
	}
	for _, q := range []float64{0, .5, .99} {
		if d.Quantile(q) != want.Quantile(q) {
			t.Errorf("quantile %v is %v, want %v", q, d.Quantile(q), want.Quantile(q))
		}
	}
	if d.Max() < want.Max() || d.Max() > want.Max()*104/100 || d.Min() > want.Min() {
		t.Errorf("from %v to %v, want %v to %v", d.Min(), d.Max(), want.Min(), want.Max())
	}
}
