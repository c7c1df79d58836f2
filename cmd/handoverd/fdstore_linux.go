package main

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// sendWithFile sends a notification that carries a descriptor: sd_notify(3).
func sendWithFile(state string, f *os.File) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return errors.New("there is no service manager (NOTIFY_SOCKET is not set)")
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	to, err := c.SyscallConn() // WriteMsgUnix wants an address, and a connected socket takes none
	if err != nil {
		return err
	}
	var sent, control error
	err = rc.Control(func(fd uintptr) {
		control = to.Write(func(s uintptr) bool {
			sent = unix.Sendmsg(int(s), []byte(state), unix.UnixRights(int(fd)), nil, 0)
			return sent != unix.EAGAIN
		})
	})
	return errors.Join(err, control, os.NewSyscallError("sendmsg", sent))
}
