//go:build faults

package handover

// OnStep is there only in builds with the tag faults, whose tests kill, stop
// and starve a process at a chosen step. It is called at each step of a
// takeover, by the goroutine that takes it, with the number of the generation
// (0 while a successor has none) and the name of the step. It is set before
// Start.
var OnStep func(generation uint64, step string)

func at(generation uint64, step string) {
	if OnStep != nil {
		OnStep(generation, step)
	}
}
