package main

import (
	"github.com/spf13/cobra"

	"github.com/handoverd/handoverd/handover"
)

func newTakeover(argv []string) *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:   "takeover [flags] [-- CMD ARGS...]",
		Short: "take over from whoever serves now",
		Long: `Take the sockets over from the owner of the control socket, serve, and go on as
the next generation. Until this process has said that it is ready, and for the
time of its probation, the predecessor can serve on as if nothing had happened.

Without --listen everything is inherited. With --listen the sockets that it
names are inherited, or opened if there are none with that name, and all others
are closed (see --unclaimed).

With -- CMD that program serves: it is started with the inherited sockets, and
when it is ready (--ready) ownership is taken over. The old program is told to
stop only after the probation; if the new one does not get ready or ends, the
old one was never touched.`,
		Example: `  handoverd takeover
  handoverd takeover --or-serve --wait 30s     in a unit or a container: first start or update
  handoverd takeover --probation 30s           then "handoverd commit" or "handoverd rollback"
  handoverd takeover --ready http://127.0.0.1:8000/ -- gunicorn app:app`,
		Args: onlyProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.argv = args
			mode := handover.TakeOverOnly
			if o.orServe {
				mode = handover.TakeOverOrStart
			}
			return o.serve(cmd, argv, mode)
		},
	}
	o.addServing(cmd.Flags())
	cmd.Flags().BoolVar(&o.orServe, "or-serve", false, "start as generation 1 if there is nobody to take over from")
	complete(cmd)
	return cmd
}
