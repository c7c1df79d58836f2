// Package peer is what the servers have in common that the benchmark compares:
// the handler, and how they tell the benchmark what happens to them. It needs
// nothing but the standard library, since some of them can only be built
// without modules.
//
// The environment tells a server
//
//	BENCH_EVENTS      where events go: a Unix datagram socket; none if empty
//	BENCH_SITE        what it is part of, for its events
//	BENCH_GENERATION  a file with its generation, read when it starts
//	BENCH_CERT        a certificate, if it is to speak TLS,
//	BENCH_KEY         and its key
package peer
