package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
	"github.com/handoverd/handoverd/tests/bench/report"
)

var keep = flag.String("keep", "", "directory for the page of the short run")

func TestMain(m *testing.M) { leak.Main(m) }

// A short run measures every contender that the machine has in every way that
// there is, and makes a page of it. Its figures mean nothing, but that this
// project fails no request is true at any speed.
func TestShortRun(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	out := *keep
	if out == "" {
		out = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := command(ctx, []string{"-short", "-fetch=false", "-o", out}); err != nil {
		t.Fatal(err)
	}
	r, err := report.Read(filepath.Join(out, report.Figures))
	if err != nil {
		t.Fatal(err)
	}
	checkUpgrades(t, r)
	checkParts(t, r)
	page, err := os.ReadFile(filepath.Join(out, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Contenders {
		if !strings.Contains(string(page), c.Title) {
			t.Errorf("the page does not name %s", c.Title)
		}
	}
	for _, name := range []string{"takeover.svg", "scaling.svg"} {
		if st, err := os.Stat(filepath.Join(out, "img", name)); err != nil || st.Size() < 1000 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

// builtHere are those that need nothing but the module proxy.
var builtHere = []string{"handoverd", "library", "handover+shutdown", "cmd", "cmd-server", "tableflip", "reuseport", "restart", "handoverd-proxy"}

func checkUpgrades(t *testing.T, r *report.Results) {
	measured := make(map[string]int)
	for _, u := range r.Upgrades {
		if u.Error != "" {
			t.Errorf("%s under %s: %s", u.Contender, u.Load, u.Error)
			continue
		}
		measured[u.Contender]++
		lossless := u.Contender == "handoverd" || u.Contender == "library" || u.Contender == "cmd-server" || u.Contender == "handoverd-proxy"
		if n := u.Failures(); n > 0 && lossless {
			t.Errorf("%s under %s: %d requests failed: %v", u.Contender, u.Load, n, u.Failed)
		}
		if u.FirstAnswer <= 0 || u.OldMemory == 0 || u.NewMemory == 0 {
			t.Errorf("%s under %s: not everything was measured: %+v", u.Contender, u.Load, u)
		}
		if u.Load != quiet && (u.Requests == 0 || u.Steady.Count == 0) {
			t.Errorf("%s under %s: nobody asked: %+v", u.Contender, u.Load, u)
		}
	}
	for _, c := range r.Contenders {
		switch {
		case c.Missing != "":
			t.Logf("%s is missing: %s", c.Title, c.Missing)
		case measured[c.Name] == 0:
			t.Errorf("%s is neither missing nor measured", c.Title)
		}
	}
	for _, name := range builtHere {
		if measured[name] == 0 {
			t.Errorf("%s was not measured", name)
		}
	}
}

func checkParts(t *testing.T, r *report.Results) {
	if len(r.Timelines) < len(builtHere) || len(r.Passing) == 0 || len(r.Steady) < 3 || len(r.Idle) < 3 {
		t.Errorf("%d timelines, %d sizes of passing, %d and %d servers", len(r.Timelines), len(r.Passing), len(r.Steady), len(r.Idle))
	}
	for _, p := range r.Passing {
		if len(p.Bare) == 0 || len(p.Bare) != len(p.SCM) || p.Kind == "sockets" && (len(p.Between) == 0 || len(p.Listen) == 0 || len(p.Arrived) == 0 || len(p.Whole) == 0) {
			t.Errorf("passing %d %s: %+v", p.Count, p.Kind, p)
		}
	}
	for _, p := range append(r.Takeovers, r.Moves...) {
		if p.Error != "" || len(p.Times) == 0 {
			t.Errorf("size %d: %v %s", p.Size, p.Times, p.Error)
		}
	}
}
