// Package report is what a run of the benchmark has measured, and turns it into
// a page, plots and a file. Nothing is in the page that is not in the results:
// its comparisons are computed, and only those are made that a second run
// confirms.
package report

import (
	"encoding/json"
	"os"
	"time"
)

// Results are all figures of one run. Durations are in nanoseconds.
type Results struct {
	Machine    Machine         `json:"machine"`
	Started    time.Time       `json:"started"`
	Took       time.Duration   `json:"took_ns"`
	Short      bool            `json:"short,omitempty"` // too short to mean anything
	Settings   Settings        `json:"settings"`
	Contenders []Contender     `json:"contenders"`
	Loads      []Load          `json:"loads"`
	Upgrades   []Upgrade       `json:"upgrades"`
	Timelines  []Timeline      `json:"timelines"`
	Passing    []Passing       `json:"passing"`
	RoundTrips []time.Duration `json:"round_trips_ns"` // a message to another process that sleeps, and its answer
	Takeovers  []Point         `json:"takeovers"`      // of Size sockets, from the dial to the grant
	Moves      []Point         `json:"moves"`          // of Size idle connections, until the old process has none
	Steady     []Steady        `json:"steady"`
	Idle       []Idle          `json:"idle"`
}

// Machine is where the run was made, and of what.
type Machine struct {
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	Memory   int64  `json:"memory_bytes"`
	Kernel   string `json:"kernel"`
	System   string `json:"system"`
	Go       string `json:"go"`
	Revision string `json:"revision"` // of the sources
}

// Settings are the times that all rounds have in common.
type Settings struct {
	Steady    time.Duration `json:"steady_ns"`    // looked at before the upgrade
	Window    time.Duration `json:"window_ns"`    // looked at from the trigger on
	Probation time.Duration `json:"probation_ns"` // of handoverd
	Patience  time.Duration `json:"patience_ns"`  // within which the old process should have ended
	Slot      time.Duration `json:"slot_ns"`      // of a timeline
}

// A Group is contenders that do the same and can be compared with each other.
type Group string

// The groups.
const (
	Services Group = "services" // the same handler in the process that is replaced
	Proxies  Group = "proxies"  // in front of the same server
	Pythons  Group = "pythons"  // gunicorn with the same application
)

// A Contender is a way to replace a server.
type Contender struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Group   Group  `json:"group"`
	Ours    bool   `json:"ours,omitempty"`
	How     string `json:"how"`               // what is done for an upgrade, from the trigger on
	Version string `json:"version,omitempty"` // of what it is made of
	Missing string `json:"missing,omitempty"` // why it was not measured
}

// A Load is what clients do meanwhile.
type Load struct {
	Name  string `json:"name"`
	About string `json:"about"`
	Keeps bool   `json:"keeps"` // its clients keep their connections
	Plain bool   `json:"plain"` // HTTP/1.1 without TLS
}

// An Upgrade is one replacement of a server under a load.
type Upgrade struct {
	Contender string `json:"contender"`
	Load      string `json:"load"`
	Round     int    `json:"round"`
	Error     string `json:"error,omitempty"` // why it was not one; then nothing else counts

	Requests    int64            `json:"requests"`               // from the trigger on
	Failed      map[string]int64 `json:"failed,omitempty"`       // of these, by kind
	FailedEarly int64            `json:"failed_early,omitempty"` // before the trigger
	Faults      int64            `json:"client_faults,omitempty"`
	Announced   int64            `json:"announced_reconnects"`   // after Connection: close or GOAWAY
	Unannounced int64            `json:"unannounced_reconnects"` // after a close that came by itself

	Steady  Latency `json:"steady"`
	Upgrade Latency `json:"upgrade"`

	FirstAnswer  time.Duration `json:"first_answer_ns"`             // of the new process, from the trigger
	ReadyToOwner time.Duration `json:"ready_to_owner_ns,omitempty"` // 0: not known
	OldExit      time.Duration `json:"old_exit_ns,omitempty"`       // from the trigger; 0: it has not ended
	OldMemory    int64         `json:"old_memory_bytes"`            // proportional set size of all its processes
	NewMemory    int64         `json:"new_memory_bytes"`
}

// Failures is how many requests the upgrade has failed.
func (u Upgrade) Failures() (n int64) {
	for _, k := range u.Failed {
		n += k
	}
	return n
}

// Reconnects is how many connections clients had to make anew.
func (u Upgrade) Reconnects() int64 { return u.Announced + u.Unannounced }

// Latency is that of the requests in a stretch of time.
type Latency struct {
	Count int64         `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P99   time.Duration `json:"p99_ns"`
	P999  time.Duration `json:"p999_ns"`
	Max   time.Duration `json:"max_ns"`
}

// A Timeline is the latency around upgrades, all rounds together.
type Timeline struct {
	Contender string `json:"contender"`
	Load      string `json:"load"`
	Rounds    int    `json:"rounds"`
	Slots     []Slot `json:"slots"`
}

// A Slot is a stretch of a timeline.
type Slot struct {
	From   time.Duration `json:"from_ns"` // the trigger
	Count  int64         `json:"count"`
	P50    time.Duration `json:"p50_ns"`
	P99    time.Duration `json:"p99_ns"`
	Max    time.Duration `json:"max_ns"`
	Failed int64         `json:"failed"`
}

// Passing is what it takes to pass descriptors, by hand and by this project.
// Each slice has a value per repetition, those in one process side by side.
type Passing struct {
	Kind  string `json:"kind"` // sockets or connections
	Count int    `json:"count"`

	Bare []time.Duration `json:"bare_ns"` // sendmsg and recvmsg in one process
	SCM  []time.Duration `json:"scm_ns"`  // Send and Recv in one process

	Between []time.Duration `json:"between_ns,omitempty"` // connect to the last recvmsg, by system calls, in a new process
	Listen  []time.Duration `json:"listen_ns,omitempty"`  // the same, and net.FileListener and an accept for each
	Arrived []time.Duration `json:"arrived_ns,omitempty"` // dial to the last socket, by package handover, in a new process
	Whole   []time.Duration `json:"whole_ns,omitempty"`   // dial to grant, with an accept pending on each
}

// A Point is one size of what is scaled.
type Point struct {
	Size  int             `json:"size"`
	Times []time.Duration `json:"times_ns"`
	Error string          `json:"error,omitempty"`
}

// Steady is how a server does while nobody takes over, turn by turn.
type Steady struct {
	Name  string    `json:"name"`
	Rates []float64 `json:"requests_per_second"`
	Costs []float64 `json:"cpu_ns_per_request"`
}

// Idle is what an idle connection costs the server's process.
type Idle struct {
	Name        string    `json:"name"`
	Connections int       `json:"connections"`
	Bytes       []float64 `json:"bytes_per_connection"`
}

// Write writes the results to a file.
func (r *Results) Write(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// Read reads results.
func Read(path string) (*Results, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Results)
	return r, json.Unmarshal(b, r)
}

// contender finds one by its name.
func (r *Results) contender(name string) *Contender {
	for i := range r.Contenders {
		if r.Contenders[i].Name == name {
			return &r.Contenders[i]
		}
	}
	return nil
}

// upgrades are the successful ones of a contender under a load.
func (r *Results) upgrades(contender, load string) (all []Upgrade) {
	for _, u := range r.Upgrades {
		if u.Contender == contender && u.Load == load && u.Error == "" {
			all = append(all, u)
		}
	}
	return all
}
