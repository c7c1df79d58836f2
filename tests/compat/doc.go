// Package compat tests the present implementation against earlier versions of
// the protocol, in both directions: what is out there cannot be changed any
// more, and a new version takes over from it, and is taken over by it.
//
// An earlier version is a recorded peer in a package of its own (v1), which is
// frozen once that version is released. The present implementation is known by
// its public interface only, as programs know it.
//
// testdata has what is said in the main conversations, frame by frame, with
// placeholders for what differs each time. The frozen peers say it to each
// other, and the present implementation has to say the same to them, on either
// side. go test -update writes the files anew, from what the frozen peers say to
// each other: a change in there is a change of a released protocol.
package compat
