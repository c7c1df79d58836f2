package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/handoverd/handoverd/handover"
)

func newStop() *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "have the owner finish its requests and end, without a successor",
		Long: `Have the owner drain and end, and wait for that. Its sockets are closed: from
then on connections are refused. An interrupt ends the waiting, not the stop.`,
		Example: `  handoverd stop
  handoverd stop --socket /run/app/handoverd.sock`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.finish(cmd); err != nil {
				return err
			}
			return o.stop(cmd)
		},
	}
	o.addSocket(cmd.Flags())
	return cmd
}

func (o *options) stop(cmd *cobra.Command) error {
	ctx, release := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer release()
	console := newConsole(cmd.ErrOrStderr())
	var most int64
	report, err := o.operator().Stop(ctx, func(st handover.Stats) {
		most = max(most, st.Total())
		console.show(drainProgress("the owner", st, most))
	})
	console.clear()
	switch {
	case interrupted(ctx, err):
		return fmt.Errorf("waiting was interrupted, the owner goes on stopping: %w", err)
	case err != nil:
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "stopped: %s\n", reportText(report))
	return err
}

func newCommit() *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:   "commit",
		Short: "end the owner's probation in its favour",
		Long: `End the probation of the owner now: it keeps the sockets for good, and its
predecessor begins to drain.`,
		Example: "  handoverd commit",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.finish(cmd); err != nil {
				return err
			}
			if err := o.operator().Commit(cmd.Context()); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "committed: the owner keeps the sockets")
			return err
		},
	}
	o.addSocket(cmd.Flags())
	return cmd
}

func newRollback() *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "have the owner, on probation, give the sockets back",
		Long: `Have the owner give the sockets back to its predecessor, finish the requests
that it has, and end. That works as long as it is on probation.`,
		Example: "  handoverd rollback",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.finish(cmd); err != nil {
				return err
			}
			if err := o.operator().Rollback(cmd.Context()); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "rolled back: the predecessor serves again")
			return err
		},
	}
	o.addSocket(cmd.Flags())
	return cmd
}
