package child

import "sync"

// children are the processes that this process started and waits for. There
// is one such set in a process, as there is one set of children, and it holds
// for every Reaper.
var children struct {
	sync.Mutex
	pids map[int]struct{}
	poke chan struct{} // of the Reaper, if there is one: look again
}

// Own runs start, which starts a process, and keeps the Reaper from taking its
// exit status. release has to be called when the process was waited for. Start
// is not interrupted by another Own, so it has to return soon.
//
//	release, err := child.Own(func() (int, error) {
//		err := cmd.Start()
//		...
//		return cmd.Process.Pid, nil
//	})
//	...
//	cmd.Wait()
//	release()
func Own(start func() (pid int, err error)) (release func(), err error) {
	// The lock is held over fork and note: the process may end at once.
	children.Lock()
	defer children.Unlock()
	pid, err := start()
	if err != nil {
		return nil, err
	}
	if children.pids == nil {
		children.pids = make(map[int]struct{})
	}
	children.pids[pid] = struct{}{}
	return sync.OnceFunc(func() { disown(pid) }), nil
}

func disown(pid int) {
	children.Lock()
	defer children.Unlock()
	delete(children.pids, pid)
	// Its zombie may have hidden others, and an orphan may have got its pid.
	if children.poke != nil {
		select {
		case children.poke <- struct{}{}:
		default:
		}
	}
}
