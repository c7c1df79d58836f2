// Package site holds what handoverd can serve by itself: a small
// demonstration site that makes a handover visible and has a route for each
// kind of request that a handover can hurt, a directory of files, and a proxy
// to another server.
//
// New, Static and Proxy return plain handlers that know nothing of listeners,
// connections and handovers. Header adds the generation to the answers of any
// of them.
//
// # Routes of the demonstration site
//
//	/             a page that shows who answers, and keeps itself up to date
//	/echo         the request's body and X-Request-Id back, any method
//	/sleep?for=   an answer after that time, at most 10 minutes
//	/bytes?n=     n bytes that Verifier can check, at most 10 GiB
//	/events?n=    server-sent events, ten a second; with n so many, else until the drain
//	/ws           WebSocket, each message is sent back
//	/status.json  what the page shows
//	/healthz      200 as long as the process answers
//
// /healthz stays 200 in a drain: new connections go to the successor, and a
// health checker on an old one must not count the whole service as ill.
//
// # Ownership
//
// Static holds a descriptor of its directory and Proxy idle connections to its
// target, until their Close.
package site
