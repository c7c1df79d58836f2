package scm_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/scm"
)

// socketpair returns two connected ends. Two processes would have a listener
// at a path, and [scm.Dial].
func socketpair() (a, b *scm.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]*scm.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f) // a duplicate
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		if conns[i], err = scm.NewConn(c.(*net.UnixConn)); err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// sendListener sends ln under a name. Inside Control the descriptor cannot be
// closed, and unlike with File().Fd() its O_NONBLOCK stays as it is.
func sendListener(ctx context.Context, c *scm.Conn, name string, ln *net.TCPListener) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		sendErr = c.Send(ctx, []byte(name), []int{int(fd)})
	})
	if err != nil {
		return err
	}
	return sendErr
}

// recvListener receives what sendListener sent.
func recvListener(ctx context.Context, c *scm.Conn) (name string, ln net.Listener, err error) {
	p, fds := make([]byte, 256), make([]int, 1)
	n, nfds, err := c.Recv(ctx, p, fds)
	if err != nil {
		return "", nil, err
	}
	if nfds == 0 {
		return "", nil, fmt.Errorf("message %q came without its listener", p[:n])
	}
	f := os.NewFile(uintptr(fds[0]), string(p[:n])) // ours now, and closed with f
	defer f.Close()
	ln, err = net.FileListener(f) // a duplicate
	return string(p[:n]), ln, err
}

// A listener goes from one side to the other; a client that connects in
// between notices nothing.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	a, b, err := socketpair()
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	defer b.Close()

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if err := sendListener(ctx, a, "http", ln.(*net.TCPListener)); err != nil {
		log.Fatal(err)
	}
	ln.Close() // the socket lives on in the message

	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	name, heir, err := recvListener(ctx, b)
	if err != nil {
		log.Fatal(err)
	}
	defer heir.Close()
	server, err := heir.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	fmt.Println("received:", name)
	fmt.Println("same address:", heir.Addr().String() == ln.Addr().String())
	fmt.Println("accepted the client:", server.RemoteAddr().String() == client.LocalAddr().String())
	// Output:
	// received: http
	// same address: true
	// accepted the client: true
}
