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
//   - A plaintext HTTP/1 connection whose listener is a [Mover], as those of
//     package handover are, goes on in the successor, alive: at once if it is
//     idle or has sent nothing or half a request's head, else after its answer.
//     Its client notices nothing. What follows is for all others, and for those
//     that the successor does not take.
//   - Each HTTP/1 response whose handler starts from now on carries
//     Connection: close. Nothing is closed that may have a request on its way:
//     http.Server.Shutdown and SetKeepAlivesEnabled(false) do that, and each
//     busy client of a distant server then has one request failed.
//   - An idle connection lingers: it is closed when it has been used once more,
//     or when nothing has come for Server.Linger. A request of which the first
//     bytes are there is waited for.
//   - A new connection that has sent nothing is closed after Linger or five
//     seconds, whichever is shorter. In TLS one that has begun its handshake
//     lingers like an idle one.
//   - HTTP/2 connections get the two GOAWAYs of RFC 9113, section 6.8. The first
//     refuses nothing. The second follows as soon as every client has answered
//     a PING, or after ten seconds or half of StopTimeout, whichever is shorter,
//     and names the last stream that will be answered. All streams finish, none
//     is reset, and net/http closes each connection one second after its last.
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
// A hijacked connection that is neither closed nor kept by anybody stays open: a
// bare http.Server leaves it to the garbage collector, but a Server keeps it, to
// be able to drain it.
//
// A *tls.Conn from a listener of tls.NewListener is not wrapped. Of these it is
// not known whether a request has begun to arrive. ServeTLS is better.
//
// A handler that was running when the drain began can announce the close only if
// it has written nothing when it returns. Otherwise its connection lingers. A
// request for an upgrade, and OPTIONS *, which net/http answers itself, do not
// announce it either. A handler that sets Connection itself has its way. Of
// pipelined requests the ones behind the answer that closes are not handled, as
// HTTP says; no client but a pipelining one can notice.
//
// A connection is closed at the end of its linger time if nothing has arrived at
// this machine. A request that is still on its way then is lost, as at the end
// of every idle timeout of HTTP/1. Only a longer Linger helps.
//
// In TLS the bytes of a handshake cannot be told from those of a request. So the
// first part of the very first request does not keep a connection from being
// closed after Linger, counted from the last bytes that came. And up to three
// bytes of a next request that come together with the last one count as nothing.
//
// The first GOAWAY is written between two frames of net/http's HTTP/2, for which
// all its connections are served by the function that net/http has for
// unencrypted ones. An implementation that the user has installed, as
// golang.org/x/net/http2.ConfigureServer does, sends its GOAWAYs itself, at the
// beginning of the drain or with its next response. If it sends only the one
// that names the last stream, then a stream that was opened while that was on
// its way is not processed. Its client may repeat it, whatever the method, but
// not every client does, and none can when it has no copy of the body. The same
// goes for a client that takes longer than that to answer a PING.
//
// Go's own HTTP/2 client fails a request with a body and without GetBody itself,
// before it has sent anything, if a GOAWAY arrives when it has chosen the
// connection and not opened the stream ("cannot rewind body after connection
// loss", go.dev/issue/62450). No server can help it.
//
// OnHijackedDrain is not called for connections that are hijacked later.
// Whether a connection is idle a StreamServer cannot know: it waits for its
// handlers.
package server
