// Package load is an HTTP load generator that tells the truth about a server
// that is being replaced.
//
// It speaks HTTP/1.1 and HTTP/2 over its own connections, because net/http's
// client repeats a request silently when an idle connection turns out to be
// closed, or a GOAWAY has refused its stream, and that is precisely the failure
// a handover must not cause. A request here is sent once. If no whole, correct
// answer to that very request comes back, it is counted as failed, under the
// reason.
//
// What is checked on each answer: the status is 200, the X-Request-Id is the
// one this request carried (so an answer meant for another request is found),
// and the body is the request's body, byte for byte. With HTTP/2 all frames of
// a connection have to follow the rules besides. What only the server's side
// can tell, whether a request was executed twice, a Ledger counts.
//
// Every request ends in exactly one outcome, so
//
//	Requests == OK + Failed() + ClientFault + Aborted
//
// holds for every Result, live or final.
//
// # Connections that change hands
//
// HTTP/1.1 requests can be cut into pieces anywhere (Config.CutRatio), or sent
// several at once (Config.PipelineRatio). A server that hands over what it has
// half read, and loses a byte or serves one twice, is found by both.
//
// An HTTP/2 client has several streams open. When a GOAWAY has come, or the end
// of the connection, it opens its next stream on a new connection at once; the
// old one finishes its streams.
//
// # Requests that a server may turn away
//
// A server may close a connection and announce it, by Connection: close or a
// GOAWAY, and HTTP lets it drop what the client had sent behind: pipelined
// requests, streams above the last one of the GOAWAY. Clients should repeat
// these. As this one does not, they have failed too, but are counted apart, as
// BehindClose and GoAwayRefused.
//
// # Limits
//
// No redirects, no cookies, no proxies, no upgrade from HTTP/1.1 to HTTP/2. A
// request beyond 64 KiB, or in pieces, is sent while the answer is read, others
// are sent first. Of HTTP/2 there are no priorities, no pushes and no trailers
// in requests; the windows are the initial 65,535 bytes, so that distant
// servers are slow with long answers.
//
// An idle HTTP/1.1 connection is not looked at: that it was closed is found, and
// is a failure, when the next request is sent. Of an HTTP/2 connection the end
// is seen at once, and is a failure only with streams open. What a server does
// wrong between two requests of an HTTP/2 connection is charged to the next one.
//
// # Ownership
//
// A Run owns the connections that it opens, those returned by Config.Dial
// included, and has closed all of them when Wait or Stop returns. A Relay owns
// its listener and its connections until Close returns.
package load
