package handover

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const stateSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// sealState puts data into a sealed memory file. See memfd_create(2).
func sealState(name string, data []byte) (int, error) {
	if len(data) > maxState {
		return -1, fmt.Errorf("state %q: %d bytes, the limit is %d", name, len(data), maxState)
	}
	fd, err := unix.MemfdCreate("handoverd-state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for rest := data; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("state %q: %w", name, os.NewSyscallError("write", err))
		}
		rest = rest[n:]
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, stateSeals); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return fd, nil
}

// unsealState reads what sealState wrote. fd stays the caller's.
func unsealState(fd int) ([]byte, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_GET_SEALS", err)
	}
	if seals&stateSeals != stateSeals {
		return nil, errors.New("memory file is not sealed")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Size > maxState {
		return nil, fmt.Errorf("memory file of %d bytes, the limit is %d", st.Size, maxState)
	}
	data := make([]byte, st.Size)
	for off := 0; off < len(data); {
		n, err := unix.Pread(fd, data[off:], int64(off))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("pread", err)
		}
		if n == 0 {
			return nil, errors.New("memory file is shorter than its size")
		}
		off += n
	}
	return data, nil
}
