package server

import (
	"errors"
	"net"
	"net/http"
)

// ErrServerClosed is returned by the Serve methods once Stop, Shutdown or Close
// has been called. It is net/http's own.
var ErrServerClosed = http.ErrServerClosed

// ErrListenerClosed is returned by the Serve methods when somebody else has
// closed the listener: it was taken away, for example by a handover. What has
// been accepted is still being served, and Stop must still be called to drain
// it. For errors.Is it is both ErrServerClosed, the orderly end of accepting,
// and net.ErrClosed.
var ErrListenerClosed error = listenerClosedError{}

type listenerClosedError struct{}

func (listenerClosedError) Error() string {
	return "server: listener closed before Stop; open connections are served until Stop"
}

func (listenerClosedError) Is(err error) bool {
	return err == ErrServerClosed || err == net.ErrClosed
}

// A listener is a user's listener whose connections are registered before
// anybody else sees them.
type listener struct {
	net.Listener
	reg    *registry
	opaque bool // TLS is spoken on what it accepts
	frugal bool // nobody else sets deadlines on what it accepts

	times timeouts
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, l.acceptError(err)
		}
		if c, ok := l.wrap(raw); ok {
			return c, nil
		}
		raw.Close()
	}
}

// acceptError names the end of accepting by its reason.
func (l *listener) acceptError(err error) error {
	switch {
	case l.reg.phase.Load() != serving:
		return ErrServerClosed
	case errors.Is(err, net.ErrClosed):
		return ErrListenerClosed
	}
	return err
}
