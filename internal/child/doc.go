// Package child runs any program, written in any language, as a server whose
// listening sockets are inherited: it starts it, knows when it is ready,
// restarts it when it crashes, and stops it.
//
//	func main() {
//		child.Shim() // first thing: a process that is to become the program never returns
//		...
//	}
//
//	p, err := child.Start(ctx, child.Config{Argv: argv, Sockets: sockets, Ready: ready})
//	err = p.Ready(ctx)        // nil: it serves. Otherwise it died (with what it said) or it took too long
//	err = p.Supervise()       // from now on a crash leads to a restart on the same sockets
//	<-p.Done()                // it has ended for good
//	report, err := p.Stop(ctx)
//
// # What the program gets
//
// The sockets are its descriptors 3, 4, ... in the order of [Config.Sockets].
// No other descriptor of this process gets there, not even one that this
// process itself was started with. It is told about them by the systemd
// protocol, sd_listen_fds(3): LISTEN_FDS, LISTEN_FDNAMES, and LISTEN_PID, which
// is its own pid. Since nobody knows that before the fork, this process'
// executable is run again and executes the program in its own place; see [Shim].
// Other customs are added with [Config.Customs]; see [ParseCustom].
//
// LISTEN_*, NOTIFY_SOCKET, WATCHDOG_* and what else belongs to these customs is
// taken out of [Config.Env], so that the program never gets what was meant for
// this process.
//
// The sockets are passed as they are. O_NONBLOCK belongs to the open file
// description that all holders share, and is set if Go opened the socket: a
// program that expects its listeners to block has to poll or to clear it, as
// most servers do anyway. Start and each restart duplicate what they pass, and
// nothing here changes a socket. [Socket.Duplicate] must work until the program
// is done.
//
// Its standard input is /dev/null. Its standard output is this process', or
// [Config.Stdout], inherited as it is. Its standard error is a pipe that is
// copied to [Config.Stderr], since a program that dies before it is ready has
// to be quoted. Everything that it and its group wrote until its end is copied;
// if whoever reads Config.Stderr is slow, then the program waits in write(2),
// as it would without the pipe, and its end waits too, unless nothing at all is
// read for 5 s. What has left the group gets EPIPE after that end.
// [Config.DirectStderr] passes the descriptor itself instead; then nothing is
// quoted, and isatty(3) says what it says here.
//
// # Process group, signals
//
// The program is the leader of a process group of its own. So Ctrl-C on a
// terminal reaches this process only, which decides what to do, and what the
// program forks can be killed with it. It is not in the terminal's foreground:
// SIGTSTP does not stop it either. Signals for the program go to its own process; when that
// has ended, however it did, the rest of its group is killed (as systemd's
// KillMode=mixed does), so that no worker of a dead server accepts beside its
// successor. What has left the group by setsid(2) or setpgid(2) is left alone.
//
// If this process dies, the kernel sends the program [Config.DeathSignal]
// (PR_SET_PDEATHSIG), by default the signal that stops it: a server with
// workers passes that on, which it cannot do with SIGKILL. A program that
// ignores it lives on; choose SIGKILL if it has no workers. An execve(2) of a
// set-user-ID program or one with capabilities clears it.
//
// # Readiness
//
// See [ParseReadiness]. While a predecessor's program still accepts from the
// same sockets, which is so during every takeover, a probe through these
// sockets may be answered by the predecessor's program. An HTTP probe looks who
// holds the other end of the connection, where that can be told, and an answer
// of another process of this machine does not count, nor does one on a
// connection that was accepted late and is closed before that could be seen:
// the next attempt will tell. A TCP probe proves nothing
// with an inherited listener, where the kernel itself completes the handshake;
// it is for other ports of the program. What cannot be fooled is `notify`.
//
// # Life
//
//	Start -> starting -> up -> ready -(Supervise)-> restarted at each death
//
// Until Supervise, a death is the end: Done is closed and Ready fails. After
// it, the program is started again, after 100 ms, then twice as long after each
// further death, at most 10 s, and from 100 ms again once it has been up for
// 10 s. Meanwhile connections wait in the accept queues, since this process
// holds the sockets.
//
// # PID 1
//
// [StartReaper] reaps orphans, for a process that is PID 1 of a container or a
// child subreaper. It leaves alone whatever this package starts, and what is
// started within [Own]; everything that this process forks has to be one of
// these.
//
// Linux only. Elsewhere everything compiles, the parsers work, and Start fails
// with errors.ErrUnsupported.
package child
