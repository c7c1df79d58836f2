// Package scm sends and receives one message together with its open file
// descriptors over a connected Unix-domain socket of type SOCK_STREAM or
// SOCK_SEQPACKET.
//
// # Promise
//
// A message arrives with every descriptor that was sent with it, or Recv
// returns an error and everything that came is closed. Descriptors that the
// receiver did not make room for are closed and reported, never kept and never
// lost silently. A received descriptor is close-on-exec from the first instant.
// O_NONBLOCK is neither read nor changed: it lives in the open file
// description, so changing it on one side would change it for every process
// that holds the same file.
//
// Every blocking method obeys its context, both deadline and cancellation,
// also while it is blocked in the poller. A context that ends after a call has
// returned does not disturb a later call. In the steady state, that is with
// the same context or with one that cannot end, neither Send nor Recv
// allocates.
//
// # Refusals and limits
//
// The kernel takes at most [MaxFDs] descriptors in one message (unix(7)). An
// empty message is refused, because on SOCK_SEQPACKET it cannot be told from
// the end of the connection. SOCK_DGRAM is refused, because it has no
// connection and so no peer to authenticate.
//
// The package does not frame a stream: on SOCK_STREAM a Recv may return less
// than one Send wrote, or bytes of several Sends. What the kernel does
// guarantee is that descriptors come with the first byte they were sent with,
// and that bytes sent later than that message are left for the next Recv.
// SOCK_SEQPACKET keeps each message whole.
//
// Nothing else may read from the socket: a plain read(2) of a byte that
// carries descriptors closes them silently. That is why [NewConn] takes the
// connection over, and why there is no way to get it back.
//
// The package is not for network protocols, for datagrams, or for deciding
// what a descriptor means; and it knows nothing of who may send one. See
// [Conn.PeerCred], [Conn.PeerPidfd] and [Conn.SetPassRights] for that.
//
// # Ownership of descriptors
//
// Descriptors given to Send stay the caller's; they must stay open until Send
// returns, and may be closed then, as the message in flight holds references
// of its own. A caller that gets them from an [os.File] or a listener should
// send inside [syscall.RawConn.Control], so that they cannot be closed
// meanwhile. Descriptors returned by Recv and PeerPidfd are the caller's to
// close.
//
// # Platforms
//
// The implementation is for Linux. On other systems the package compiles, and
// [NewConn] and [Dial] return an error that is [errors.ErrUnsupported].
package scm
