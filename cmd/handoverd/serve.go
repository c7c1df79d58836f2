package main

import (
	"github.com/spf13/cobra"

	"github.com/handoverd/handoverd/handover"
)

func newServe(argv []string) *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:   "serve [flags] [-- CMD ARGS...]",
		Short: "start as generation 1",
		Long: `Serve as the first generation. It refuses to start while somebody alive owns the
control socket: that one is taken over from instead.

Without --listen it takes what a socket activator (systemd) passes, or else
listens on tcp://:8080. It speaks HTTP/1.1 and HTTP/2, without TLS the latter
to clients that know beforehand. SIGTERM drains and ends; SIGUSR2 starts what
is now found under the program's path as a successor. Every flag can also be
given as a variable, as in HANDOVERD_DRAIN_TIMEOUT=30s.

With -- CMD that program serves: it inherits the sockets by the protocol of
systemd (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID) and is started again when it
crashes. SIGHUP, SIGUSR1 and SIGWINCH are passed on to it.`,
		Example: `  handoverd serve --socket /run/app/handoverd.sock
  handoverd serve --listen web=tcp://:8080 --listen dns=udp://127.0.0.1:5353
  handoverd serve --root /srv/www --tls-cert cert.pem --tls-key key.pem
  handoverd serve --proxy http://127.0.0.1:9000 --drain-timeout 30s
  handoverd serve --listen web=tcp://:8000 --ready notify -- gunicorn app:app`,
		Args: onlyProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.argv = args
			return o.serve(cmd, argv, handover.StartOnly)
		},
	}
	o.addServing(cmd.Flags())
	complete(cmd)
	return cmd
}

// serve is what serve and takeover have in common.
func (o *options) serve(cmd *cobra.Command, argv []string, mode handover.Mode) error {
	if err := o.finish(cmd); err != nil {
		return err
	}
	child, err := newLauncher(argv, cmd, o.argv)
	if err != nil {
		return err
	}
	stop, err := o.reap()
	if err != nil {
		return err
	}
	defer stop()
	a, err := newApp(o, newConsole(cmd.ErrOrStderr()), child)
	if err != nil {
		return err
	}
	return a.run(cmd.Context(), mode)
}
