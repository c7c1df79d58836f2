// Package load is an HTTP/1.1 load generator that tells the truth about a
// server that is being replaced.
//
// It speaks HTTP over its own connections, because net/http's client repeats
// a request silently when an idle connection turns out to be closed, and that
// is precisely the failure a handover must not cause. A request here is sent
// once. If no whole, correct answer to that very request comes back, it is
// counted as failed, under the reason.
//
// What is checked on each answer: the status is 200, the X-Request-Id is the
// one this request carried (so an answer meant for another request is found),
// and the body is the request's body, byte for byte.
//
// Every request ends in exactly one outcome, so
//
//	Requests == OK + Failed() + ClientFault + Aborted
//
// holds for every Result, live or final.
//
// # Limits
//
// HTTP/1.1 only, no pipelining, no redirects, no cookies, no proxies. A body
// beyond 64 KiB is sent while the answer is read, smaller ones are sent first.
//
// # Ownership
//
// A Run owns the connections that it opens, those returned by Config.Dial
// included, and has closed all of them when Wait or Stop returns. A Relay owns
// its listener and its connections until Close returns.
package load
