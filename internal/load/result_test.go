package load

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEveryOutcomeHasItsCounter(t *testing.T) {
	var r Result
	seen := make(map[*int64]outcome)
	for o := range outcomeNames {
		c := r.counter(outcome(o))
		if other, twice := seen[c]; twice {
			t.Errorf("%v and %v share a counter", other, outcome(o))
		}
		seen[c] = outcome(o)
		*c = 1
	}
	if want := int64(len(outcomeNames) - 3); r.Failed() != want {
		t.Errorf("%d failed, want %d: all but ok, client fault and aborted", r.Failed(), want)
	}
}

func TestMergeAddsEveryCount(t *testing.T) {
	var a, b Result
	for _, r := range []*Result{&a, &b} {
		v := reflect.ValueOf(r).Elem()
		for i := range v.NumField() {
			if v.Field(i).Type() == reflect.TypeFor[int64]() {
				v.Field(i).SetInt(int64(100 + i))
			}
		}
	}
	a.Merge(b)
	v := reflect.ValueOf(a)
	for i := range v.NumField() {
		if f := v.Field(i); f.Type() == reflect.TypeFor[int64]() && f.Int() != int64(200+2*i) {
			t.Errorf("%s is %d after a merge, want %d", v.Type().Field(i).Name, f.Int(), 200+2*i)
		}
	}
}

func TestMerge(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2024, 5, 1, 12, 0, s, 0, time.UTC) }
	a := Result{Started: at(10), Elapsed: 5 * time.Second, Workers: 2, Seed: 9}
	a.saw("2", at(12))
	a.saw("3", at(14))
	a.Latency.Record(time.Second)
	a.addSample(Sample{Time: at(13), Detail: "later"})
	b := Result{Started: at(8), Elapsed: 4 * time.Second, Workers: 1, Seed: 4}
	b.saw("1", at(8))
	b.saw("2", at(11))
	b.Latency.Record(2 * time.Second)
	for i := range maxSamples {
		b.addSample(Sample{Time: at(8), Detail: fmt.Sprint(i)})
	}
	first := a
	a.Merge(b)
	if !a.Started.Equal(at(8)) || a.Elapsed != 7*time.Second || a.Workers != 3 || a.Seed != 9 {
		t.Errorf("started %v, elapsed %v, %d workers, seed %d", a.Started, a.Elapsed, a.Workers, a.Seed)
	}
	want := []Seen{{"1", at(8), at(8)}, {"2", at(11), at(12)}, {"3", at(14), at(14)}}
	if !reflect.DeepEqual(a.GenerationsSeen, want) || a.Generations["2"] != 2 {
		t.Errorf("seen %v, counts %v", a.GenerationsSeen, a.Generations)
	}
	if a.Latency.Count() != 2 || len(a.FirstErrors) != maxSamples || a.FirstErrors[maxSamples-1].Detail != "15" {
		t.Errorf("%d latencies, samples %v", a.Latency.Count(), a.FirstErrors)
	}
	if first.Latency.Count() != 1 || first.Generations["2"] != 1 || len(first.GenerationsSeen) != 2 ||
		first.GenerationsSeen[0].Generation != "2" || !first.GenerationsSeen[0].First.Equal(at(12)) {
		t.Error("a copy made before the merge has changed")
	}
}

func TestResultJSON(t *testing.T) {
	r := Result{Started: time.Unix(1, 0).UTC(), Requests: 3, OK: 2, Reset: 1}
	r.saw("7", time.Unix(2, 0).UTC())
	r.Latency.Record(time.Millisecond)
	r.addSample(Sample{Kind: reset.String(), Time: time.Unix(2, 0).UTC()})
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, back) {
		t.Errorf("%+v\nbecame\n%+v", r, back)
	}
	for _, want := range []string{`"reset":1`, `"p999_ns":`, `"generations":{"7":1}`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestStringTells(t *testing.T) {
	r := Result{Requests: 16, OK: 7, Reset: 2, StreamReset: 1, GoAwayRefused: 2, BehindClose: 3, ClientFault: 1,
		Elapsed: time.Second, Workers: 3, Connects: 9, AnnouncedReconnects: 4, UnannouncedReconnects: 3, Pipelined: 8, Cut: 5}
	r.saw("41", time.Now())
	r.addSample(Sample{Kind: "reset", Detail: "sending: broken pipe", RequestID: "w1-2-3"})
	for _, want := range []string{"16 requests", "8 FAILED", "stream reset              1", "refused by GOAWAY         2",
		"behind an announced close 3", "9, of these 7 reconnects", "8 requests pipelined", "5 writes cut",
		"client fault", "41 (1)", "broken pipe", "w1-2-3"} {
		if s := r.String(); !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if s := (Result{OK: 1, Requests: 1}).String(); !strings.Contains(s, "none failed") || strings.Contains(s, "client fault") || strings.Contains(s, "awkwardly") {
		t.Errorf("a clean result reads\n%s", s)
	}
}
