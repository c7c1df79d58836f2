package main

import (
	"github.com/spf13/cobra"

	"github.com/handoverd/handoverd/handover"
)

func newHold(argv []string) *cobra.Command {
	o := newOptions()
	o.holds = true
	takeover := false
	cmd := &cobra.Command{
		Use:   "hold",
		Short: "own sockets for others, and serve nothing",
		Long: `Own sockets and serve nothing. Whoever starts with --holder and the path of this
process's control socket gets copies of its sockets, again and again. So a crash
of everything that serves loses no connection: they wait until something serves
again.

Without --listen it takes what a socket activator (systemd) passes. With
--takeover it replaces the holder that is there.`,
		Example: `  handoverd hold --socket /run/hold.sock --listen web=tcp://:8080 &
  handoverd takeover --or-serve --holder /run/hold.sock -- gunicorn app:app
  handoverd hold --socket /run/hold.sock --takeover      a new version of the holder`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mode := handover.StartOnly
			if takeover {
				mode = handover.TakeOverOnly
			}
			return o.serve(cmd, argv, mode)
		},
	}
	f := cmd.Flags()
	o.addSocket(f)
	o.addTakeover(f)
	o.addGeneration(f)
	f.BoolVar(&takeover, "takeover", false, "replace the holder that is there")
	f.BoolVar(&o.fdStore, "fd-store", false, "keep copies of the sockets in the service manager (FileDescriptorStoreMax=), which passes them to the next start")
	f.Var(&o.wait, "wait", "with --takeover: how long to try again while the holder is busy or not ready itself")
	complete(cmd)
	return cmd
}
