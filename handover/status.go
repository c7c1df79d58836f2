package handover

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"time"
)

// Status is an owner's account of itself and of the generations around it.
type Status struct {
	Protocol    int             `json:"protocol"`
	Generation  uint64          `json:"generation"`
	Phase       Phase           `json:"phase"`
	Program     string          `json:"program"`
	Build       string          `json:"build,omitempty"`
	Revision    uint64          `json:"revision,omitempty"`
	PID         int             `json:"pid"`                // in the owner's own pid namespace
	PeerPID     int             `json:"peer_pid,omitempty"` // in the pid namespace of whoever asks; 0 if not visible there
	Started     time.Time       `json:"started"`
	Owner       time.Time       `json:"owner_since,omitzero"`
	Probation   time.Duration   `json:"probation_left_ns,omitempty"`
	Stats       Stats           `json:"stats"`
	Namespace   NamespaceStatus `json:"namespace,omitzero"`
	Sockets     []SocketStatus  `json:"sockets"`
	Unclaimed   []Socket        `json:"unclaimed,omitempty"` // what this generation closed at its takeover
	Successor   *PeerStatus     `json:"successor,omitempty"`
	Draining    []PeerStatus    `json:"draining,omitempty"` // earlier generations that still drain
	LastFailure string          `json:"last_failure,omitempty"`
}

// Socket names a descriptor of the set.
type Socket struct {
	Name    string `json:"name"`
	Kind    Kind   `json:"kind"`
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"`
}

// SocketStatus is a socket with what the kernel says of it.
type SocketStatus struct {
	Socket
	Cookie  uint64 `json:"cookie"`
	Netns   uint64 `json:"netns_cookie,omitempty"`
	Kept    bool   `json:"kept,omitempty"`         // inherited, and not used by this generation
	Queue   *int   `json:"accept_queue,omitempty"` // TCP listeners
	Backlog *int   `json:"backlog,omitempty"`
}

// PeerStatus is what is known of another generation.
type PeerStatus struct {
	Generation uint64          `json:"generation"`
	Phase      Phase           `json:"phase"`
	Program    string          `json:"program,omitempty"`
	Build      string          `json:"build,omitempty"`
	PID        int             `json:"pid,omitempty"` // as that process tells it
	Stats      Stats           `json:"stats"`
	Report     json.RawMessage `json:"report,omitempty"` // of a finished drain
	Lost       bool            `json:"lost,omitempty"`   // ended without a report
}

// pages cuts a status into such that each fits a frame, whatever the lengths
// of names and addresses. merge puts them together again.
func (s Status) pages() []Status {
	const most = 24
	all := []Status{s}
	first := &all[0]
	first.Sockets, first.Unclaimed, first.Draining = nil, nil, nil
	for part := range slices.Chunk(s.Sockets, most) {
		all = append(all, Status{Sockets: part})
	}
	for part := range slices.Chunk(s.Unclaimed, most) {
		all = append(all, Status{Unclaimed: part})
	}
	for i := range s.Draining {
		all = append(all, Status{Draining: s.Draining[i : i+1]})
	}
	return all
}

func (s *Status) merge(page Status) {
	s.Sockets = append(s.Sockets, page.Sockets...)
	s.Unclaimed = append(s.Unclaimed, page.Unclaimed...)
	s.Draining = append(s.Draining, page.Draining...)
}

// stats asks the application for its numbers. What would not fit a frame is
// left out.
func (g *Generation) stats() Stats {
	if g.cfg.Stats == nil {
		return Stats{}
	}
	st := g.cfg.Stats()
	if err := st.check(); err != nil {
		g.log.Warn("Config.Stats", "error", err)
		st.Connections, st.Ended = nil, nil
	}
	return st
}

func (g *Generation) status() Status {
	st := Status{
		Protocol: protocolVersions[0], Generation: g.number, Phase: g.phase,
		Program: g.cfg.Program, Build: g.cfg.Build, Revision: g.cfg.Revision,
		PID: os.Getpid(), Started: g.started, Owner: g.owner,
		Unclaimed: slices.Clone(g.unclaimed),
	}
	if g.phase == PhaseProbation {
		st.Probation = max(0, time.Until(g.probation))
	}
	st.Stats = g.stats()
	for _, s := range g.sockets {
		st.Sockets = append(st.Sockets, s.status())
	}
	if g.phase.Owns() {
		for _, name := range slices.Sorted(maps.Keys(g.inherited)) {
			s := g.inherited[name].status()
			s.Kept = true
			st.Sockets = append(st.Sockets, s)
		}
	}
	if g.takeover != nil {
		p := g.takeover.peer
		p.Phase = PhasePreparing
		st.Successor = &p
	}
	for _, p := range g.draining {
		st.Draining = append(st.Draining, *p)
	}
	slices.SortFunc(st.Draining, func(a, b PeerStatus) int { return int(a.Generation) - int(b.Generation) })
	if g.failure != nil {
		st.LastFailure = shorten(g.failure.Error())
	}
	return st
}
