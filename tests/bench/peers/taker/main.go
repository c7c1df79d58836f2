// Command taker takes a number of sockets from whoever has them, and tells how
// long that took: by package handover, or by bare system calls. It tells the
// times in microseconds.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/tests/bench/peer"
)

func main() {
	socket := flag.String("socket", "", "control socket")
	n := flag.Int("n", 1, "how many sockets")
	bare := flag.Bool("bare", false, "nothing but system calls")
	echo := flag.Bool("echo", false, "send messages back, nothing else")
	listen := flag.Bool("listen", false, "with -bare: make a listener of each, with an accept pending")
	flag.Parse()
	take := takeOver
	if *bare {
		take = func(socket string, n int) error { return receive(socket, n, *listen) }
	}
	if *echo {
		take = sendBack
	}
	if err := take(*socket, *n); err != nil {
		log.Fatal(err)
	}
}

// takeOver takes over n listeners, or makes them, and has an accept pending on
// each.
func takeOver(socket string, n int) error {
	ctx := context.Background()
	p := peer.New()
	began := time.Now()
	gen, err := handover.Start(ctx, handover.Config{Socket: socket, Probation: -1})
	if err != nil {
		return err
	}
	defer gen.Close()
	sockets := time.Since(began)
	for i := range n {
		ln, err := gen.Listen(fmt.Sprintf("l%d", i), "tcp", fmt.Sprintf("127.0.2.%d:0", 1+i%100)) // one address has not enough ports
		if err != nil {
			return err
		}
		go accept(ln)
	}
	ready := time.Since(began)
	if err := gen.Ready(ctx); err != nil {
		return err
	}
	whole := time.Since(began)
	p.Tell("took", micros(sockets), micros(ready), micros(whole))
	<-gen.Superseded()
	return nil
}

// sendBack sends n messages back.
func sendBack(socket string, n int) error {
	c, err := net.Dial("unixpacket", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 64)
	for range n {
		k, err := c.Read(b)
		if err == nil {
			_, err = c.Write(b[:k])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

func micros(d time.Duration) int { return int(d / time.Microsecond) }

// maxFDs is how many descriptors one message can carry, SCM_MAX_FD.
const maxFDs = 253

// receive receives n descriptors, if asked to makes listeners of them, and keeps
// them until it has told. It begins when its standard input ends.
func receive(socket string, n int, listen bool) error {
	p := peer.New()
	var all []int32
	control := make([]byte, unix.CmsgSpace(maxFDs*4))
	var payload [64]byte
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	iov := unix.Iovec{Base: &payload[0], Len: uint64(len(payload))}
	hdr := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: &control[0]}
	began := time.Now()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return os.NewSyscallError("connect", err)
	}
	for n > 0 {
		hdr.SetControllen(len(control))
		_, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdr)), unix.MSG_CMSG_CLOEXEC)
		if errno != 0 {
			return os.NewSyscallError("recvmsg", errno)
		}
		// Not Controllen, which counts padding.
		got := (int((*unix.Cmsghdr)(unsafe.Pointer(&control[0])).Len) - unix.CmsgLen(0)) / 4
		if hdr.Controllen == 0 || got <= 0 || got > n || hdr.Flags&unix.MSG_CTRUNC != 0 {
			return fmt.Errorf("a message brought %d descriptors, %d are missing", got, n)
		}
		n -= got
		if listen {
			all = append(all, unsafe.Slice((*int32)(unsafe.Pointer(&control[unix.CmsgLen(0)])), got)...)
		}
	}
	for _, fd := range all {
		f := os.NewFile(uintptr(fd), "")
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		f.Close()
		go accept(ln)
	}
	p.Tell("took", micros(time.Since(began)))
	return nil
}
