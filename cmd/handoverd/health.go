package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/handoverd/handoverd/handover"
)

func newHealth() *cobra.Command {
	o := newOptions()
	pid, serving := 0, false
	cmd := &cobra.Command{
		Use:   "health",
		Short: "tell whether the process of this container is the committed owner",
		Long: `For health checks and readiness probes of an engine. The exit code is 0 only if
the owner of the control socket is the process that is meant, and its ownership
is settled: it is not on probation, does not drain, and no successor has taken
over. In a container the process that is meant is the handoverd of the same pid
namespace; elsewhere, or where containers share one, name it with --pid.`,
		Example: `  HEALTHCHECK CMD ["/handoverd", "health"]        in a Dockerfile
  handoverd health --pid "$MAINPID"`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.finish(cmd); err != nil {
				return err
			}
			if pid == 0 && inFirstPidNamespace() {
				return usagef("--pid: in the first pid namespace there may be many: name the process that is meant")
			}
			st, err := o.operator().Status(cmd.Context())
			if err != nil {
				return err
			}
			if err := healthy(st, pid, serving); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "healthy: generation %d is %s\n", st.Generation, phaseText(st))
			return err
		},
	}
	o.addSocket(cmd.Flags())
	cmd.Flags().IntVar(&pid, "pid", 0, "the process that is meant (default: any of this pid namespace)")
	cmd.Flags().BoolVar(&serving, "serving", false, "accept an owner on probation, too")
	return cmd
}

// healthy tells what is wrong with the owner as a process that is meant by pid.
func healthy(st *handover.Status, pid int, serving bool) error {
	switch {
	case st.PeerPID == 0:
		return fmt.Errorf("unhealthy: the owner, generation %d, is a process of another pid namespace", st.Generation)
	case pid != 0 && st.PeerPID != pid:
		return fmt.Errorf("unhealthy: the owner, generation %d, is process %d, not %d", st.Generation, st.PeerPID, pid)
	case st.Phase == handover.PhaseOwner, st.Phase == handover.PhaseHanding, st.Phase == handover.PhaseGranting:
		return nil
	case st.Phase == handover.PhaseProbation && serving:
		return nil
	case st.Phase == handover.PhaseProbation:
		return errors.New("unhealthy: the owner is on probation; --serving would accept that")
	}
	return fmt.Errorf("unhealthy: the owner is %v", st.Phase)
}

// inFirstPidNamespace tells whether this process is in the one that the kernel
// started with, whose inode never changes: PROC_PID_INIT_INO in the kernel's
// proc_ns.h.
func inFirstPidNamespace() bool {
	name, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && strings.Contains(name, "4026531836")
}
