// Package handover moves a set of named sockets from a running process to its
// successor, which may have been started by anyone: it need not be a child,
// nor in the same container, nor of the same binary. At every moment some
// process listens, so no connection is refused.
//
// The process that serves is the owner. It answers on a control socket, a path
// in the file system. A successor calls [Start] with that path, receives
// duplicates of all sockets (SCM_RIGHTS, unix(7)), asks for those it wants by
// name with [Generation.Listen], prepares, and calls [Generation.Ready]. The
// owner then stops accepting, and grants ownership. For a probation of some
// seconds it stays by, and takes the sockets back if the successor dies, falls
// silent or gives them back. After that it drains its connections and ends.
//
//	gen, err := handover.Start(ctx, handover.Config{Socket: "/run/app.sock"})
//	ln, err := gen.Listen("http", "tcp", ":8080") // inherited, or bound now
//	go srv.Serve(ln)                              // Accept waits for ownership
//	err = gen.Ready(ctx)                          // nil: it is ours
//	<-gen.Superseded()                            // a successor has it for good
//	gen.Drained(drain(srv))                       // finish what is in work
//	gen.Close()
//
// # Promises
//
// At most one generation accepts. Which one is decided by a word of memory that
// all generations share and that moves only by compare-and-swap, so that a
// process which was stopped and wakes up cannot act on stale knowledge; the
// messages only carry the news. See docs/architecture.md.
//
// Whatever one side does, dies or hangs, within the times of [Config] one live
// process owns the sockets; if none is left, a new start works without manual
// clean-up.
//
// A takeover changes nothing about the live sockets: flags (O_NONBLOCK),
// options, backlog and bound paths stay as they are.
//
// # Descriptors
//
// The Generation owns all descriptors. Those that arrive are close-on-exec from
// the first instant; those that nobody asked for are closed when ownership is
// granted, and named by [Generation.Unclaimed]. Listeners and packet sockets
// given to the application are the set's: closing one takes it out of the set.
// Files from [Generation.File] are duplicates, and the caller's to close.
//
// # Live connections
//
// What a generation has accepted may go on in its successor, alive. A listener
// from Listen has a method
//
//	MoveConn(ctx context.Context, c net.Conn, unread, state []byte) error
//
// that gives a connection to the successor once that one is settled, where it
// comes out of Accept of the listener with the same name. There it is a
// net.Conn that reads unread first, and has a method
//
//	Moved() (bare net.Conn, unread, state []byte)
//
// Package server uses both, for HTTP/1 by itself and for other protocols
// through StreamServer.Move. [Config].NoMove turns it off.
//
// # What it is not
//
// It knows nothing of HTTP and drains nothing: package server does that. It
// touches no signals, flags or environment variables, never exits the process,
// and logs only to the logger it is given. It needs Linux; elsewhere a first
// start works, without a control socket, and a takeover is
// [errors.ErrUnsupported].
package handover
