package v1

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ownership is a value of the ownership word:
//
//	bits 63..20 generation    bits 19..2 attempt    bit 1 declined    bit 0 probation
type Ownership uint64

// Flags of the ownership word.
const (
	Probation Ownership = 1 << 0
	Declined  Ownership = 1 << 1
)

// Settled is the word when generation owns for good.
func Settled(generation, attempt uint64) Ownership {
	return Ownership(generation<<20 | attempt<<2)
}

// Generation that owns.
func (o Ownership) Generation() uint64 { return uint64(o) >> 20 }

func (o Ownership) String() string {
	s := fmt.Sprintf("generation %d, attempt %d", o.Generation(), uint64(o)>>2&(1<<18-1))
	if o&Probation != 0 {
		s += ", in probation"
	}
	if o&Declined != 0 {
		s += ", declined"
	}
	return s
}

// wordSize is a page. Its first 8 bytes are the word.
const wordSize = 4096

// Word is the page that all generations of a set share.
type Word struct {
	fd  int
	mem []byte
}

func newWord(o Ownership) (*Word, error) {
	fd, err := unix.MemfdCreate("handoverd-word", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	err = os.NewSyscallError("ftruncate", unix.Ftruncate(fd, wordSize))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	w, err := mapWord(fd)
	if err == nil {
		w.at(0).Store(uint64(o))
	}
	return w, err
}

// mapWord maps the page in fd, which it consumes.
func mapWord(fd int) (*Word, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err == nil && seals&unix.F_SEAL_SHRINK == 0 {
		err = errors.New("the page is not sealed against shrinking")
	}
	var mem []byte
	if err == nil {
		mem, err = unix.Mmap(fd, 0, wordSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ownership word: %w", err)
	}
	return &Word{fd: fd, mem: mem}, nil
}

func (w *Word) at(i uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(w.mem[8*i:])))
}

// Load reads the word.
func (w *Word) Load() Ownership { return Ownership(w.at(0).Load()) }

// Swap moves the word from old to next, if it is still old.
func (w *Word) Swap(old, next Ownership) bool {
	return w.at(0).CompareAndSwap(uint64(old), uint64(next))
}

// Withdrawals counts how often generation has gone on with connections that
// were sent and not answered.
func (w *Word) Withdrawals(generation uint64) *atomic.Uint64 { return w.at(1 + generation%511) }

func (w *Word) close() {
	unix.Munmap(w.mem)
	unix.Close(w.fd)
}
