package scm

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Control data is the list of control messages beside the payload, cmsg(3).
// It is written and read in place, since a slice per message would be an
// allocation per call.

const fdSize = 4 // sizeof(int) in SCM_RIGHTS and SCM_PIDFD

var (
	headerSize = unix.CmsgLen(0)

	sendControlSize = unix.CmsgSpace(MaxFDs * fdSize)

	// The receiver always has room for all that one message can carry, and for
	// what socket options that somebody else has set put in front of it
	// (SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC): with less the kernel would
	// close descriptors without an error.
	recvControlSize = sendControlSize + 512
)

var errMalformed = errors.New("malformed control data")

// putRights writes one SCM_RIGHTS message and returns its length, 0 for no
// descriptors. There is room for MaxFDs.
func putRights(b []byte, fds []int) int {
	if len(fds) == 0 {
		return 0
	}
	n := unix.CmsgSpace(len(fds) * fdSize)
	h := unix.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}
	h.SetLen(unix.CmsgLen(len(fds) * fdSize))
	copy(b, headerBytes(&h))
	data := b[headerSize:n]
	for i, fd := range fds {
		binary.NativeEndian.PutUint32(data[i*fdSize:], uint32(fd))
	}
	return n
}

// headerBytes is the memory of h, which unlike the buffer is aligned for
// certain.
func headerBytes(h *unix.Cmsghdr) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(h)), unix.SizeofCmsghdr)
}

// A controlReader walks the descriptors in control data.
type controlReader struct {
	rest      []byte // control messages not looked at yet
	fds       []byte // descriptors left in the current one
	typ       int32  // of the current one, SCM_RIGHTS or SCM_PIDFD
	malformed bool   // a length was wrong; what follows it is unknown
}

// next returns the next descriptor and the type of message it came in. Other
// control messages are passed over.
func (r *controlReader) next() (fd int, typ int32, ok bool) {
	for len(r.fds) < fdSize {
		if len(r.fds) > 0 {
			r.malformed = true
		}
		if !r.nextMessage() {
			return 0, 0, false
		}
	}
	fd = int(int32(binary.NativeEndian.Uint32(r.fds)))
	r.fds = r.fds[fdSize:]
	return fd, r.typ, true
}

func (r *controlReader) nextMessage() bool {
	r.fds = nil
	if len(r.rest) < headerSize {
		return false // padding, as CMSG_NXTHDR sees it
	}
	var h unix.Cmsghdr
	copy(headerBytes(&h), r.rest)
	if uint64(h.Len) < uint64(headerSize) || uint64(h.Len) > uint64(len(r.rest)) {
		r.malformed = true
		r.rest = nil
		return false
	}
	data := r.rest[headerSize:int(h.Len)]
	r.rest = r.rest[min(unix.CmsgSpace(len(data)), len(r.rest)):]
	if h.Level == unix.SOL_SOCKET && (h.Type == unix.SCM_RIGHTS || h.Type == unix.SCM_PIDFD) {
		r.fds, r.typ = data, h.Type
	}
	return true
}

// rights is what takeRights found.
type rights struct {
	n         int  // descriptors now in the caller's slice
	excess    bool // there were more, which are closed
	malformed bool
}

// takeRights moves the descriptors of all SCM_RIGHTS messages in b to fds. It
// closes what does not fit, and the pidfd of an SCM_PIDFD message, which
// nobody asked for.
func takeRights(b []byte, fds []int) rights {
	var got rights
	r := controlReader{rest: b}
	for {
		fd, typ, ok := r.next()
		switch {
		case !ok:
			got.malformed = r.malformed
			return got
		case typ == unix.SCM_RIGHTS && got.n < len(fds):
			fds[got.n] = fd
			got.n++
		default:
			got.excess = got.excess || typ == unix.SCM_RIGHTS
			if fd >= 0 { // SCM_PIDFD may hold an error number
				unix.Close(fd)
			}
		}
	}
}
