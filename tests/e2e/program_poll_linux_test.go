package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// handoverd holds the listener of its program and is not woken when somebody
// connects: that costs a wake-up for each connection, which the program pays
// for. So no epoll instance of it watches the listener: proc_pid_fdinfo(5).
func TestProgramsListenerDoesNotWakeHandoverd(t *testing.T) {
	s := &stage{bench: newBench(t)}
	t.Cleanup(s.sweep)
	path := s.path("program")
	buildProgram(t, path)
	p := s.serve("--listen", s.listener(), "--", path)
	wantUnwatched(t, s, p)
	p = s.takeover("--probation=100ms", "--", path)
	s.awaitOwner(2)
	wantUnwatched(t, s, p)
	s.end(p)
}

func wantUnwatched(t *testing.T, s *stage, p *process) {
	t.Helper()
	listeners := s.listeners(p.pid())
	if len(listeners) == 0 {
		t.Fatal("handoverd holds no listener")
	}
	target := map[string]string{}
	for _, d := range descriptors(t, p.pid()) {
		fd, to, _ := strings.Cut(d, " ")
		target[fd] = to
	}
	for fd, to := range target {
		if !strings.Contains(to, "eventpoll") {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", p.pid(), fd))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			for _, l := range listeners {
				if len(f) > 1 && f[0] == "tfd:" && target[f[1]] == l {
					t.Errorf("handoverd, pid %d, watches descriptor %s, which is the program's listener", p.pid(), f[1])
					break
				}
			}
		}
	}
}
