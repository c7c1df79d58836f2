// Package v1 is a peer that speaks version 1 of the protocol (docs/protocol.md)
// and nothing later: owner, successor, draining predecessor and operator.
//
// It is frozen. Once version 1 is released this package is never changed again,
// neither to follow a later version nor to look better: it stands for the
// programs out there that nobody can change any more. When a test against it
// fails, the implementation under test is wrong, and has to be changed so that
// it gets on with its elders. A later version gets a package of its own beside
// this one. For the same reason it imports no package of this module, not even
// scm, whose mistakes it would share.
//
// Nothing here decides when: each step is a call, and blocks until the other
// side has answered, or [Patience] is over. So a test says in which order things
// happen. What a step means, above all each move of the ownership word, is
// decided here, as version 1 does it.
//
// Descriptors belong to the [Set] that they came with, and are closed with it,
// unless a comment says otherwise. It is for Linux; elsewhere only the frames
// are there.
package v1
