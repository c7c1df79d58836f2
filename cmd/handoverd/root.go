package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// newRoot makes the tree of commands. args is the whole command line, with
// the program's name.
func newRoot(args []string, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "handoverd",
		Short: "serve, and hand the listening sockets over to the next version",
		Long: `handoverd serves HTTP and hands its listening sockets over to a newer process,
in another container if you like, without refusing a connection or failing a
request. The new process asks; the old one lends its sockets, watches the new
one for a moment, finishes its own requests and ends.`,
		Example: `  handoverd serve --listen tcp://:8080   start, as generation 1
  handoverd takeover                     take over, as generation 2
  handoverd status                       who serves, who drains, how many connections
  handoverd stop                         finish all requests and end`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          noCommand,

		SuggestionsMinimumDistance: 2,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see %q", err, cmd.CommandPath()+" --help")
	})
	for _, c := range commands(args) {
		root.AddCommand(c)
	}
	// What makes the scripts of shells has to know all commands, and the others
	// need not wait for it.
	root.CompletionOptions.DisableDefaultCmd = len(root.Commands()) == 1
	return root
}

// commands makes the command that the command line names, or all, if it names none
// of them: the flags of all take longer to make than a takeover should.
func commands(args []string) (all []*cobra.Command) {
	constructors := []struct {
		name string
		make func() *cobra.Command
	}{
		{"serve", func() *cobra.Command { return newServe(args) }},
		{"takeover", func() *cobra.Command { return newTakeover(args) }},
		{"hold", func() *cobra.Command { return newHold(args) }},
		{"health", newHealth},
		{"status", newStatus},
		{"stop", newStop},
		{"commit", newCommit},
		{"rollback", newRollback},
		{"check", newCheck},
		{"version", newVersion},
	}
	for _, c := range constructors {
		if len(args) > 1 && args[1] == c.name {
			return []*cobra.Command{c.make()}
		}
	}
	for _, c := range constructors {
		all = append(all, c.make())
	}
	return all
}

// noCommand answers a command line that names no command, or one that does
// not exist.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		text := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text = "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return usagef("unknown command %q%s; see \"handoverd help\"", args[0], text)
	}
	cmd.SetOut(cmd.ErrOrStderr())
	if err := cmd.Help(); err != nil {
		return err
	}
	return usagef("no command given")
}

// onlyProgram is for commands that run another program, if one follows "--".
func onlyProgram(cmd *cobra.Command, args []string) error {
	if len(args) == 0 && cmd.ArgsLenAtDash() == 0 {
		return usagef("no program follows --: name one, or leave -- out to serve the built-in site")
	}
	if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
		return usagef("%s takes no arguments but a program after --, and got %q; see %q", cmd.CommandPath(), args[0], cmd.CommandPath()+" --help")
	}
	return nil
}

// noArguments is for commands that take flags only.
func noArguments(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	}
	return usagef("%s takes no arguments, only flags, but got %q; see %q", cmd.CommandPath(), args[0], cmd.CommandPath()+" --help")
}
