package report

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// A Spread is a sample in five numbers.
type Spread struct {
	N                           int
	Min, Low, Median, High, Max float64 // Low and High are the quartiles
}

// spread summarizes values.
func spread[T time.Duration | float64 | int64](values []T) Spread {
	v := make([]float64, len(values))
	for i, x := range values {
		v[i] = float64(x)
	}
	slices.Sort(v)
	if len(v) == 0 {
		return Spread{}
	}
	return Spread{len(v), v[0], quantile(v, .25), quantile(v, .5), quantile(v, .75), v[len(v)-1]}
}

// quantile interpolates between the two nearest of sorted values.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	f := at - float64(i)
	return sorted[i]*(1-f) + sorted[i+1]*f
}

// verdict compares two samples of which less is better: -1 if a is better, 1 if
// b is, 0 if they cannot be told apart: the middle halves overlap, or there are
// too few values to speak of halves.
func verdict(a, b Spread) int {
	switch {
	case min(a.N, b.N) < 3:
		return 0
	case a.High < b.Low:
		return -1
	case b.High < a.Low:
		return 1
	}
	return 0
}

// A Fit is the straight line through points by least squares.
type Fit struct {
	Slope, Intercept float64
	R2               float64 // share of the variance that the line explains
}

// fit puts a line through all times of points.
func fit(points []Point) (f Fit, ok bool) {
	var n, sx, sy, sxx, sxy, syy float64
	for _, p := range points {
		for _, t := range p.Times {
			x, y := float64(p.Size), float64(t)
			n++
			sx, sy, sxx, sxy, syy = sx+x, sy+y, sxx+x*x, sxy+x*y, syy+y*y
		}
	}
	dx, dy := n*sxx-sx*sx, n*syy-sy*sy
	if dx == 0 || dy == 0 {
		return f, false
	}
	f.Slope = (n*sxy - sx*sy) / dx
	f.Intercept = (sy - f.Slope*sx) / n
	f.R2 = math.Pow(n*sxy-sx*sy, 2) / dx / dy
	return f, true
}

// ratios divides value by value.
func ratios[T time.Duration | float64](a, b []T) []float64 {
	r := make([]float64, min(len(a), len(b)))
	for i := range r {
		r[i] = float64(a[i]) / float64(b[i])
	}
	return r
}

// pick makes a sample of one figure of each upgrade, without those in which it
// is not known.
func pick[T cmp.Ordered](all []Upgrade, figure func(Upgrade) T) (v []T) {
	var zero T
	for _, u := range all {
		if x := figure(u); x > zero {
			v = append(v, x)
		}
	}
	return v
}
