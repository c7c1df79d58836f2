package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/handoverd/handoverd/handover"
)

// A verdict is the outcome of one check.
type verdict string

// The verdicts. Only a fail keeps a takeover from being accepted.
const (
	verdictOK   verdict = "ok"
	verdictWarn verdict = "warn"
	verdictFail verdict = "FAIL"
)

// A finding is one line of the preflight.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Text    string  `json:"text"` // if it is not ok: what to do
}

// preflight gathers findings. It looks, and changes nothing.
type preflight struct {
	o        *options
	findings []finding
	code     int // of the first that failed
}

func newCheck() *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:   "check",
		Short: "tell whether a takeover would be accepted, without side effects",
		Long: `Look at everything that a takeover needs, and change nothing: the directory of
the control socket, the owner, permission, protocol, revision, network
namespace, file descriptors and names. The exit code is that of the takeover:
0 it would be accepted as far as can be told, 3 there is nobody, 4 it would be
refused, 5 the owner does not answer, 1 something else is in the way.`,
		Example: `  handoverd check && handoverd takeover
  handoverd check --revision 7 --listen web=tcp://:8080 --json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.finish(cmd); err != nil {
				return err
			}
			p := &preflight{o: o}
			p.run(cmd.Context())
			if err := p.print(cmd.OutOrStdout()); err != nil {
				return err
			}
			if p.code != exitDone {
				return codeError{errors.New("a takeover would not succeed now; see above for what to do"), p.code}
			}
			return nil
		},
	}
	o.addSocket(cmd.Flags())
	o.addTakeover(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print one JSON object")
	complete(cmd)
	return cmd
}

func (p *preflight) add(v verdict, check, format string, args ...any) {
	p.findings = append(p.findings, finding{check, v, fmt.Sprintf(format, args...)})
}

func (p *preflight) ok(check, format string, args ...any) { p.add(verdictOK, check, format, args...) }
func (p *preflight) warn(check, format string, args ...any) {
	p.add(verdictWarn, check, format, args...)
}

func (p *preflight) fail(code int, check, format string, args ...any) {
	p.add(verdictFail, check, format, args...)
	if p.code == exitDone {
		p.code = code
	}
}

func (p *preflight) print(w io.Writer) error {
	if p.o.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Accepted bool      `json:"accepted"`
			ExitCode int       `json:"exit_code"`
			Checks   []finding `json:"checks"`
		}{p.code == exitDone, p.code, p.findings})
	}
	for _, f := range p.findings {
		if _, err := fmt.Fprintf(w, "%-5s %-11s %s\n", f.Verdict, f.Check, f.Text); err != nil {
			return err
		}
	}
	return nil
}

func (p *preflight) run(ctx context.Context) {
	if !p.directory() {
		return
	}
	st, ok := p.owner(ctx)
	if !ok {
		return
	}
	p.phase(st)
	p.revision(st)
	p.namespace(st)
	p.headroom(st)
	p.names(st)
}

// directory looks at the directory of the control socket.
func (p *preflight) directory() bool {
	const check = "directory"
	dir := filepath.Dir(p.o.socket)
	st, err := os.Stat(dir)
	switch {
	case len(p.o.socket) > maxUnixPath:
		p.fail(exitFailure, check, "the path of the control socket has %d bytes, the kernel takes at most %d: choose a shorter one", len(p.o.socket), maxUnixPath)
	case errors.Is(err, fs.ErrNotExist):
		p.fail(exitNobody, check, "%s does not exist: nobody can own a socket there; create it, or in a container mount it from where the owner runs", dir)
	case err != nil:
		p.fail(exitFailure, check, "%v", err)
	case !st.IsDir():
		p.fail(exitFailure, check, "%s is no directory", dir)
	case st.Mode().Perm()&0o002 != 0 && st.Mode()&fs.ModeSticky == 0:
		p.fail(exitFailure, check, "%s is writable by everybody, who could replace the control socket: chmod o-w it, or choose another", dir)
	default:
		p.ok(check, "%s is there and not open to others", dir)
		return true
	}
	return false
}

// owner asks the owner for its status, which also shows that we are
// permitted, and which protocol is spoken.
func (p *preflight) owner(ctx context.Context) (*handover.Status, bool) {
	st, err := p.o.operator().Status(ctx)
	var refused *handover.RefusedError
	switch {
	case err == nil:
		p.ok("owner", "generation %d of %s answers", st.Generation, strings.TrimSpace(st.Program+" "+st.Build))
		p.ok("permission", "the owner lets this user talk to it")
		p.ok("protocol", "both sides speak version %d", st.Protocol)
		return st, true
	case errors.As(err, &refused) && refused.Code == handover.CodeUnauthorized:
		p.fail(exitRefused, "permission", "%s", refused.Message)
	case errors.As(err, &refused) && refused.Code == handover.CodeVersion:
		p.fail(exitRefused, "protocol", "%s", refused.Message)
	case errors.Is(err, handover.ErrUntrustedOwner):
		p.fail(exitRefused, "owner", "%v: see who that is, then allow it with --allow-uid", err)
	case errors.Is(err, handover.ErrNotPermitted):
		p.fail(exitRefused, "permission", "%v", err)
	default:
		code := exitCode(err)
		p.fail(code, "owner", "%s", describe(err))
	}
	return nil, false
}

func (p *preflight) phase(st *handover.Status) {
	const check = "phase"
	switch st.Phase {
	case handover.PhaseOwner:
		p.ok(check, "the owner is free to hand over")
	case handover.PhaseProbation:
		p.fail(exitRefused, check, "the owner is on probation for %s more: wait, give takeover --wait, or \"handoverd commit\"", seconds(st.Probation))
	case handover.PhasePreparing, handover.PhaseWaiting:
		p.fail(exitRefused, check, "the owner is not ready itself: wait, or give takeover --wait")
	default:
		p.fail(exitRefused, check, "the owner is %v: another takeover is under way; wait, or give takeover --wait", st.Phase)
	}
	if st.LastFailure != "" {
		p.warn("history", "the last takeover failed: %s", st.LastFailure)
	}
}

func (p *preflight) revision(st *handover.Status) {
	const check = "revision"
	mine := p.o.revision
	switch {
	case mine >= st.Revision:
		p.ok(check, "%d is not lower than the owner's %d", mine, st.Revision)
	case p.o.force:
		p.warn(check, "%d is lower than the owner's %d, and --force takes over all the same", mine, st.Revision)
	default:
		p.fail(exitRefused, check, "%d is lower than the owner's %d, so the owner takes this for an old version: raise --revision, or give --force", mine, st.Revision)
	}
}

// namespace compares the network namespace of the sockets with ours.
func (p *preflight) namespace(st *handover.Status) {
	const check = "namespace"
	mine, err := networkNamespace()
	if err != nil {
		p.warn(check, "cannot be told here: %v", err)
		return
	}
	var foreign []string
	for _, s := range st.Sockets {
		if s.Kind == handover.KindFile || isUnixPath(s.Network, s.Address) || s.Netns == 0 || s.Netns == mine {
			continue
		}
		foreign = append(foreign, s.Name)
	}
	switch {
	case len(foreign) == 0 && len(st.Namespace.Silent) > 0:
		p.warn(check, "device gone: no client reaches %s, since no network device that is up has its address: a takeover does not change that", strings.Join(st.Namespace.Silent, ", "))
	case len(foreign) == 0:
		p.ok(check, "the sockets are in the network namespace of this process")
	case len(st.Namespace.Silent) > 0 && p.o.foreignNetns.value != "allow":
		p.fail(exitRefused, check, "foreign and dead: %s: of another network namespace, which has lost its network device, so that no client reaches them: stop the owner and start afresh here", strings.Join(foreign, ", "))
	case p.o.foreignNetns.value == "allow":
		p.warn(check, "%s: of another network namespace; they go silent when that is removed", strings.Join(foreign, ", "))
	default:
		p.fail(exitRefused, check, "foreign: %s: of another network namespace, where they go silent when its container is removed: run both with --network host, or with --network container:NAME of a third container that stays, or give --foreign-netns allow", strings.Join(foreign, ", "))
	}
}

// isUnixPath tells whether a socket is found by a path, so that network
// namespaces do not matter.
func isUnixPath(network, address string) bool {
	return strings.HasPrefix(network, "unix") && address != "" && !strings.HasPrefix(address, "@")
}

// spareDescriptors is what a process needs besides the sockets: its files,
// its connections, and one message of descriptors in flight.
const spareDescriptors = 300

func (p *preflight) headroom(st *handover.Status) {
	const check = "descriptors"
	limit, err := descriptorLimit()
	if err != nil {
		p.warn(check, "the limit cannot be told here: %v", err)
		return
	}
	need := uint64(len(st.Sockets))
	switch {
	case limit < need+16:
		p.fail(exitFailure, check, "%d sockets, and at most %d files (RLIMIT_NOFILE): raise it with ulimit -n or LimitNOFILE=", need, limit)
	case limit < need+spareDescriptors:
		p.warn(check, "%d sockets, and at most %d files (RLIMIT_NOFILE), which leaves little for connections: raise it with ulimit -n or LimitNOFILE=", need, limit)
	default:
		p.ok(check, "%d sockets, and room for %d files", need, limit)
	}
}

// names compares what --listen names with what there is.
func (p *preflight) names(st *handover.Status) {
	const check = "names"
	specs := p.o.listen.specs
	if len(specs) == 0 {
		p.ok(check, "no --listen: all %d sockets are inherited", len(st.Sockets))
		return
	}
	for _, l := range specs {
		i := slices.IndexFunc(st.Sockets, func(s handover.SocketStatus) bool { return s.Name == l.name })
		if i < 0 {
			p.warn(check, "the owner has no socket %q: %s is opened anew", l.name, l)
			continue
		}
		s := st.Sockets[i]
		if (handover.KindPacket == s.Kind) != l.packet() || strings.HasPrefix(s.Network, "unix") != strings.HasPrefix(l.network, "unix") {
			p.warn(check, "%s: the owner's is %s %s, which is another kind: it is closed, and %s is opened anew", l.name, s.Network, s.Address, l)
			continue
		}
		p.ok(check, "%s: the owner has %s %s", l.name, s.Network, s.Address)
	}
	for _, s := range st.Sockets {
		if slices.ContainsFunc(specs, func(l listenSpec) bool { return l.name == s.Name }) {
			continue
		}
		switch p.o.unclaimedPolicy() {
		case handover.KeepUnclaimed:
			p.ok(check, "%s (%s %s) is not named by --listen: it is kept, unused", s.Name, s.Network, s.Address)
		case handover.RefuseUnclaimed:
			p.fail(exitRefused, check, "%s (%s %s) is not named by --listen: name it, or give --unclaimed close or keep", s.Name, s.Network, s.Address)
		default:
			p.warn(check, "%s (%s %s) is not named by --listen: it is closed at the takeover", s.Name, s.Network, s.Address)
		}
	}
}
