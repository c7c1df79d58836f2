// Package server accepts connections, keeps track of them, and drains them
// without failing a request: the contract of facebookgo/httpdown on top of
// today's net/http.
//
// [Server] is for HTTP/1 and HTTP/2, [StreamServer] for any other protocol on
// stream connections. The package knows nothing of where a listener came from.
//
// # The drain
//
// Stop closes the listeners and lets what is open come to its end:
//
//   - Each HTTP/1 response whose handler starts from now on carries
//     Connection: close. Nothing is closed that may have a request on its way:
//     http.Server.Shutdown and SetKeepAlivesEnabled(false) do that, and each
//     busy client of a distant server then has one request failed.
//   - An idle connection lingers: it is closed when it has been used once more,
//     or when nothing has come for Server.Linger. A request of which the first
//     bytes are there is waited for.
//   - A new connection that has sent nothing is closed after Linger or five
//     seconds, whichever is shorter.
//   - HTTP/2 connections get a GOAWAY at once. Their streams finish, no stream
//     is reset, and net/http closes them one second after the last.
//   - Connections that a handler has hijacked are announced to
//     Server.OnHijackedDrain and waited for. Event streams and WebSockets do
//     well to watch Draining.
//   - What is left after StopTimeout is killed, and KillTimeout then bounds the
//     wait for it. Both together bound the whole stop, whatever blocks: a
//     handler, a hook, or a Close. Stop returns a [Report], and has left nothing
//     running behind but what the report counts as Remaining or Stuck.
//
// # Ownership
//
// Serve owns its listener and closes it. If somebody else has closed it first,
// because its socket has been handed over, Serve returns [ErrListenerClosed],
// and the connections are served on until Stop. Serve returns when a stop
// begins, not when it is over: the program must wait for Stop.
//
// A connection belongs to the server until it is hijacked. Then it is the
// hijacker's, who must close it, but a stop may still kill it.
//
// # Limits
//
// A connection is wrapped so that the end of a hijacked one is seen. A
// *net.TCPConn or *net.UnixConn keeps all its methods, sendfile and splice
// included, but what Hijack returns is not of that type itself: its NetConn
// method returns that. A Close of that inner connection is not seen. ConnState
// and ConnContext see the listener's own connection. A user's own connection
// type keeps CloseWrite, ConnectionState and ReadFrom.
//
// A *tls.Conn from a listener of tls.NewListener is not wrapped. Of these it is
// not known whether a request has begun to arrive. ServeTLS is better.
//
// A response whose header was complete before the drain cannot announce the
// close; its connection lingers. Also the answer to OPTIONS *, which net/http
// gives itself, does not announce it. A handler that sets Connection itself has
// its way. Of pipelined requests the ones behind the answer that closes are not
// handled, as HTTP says; no client but a pipelining one can notice.
//
// In TLS the bytes of a handshake cannot be told from those of a request. So a
// client that has shaken hands and sent a part of its very first request counts
// as silent when nothing more comes for five seconds. And a part of the next
// request that comes with the end of the last one counts as nothing when the
// rest does not come for the whole of Linger.
//
// The GOAWAY of net/http is a single one. It names the last stream that will be
// answered, so a stream that was opened while it was on its way is not
// processed and clients repeat it on a new connection, which RFC 9113 allows
// for every method. The announcement with a later second GOAWAY, which would
// spare them that, is not possible with net/http. An HTTP/2 connection whose
// handshake is not over when the drain begins gets its GOAWAY with its first
// response.
//
// OnHijackedDrain is not called for connections that are hijacked later.
// Whether a stream is idle a StreamServer cannot know: it waits for its
// handlers.
package server
