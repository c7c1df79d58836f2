package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/handoverd/handoverd/tests/bench/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	short   bool
	rounds  int
	only    string
	parts   string
	loads   string
	fetch   bool
	out     string
	render  string
	confirm string
}

func command(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.BoolVar(&o.short, "short", false, "do everything once, in less than a minute; the figures mean nothing")
	f.IntVar(&o.rounds, "rounds", 0, "how often each contender is replaced under the main loads (default 5)")
	f.StringVar(&o.only, "only", "", "measure only contenders with these `NAMES`, separated by commas")
	f.StringVar(&o.parts, "parts", "", "measure only these `PARTS`: upgrades, passing, scaling, steady, idle")
	f.StringVar(&o.loads, "loads", "", "upgrade only under these `LOADS`")
	f.BoolVar(&o.fetch, "fetch", true, "fetch the module of a contender that the machine does not have")
	f.StringVar(&o.out, "o", "", "`DIRECTORY` for the page, plots and figures; its benchmarks.json is what -render and -confirm read")
	f.StringVar(&o.render, "render", "", "measure nothing: render the results in `FILE`")
	f.StringVar(&o.confirm, "confirm", "", "compare only where the results in `FILE` say the same")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%q: there are only flags", f.Arg(0))
	}
	results, err := o.results(ctx)
	if err != nil {
		return err
	}
	var second *report.Results
	if o.confirm != "" {
		if second, err = report.Read(o.confirm); err != nil {
			return err
		}
	}
	if o.out == "" {
		return report.Page(os.Stdout, results, second)
	}
	return report.WriteAll(o.out, results, second)
}

// results measures or reads.
func (o *options) results(ctx context.Context) (*report.Results, error) {
	if o.render != "" {
		return report.Read(o.render)
	}
	r, err := measure(ctx, o)
	if err != nil || o.out == "" {
		return r, err
	}
	// Kept even if they cannot be rendered.
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return nil, err
	}
	return r, r.Write(filepath.Join(o.out, report.Figures))
}
