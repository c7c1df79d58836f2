// Command bench measures this project against other ways to replace a running
// server, side by side, on the machine that it runs on, and writes a page, plots
// and a file with the figures. From the directory of this file:
//
//	go run . -o ../../docs             # a run of some ten minutes
//	go run . -short -o /tmp/there      # does everything once; its figures mean nothing
//	go run . -render A.json -confirm B.json -o ../../docs
//
// The last one makes the page from run A, with only those comparisons that run B
// confirms.
//
// A server of Debian's packages is used if it is installed; whatever is missing
// is named, with the reason. Everything happens on loopback and in a directory
// that is removed in the end.
package main
