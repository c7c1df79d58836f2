package agent

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ledger is memory that all processes of a test share: who accepted which
// connection, in the one order that all agree on.
type Ledger struct {
	mem []byte // 8 bytes are the count, then one label for each accept
}

const ledgerSize = 1 << 20

// OpenLedger opens the ledger at path, which is made if need be. Close unmaps it.
func OpenLedger(path string) (*Ledger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(ledgerSize); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, ledgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ledger: %w", err)
	}
	return &Ledger{mem}, nil
}

func (l *Ledger) count() *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(l.mem)))
}

// Count tells how many accepts there were.
func (l *Ledger) Count() uint64 { return l.count().Load() }

// Note notes that label has accepted a connection.
func (l *Ledger) Note(label byte) {
	if n := l.count().Add(1) + 7; n < uint64(len(l.mem)) {
		l.mem[n] = label
	}
}

// Labels gives the labels noted so far, in order. 0 stands for a process that
// was killed while it noted.
func (l *Ledger) Labels() ([]byte, error) {
	n := l.count().Load()
	if n+8 > uint64(len(l.mem)) {
		return nil, fmt.Errorf("%d accepts are more than the ledger holds", n)
	}
	return append([]byte(nil), l.mem[8:8+n]...), nil
}

// Close unmaps the ledger.
func (l *Ledger) Close() error { return unix.Munmap(l.mem) }
