// Package e2e holds the end-to-end tests: real handoverd processes, started
// one by one as an operator would, in network namespaces and containers that
// the tests make, with clients that notice every single failed request.
//
// The tests know the program by its command line, its exit codes and its
// answers only. What this machine lacks is named by the test that skips for
// it; with CI=true that test fails instead.
//
// No time that something takes decides about a test. What happens at a random
// moment can be had again with -seed; with -soak some tests go on for long.
//
// Nothing is left behind: a process started in a namespace dies with the
// thread that holds the namespace, which dies with the test, and a namespace
// that nobody holds takes its interfaces with it.
package e2e
