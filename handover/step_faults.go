//go:build faults

package handover

// OnStep is there only in builds with the tag faults, whose tests kill, stop
// and starve a process at a chosen step. It is called at each step of a
// takeover, by the goroutine that takes it, with the number of the generation
// (0 while a successor has none) and the name of the step. It may block. It is
// set before Start.
//
// The step "accept" is each return of a listener's accept with a connection. Its
// goroutine still counts as inside the gate, so that ownership cannot have moved
// since.
var OnStep func(generation uint64, step string)

func at(generation uint64, step string) {
	if OnStep != nil {
		OnStep(generation, step)
	}
}
