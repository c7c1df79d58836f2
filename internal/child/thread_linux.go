package child

import "runtime"

// A thread is one of the operating system's that lives until it is closed.
// What is forked there may ask to be told when its parent dies: the kernel
// takes the thread that forked for the parent (PR_SET_PDEATHSIG(2const)), and
// the runtime may end others at any time.
type thread struct {
	jobs chan func()
	done chan struct{}
}

func newThread() *thread {
	t := &thread{jobs: make(chan func()), done: make(chan struct{})}
	go t.run()
	return t
}

func (t *thread) run() {
	defer close(t.done)
	runtime.LockOSThread()
	// Unlocked, it goes back to the runtime, rather than ending at once.
	defer runtime.UnlockOSThread()
	for f := range t.jobs {
		f()
	}
}

// do runs f there and waits for it.
func (t *thread) do(f func()) {
	ran := make(chan struct{})
	t.jobs <- func() { defer close(ran); f() }
	<-ran
}

func (t *thread) close() {
	close(t.jobs)
	<-t.done
}
