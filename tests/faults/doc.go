// Package faults holds the fault matrix: a takeover between two real processes
// under load, in which one of them is killed, stopped, cut off, starved of
// descriptors or slowed down at each step of the protocol, and what became of
// ownership, of the requests and of what the survivors hold.
//
// Steps are reached, never slept for: the processes are built with the tag
// faults, and carry an agent (package agent) that tells of each step and can
// block at one. While one process is blocked, the other one goes as far as it
// can by itself; then the fault hits.
//
// A cell is one fault, at one step, hitting one of the two, with a number of
// sockets. What it has to come to is in expect; why, in docs/protocol.md. Apart
// from that, in every cell:
//
//   - within the bound exactly one process owns, and answers;
//   - of all accepts, in the order in which they happened, none is out of turn: a
//     process that has lost ownership accepts nothing more;
//   - nobody is refused while somebody holds the sockets;
//   - only requests that a killed process had accepted fail;
//   - the owner has as many descriptors and goroutines as without the fault;
//   - the next takeover works, and the last stop leaves no file.
//
// TestFaults runs a cell of each kind, and TestMatrix, which `make faults` runs,
// all of them, and writes docs/faults.md.
//
// Another program than the library one needs its own program value.
package faults
