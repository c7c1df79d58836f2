package report

import (
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// run makes results in which three contenders have these p99.9.
func run(ours, one, other []time.Duration) *Results {
	r := &Results{
		Contenders: []Contender{
			{Name: "handoverd", Title: "handoverd", Group: Services, Ours: true},
			{Name: "one", Title: "one", Group: Services},
			{Name: "other", Title: "other", Group: Services},
			{Name: "gone", Title: "gone", Group: Services, Missing: "not installed"},
		},
		Loads: []Load{{Name: "pauses", About: "clients", Keeps: true, Plain: true}},
	}
	for i, v := range [][]time.Duration{ours, one, other} {
		for n, p := range v {
			r.Upgrades = append(r.Upgrades, Upgrade{
				Contender: r.Contenders[i].Name, Load: "pauses", Round: n, Requests: 100,
				Steady: Latency{Count: 1}, Upgrade: Latency{Count: 1, P999: p}, FirstAnswer: ms,
			})
		}
	}
	return r
}

func pageOf(t *testing.T, r, second *Results) string {
	t.Helper()
	var b strings.Builder
	if err := Page(&b, r, second); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

var (
	low    = []time.Duration{1 * ms, 2 * ms, 3 * ms}
	high   = []time.Duration{10 * ms, 20 * ms, 30 * ms}
	middle = []time.Duration{5 * ms, 6 * ms, 7 * ms}
	wide   = []time.Duration{2 * ms, 3 * ms, 40 * ms}
)

// The page compares in words only what both runs order in the same way.
func TestOnlyWhatBothRunsSayIsClaimed(t *testing.T) {
	const claim = "p99.9 around the upgrade: handoverd has "
	for _, tt := range []struct {
		name          string
		first, second *Results
		want          string // after claim; empty: none
	}{
		{"one run", run(low, high, high), nil, ""},
		{"agreement", run(low, high, high), run(low, high, high), "less than one and other."},
		{"agreement on one", run(low, high, high), run(low, high, wide), "less than one."},
		{"a peer is better", run(high, low, high), run(high, low, wide), "**more than one**."},
		{"better and worse", run(middle, low, high), run(middle, low, high), "less than other, and **more than one**."},
		{"overlap", run(wide, low, high), run(wide, low, high), ""},
		{"contradiction", run(low, high, high), run(high, low, low), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := pageOf(t, tt.first, tt.second)
			if tt.want == "" && strings.Contains(got, claim) || tt.want != "" && !strings.Contains(got, claim+tt.want) {
				t.Errorf("want the claim %q in\n%s", tt.want, got)
			}
		})
	}
}

// What is missing is named, with the reason.
func TestMissingIsNamed(t *testing.T) {
	if got := pageOf(t, run(low, high, high), nil); !strings.Contains(got, "| gone |  | **missing**: not installed |") {
		t.Error(got)
	}
}

// A target that only one run meets is not met.
func TestTargetNeedsBothRuns(t *testing.T) {
	const row = "| the lowest p99.9 around the takeover of its group, under each load, of the requests that are answered |"
	line := func(text string) string {
		_, rest, _ := strings.Cut(text, row)
		before, _, _ := strings.Cut(rest, "\n")
		return before
	}
	good, bad := run(low, high, high), run(high, low, high)
	if got := line(pageOf(t, good, good)); !strings.HasSuffix(got, "| yes |") {
		t.Error(got)
	}
	if got := line(pageOf(t, good, bad)); !strings.HasSuffix(got, "| **no** |") || !strings.Contains(got, "not under pauses (services: one 2 ms, ours 20 ms)") {
		t.Error(got)
	}
}

// A peer that fails requests is not better for answering the others soon.
func TestFailuresCountAsNeverAnswered(t *testing.T) {
	r := run(high, low, high)
	for i := range r.Upgrades {
		if u := &r.Upgrades[i]; u.Contender == "one" {
			u.Failed = map[string]int64{"reset": 1}
		}
	}
	if text, met, known := lowest(tail)(r); met || !known {
		t.Errorf("%q, %v, %v", text, met, known)
	}
	if text, met, known := lowest(tailOfAll)(r); !met || !known {
		t.Errorf("%q, %v, %v", text, met, known)
	}
}

func TestFit(t *testing.T) {
	f, ok := fit([]Point{{Size: 1, Times: []time.Duration{7}}, {Size: 2, Times: []time.Duration{9}}, {Size: 10, Times: []time.Duration{25}}})
	if !ok || f != (Fit{Slope: 2, Intercept: 5, R2: 1}) {
		t.Errorf("%+v, %v", f, ok)
	}
	if f, ok := fit([]Point{{Size: 1, Times: []time.Duration{7, 8}}}); ok {
		t.Errorf("a line through one size: %+v", f)
	}
	f, _ = fit([]Point{{Size: 1, Times: []time.Duration{5, 5}}, {Size: 2, Times: []time.Duration{1, 9}}, {Size: 3, Times: []time.Duration{6}}})
	if f.R2 > .1 {
		t.Errorf("noise is no line: %+v", f)
	}
}

func TestSpread(t *testing.T) {
	got := spread([]float64{5, 1, 3, 2, 4})
	if want := (Spread{5, 1, 2, 3, 4, 5}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := spread([]float64{1, 2}); got.Median != 1.5 {
		t.Errorf("%+v", got)
	}
	if got := spread[float64](nil); got != (Spread{}) {
		t.Errorf("%+v", got)
	}
}

func TestFormat(t *testing.T) {
	for _, tt := range []struct {
		ns   float64
		want string
	}{{0, "0 µs"}, {123, "0.12 µs"}, {12_345, "12.3 µs"}, {999_600, "1.00 ms"}, {1_234_000, "1.23 ms"}, {99.96e6, "100 ms"}, {1.5e9, "1.50 s"}} {
		if got := duration(tt.ns); got != tt.want {
			t.Errorf("duration(%v) = %q, want %q", tt.ns, got, tt.want)
		}
	}
}
