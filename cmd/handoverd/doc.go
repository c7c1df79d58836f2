// Command handoverd serves HTTP, and lets a newer process take its listening
// sockets over without refusing a connection or failing a request.
//
//	handoverd serve --listen tcp://:8080      # generation 1
//	handoverd takeover                        # generation 2, in another shell or container
//	handoverd status
//
// # Exit codes
//
//	0  drained and done
//	1  failure
//	2  usage
//	3  nobody to take over from
//	4  refused
//	5  the predecessor does not answer
//	6  rolled back: the predecessor serves on
package main
