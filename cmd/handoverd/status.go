package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoverd/handoverd/handover"
)

// watchInterval is how often status --watch looks.
const watchInterval = time.Second

func newStatus() *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show who serves, who drains, every socket and the connections",
		Example: `  handoverd status
  handoverd status --watch
  handoverd status --json | jq .generation`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.finish(cmd); err != nil {
				return err
			}
			if o.watch {
				return o.watchStatus(cmd)
			}
			st, err := o.operator().Status(cmd.Context())
			if err != nil {
				return err
			}
			return o.printStatus(cmd.OutOrStdout(), st)
		},
	}
	o.addSocket(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&o.watch, "watch", false, "look again every second until interrupted; with --json one object a line")
	return cmd
}

func (o *options) printStatus(w io.Writer, st *handover.Status) error {
	if !o.json {
		return writeStatus(w, st, time.Now())
	}
	enc := json.NewEncoder(w)
	if !o.watch {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(st)
}

// watchStatus shows the status again and again. Only the first look has to
// succeed: an owner may end and another one start.
func (o *options) watchStatus(cmd *cobra.Command) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := cmd.OutOrStdout()
	screen := !o.json && newConsole(out).terminal
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		st, err := o.operator().Status(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case screen:
			// Home, and after the text clear the rest: nothing flickers.
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		case !o.json && !first:
			fmt.Fprintln(out)
		}
		if err == nil {
			err = o.printStatus(out, st)
			if err != nil {
				return err
			}
		} else {
			fmt.Fprintln(cmd.ErrOrStderr(), "handoverd: "+describe(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// interrupted tells whether a command ended because its user ended it.
func interrupted(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled)
}
