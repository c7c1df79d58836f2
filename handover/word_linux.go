package handover

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const wordSize = 4096 // one page, of which 8 bytes are used

// word is the ownership word: 64 bits in a page that all generations of a
// socket set map. See ownership.
type word struct {
	fd  int // owned
	mem []byte
}

// newWord makes the page of a first generation.
func newWord(o ownership) (*word, error) {
	fd, err := unix.MemfdCreate("handoverd-word", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	if err := unix.Ftruncate(fd, wordSize); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("ftruncate", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	w, err := mapWord(fd)
	if err != nil {
		return nil, err
	}
	w.at().Store(uint64(o))
	return w, nil
}

// mapWord maps the page in fd, which it consumes. Without the seal a peer
// could shrink the file, and each access would be a SIGBUS.
func mapWord(fd int) (*word, error) {
	fail := func(err error) (*word, error) {
		unix.Close(fd)
		return nil, fmt.Errorf("ownership word: %w", err)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fail(os.NewSyscallError("fcntl F_GET_SEALS", err))
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return fail(errors.New("memory file is not sealed against shrinking"))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(os.NewSyscallError("fstat", err))
	}
	if st.Size < wordSize {
		return fail(fmt.Errorf("memory file of %d bytes", st.Size))
	}
	mem, err := unix.Mmap(fd, 0, wordSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fail(os.NewSyscallError("mmap", err))
	}
	return &word{fd: fd, mem: mem}, nil
}

func (w *word) at() *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(w.mem))) }

func (w *word) load() ownership { return ownership(w.at().Load()) }

// swap moves ownership from old to next if it is still with old.
func (w *word) swap(old, next ownership) bool {
	return w.at().CompareAndSwap(uint64(old), uint64(next))
}

// withdrawals counts how often generation has gone on with connections that it
// had sent and had no answer about. Of a process that has died since, messages
// cannot tell that. Generations that share a counter, 511 apart, only make the
// one who looks too careful.
func (w *word) withdrawals(generation uint64) *atomic.Uint64 {
	i := 8 * (1 + generation%(wordSize/8-1))
	return (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(w.mem[i:])))
}

// close unmaps the page. Nobody may use w any more.
func (w *word) close() {
	if w == nil {
		return
	}
	unix.Munmap(w.mem)
	unix.Close(w.fd)
}
