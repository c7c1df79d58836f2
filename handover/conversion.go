package handover

import (
	"runtime"
	"sync"
)

// claimInherited gives the descriptor to package net, if the conversions have
// not done so yet. With an error it stays as it was.
func (g *Generation) claimInherited(s *socket) error {
	s.convert(nil)
	if s.converted != nil {
		return s.converted
	}
	s.Address = s.addr().String()
	return nil
}

// convert gives the descriptor to package net, once. c may be nil.
func (s *socket) convert(c *converter) {
	s.conversion.Do(func() {
		if c == nil {
			if c, s.converted = newConverter(); s.converted != nil {
				return
			}
			defer c.close()
		}
		ln, pc, err := c.convert(s.fd, s.Kind)
		if err == nil {
			s.fd = -1
			if err = s.hold(ln, pc); err != nil {
				closeConn(ln, pc)
			}
		}
		s.converted = err
	})
}

// conversions convert what is received ahead of the calls to Listen, on all
// cores: for each socket the kernel is asked about ten questions.
type conversions struct {
	todo    chan *socket
	workers sync.WaitGroup
}

func startConversions(n int) *conversions {
	c := &conversions{todo: make(chan *socket, n)}
	for range runtime.GOMAXPROCS(0) {
		c.workers.Go(c.work)
	}
	return c
}

func (c *conversions) work() {
	slot, err := newConverter()
	if err != nil {
		return // Listen converts, or tells why not
	}
	defer slot.close()
	for s := range c.todo {
		s.convert(slot)
	}
}

// finish waits for what has been begun.
func (c *conversions) finish() {
	if c != nil {
		close(c.todo)
		c.workers.Wait()
	}
}
