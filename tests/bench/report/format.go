package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// duration is a duration in nanoseconds with three significant digits.
func duration(ns float64) string {
	switch a := math.Abs(ns); {
	case a < 999.5e3:
		return digits(ns/1e3) + " µs"
	case a < 999.5e6:
		return digits(ns/1e6) + " ms"
	}
	return digits(ns/1e9) + " s"
}

// digits is a number with three significant digits.
func digits(x float64) string {
	switch a := math.Abs(x); {
	case a >= 99.95 || x == math.Trunc(x):
		return fmt.Sprintf("%.0f", x)
	case a >= 9.995:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func mebibytes(b float64) string { return digits(b/(1<<20)) + " MiB" }

// ranged is a median with the least and the greatest value.
func ranged(s Spread, format func(float64) string) string {
	if s.N == 0 {
		return "–"
	}
	if s.Min == s.Max {
		return format(s.Median)
	}
	return fmt.Sprintf("%s (%s to %s)", format(s.Median), format(s.Min), format(s.Max))
}

// quartered is a median with the quartiles.
func quartered(s Spread, format func(float64) string) string {
	if s.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%s (%s to %s)", format(s.Median), format(s.Low), format(s.High))
}

// kinds are the failures of all upgrades, by kind, the most frequent first.
func kinds(all []Upgrade) string {
	sum := make(map[string]int64)
	for _, u := range all {
		for k, n := range u.Failed {
			sum[k] += n
		}
	}
	names := slices.SortedFunc(maps.Keys(sum), func(a, b string) int {
		if sum[a] != sum[b] {
			return int(sum[b] - sum[a])
		}
		return strings.Compare(a, b)
	})
	for i, k := range names {
		names[i] = fmt.Sprintf("%s %s", digits(float64(sum[k])/float64(len(all))), k)
	}
	return strings.Join(names, ", ")
}

// list joins words as a sentence does.
func list(words []string) string {
	switch n := len(words); n {
	case 0:
		return ""
	case 1:
		return words[0]
	default:
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
}
