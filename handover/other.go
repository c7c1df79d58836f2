//go:build !linux

package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Without SCM_RIGHTS as Linux has it there is no takeover. A first start
// works, with plain listeners and without a control socket, so that a program
// can be developed here; everything that needs more is errUnsupported.

var errUnsupported = fmt.Errorf("handover between processes needs Linux: %w", errors.ErrUnsupported)

func start(_ context.Context, cfg Config) (*Generation, error) {
	if cfg.Mode == TakeOverOnly {
		return nil, errUnsupported
	}
	g := newGeneration(cfg, 1)
	g.launch()
	return g, nil
}

type sockInfo struct {
	socket, accepting bool
	cookie, netns     cookie
}

func inspect(int) (sockInfo, error)         { return sockInfo{}, nil }
func (sockInfo) goesWith(string) error      { return errUnsupported }
func (sockInfo) is(string) bool             { return false }
func (sockInfo) network() string            { return "" }
func ownNetnsCookie() (cookie, error)       { return 0, errUnsupported }
func sockFD(syscall.Conn) (int, error)      { return -1, nil }
func setNonblock(int) error                 { return errUnsupported }
func closeFD(int)                           {}
func dupFD(int) (int, error)                { return -1, errUnsupported }
func boundAddress(int) (string, error)      { return "", errUnsupported }
func acceptQueue(int) (int, int, bool)      { return 0, 0, false }
func openNetns() (int, error)               { return -1, errUnsupported }
func inNetns(int, func() error) error       { return errUnsupported }
func selfPidfd() (int, error)               { return -1, errUnsupported }
func pidfdOf(int) (int, error)              { return -1, errUnsupported }
func uidsAllMapped() bool                   { return true }
func isConnReset(error) bool                { return false }
func sealState(string, []byte) (int, error) { return -1, errUnsupported }
func unsealState(int) ([]byte, error)       { return nil, errUnsupported }

type converter struct{}

func newConverter() (*converter, error) { return nil, errUnsupported }
func (*converter) close()               {}
func (*converter) convert(int, Kind) (net.Listener, net.PacketConn, error) {
	return nil, nil, errUnsupported
}

func (*converter) conn(int) (net.Conn, error) { return nil, errUnsupported }

func sharedFD(net.Conn) (int, cookie, error) { return -1, 0, errUnsupported }

type word struct{ fd int }

func newWord(ownership) (*word, error) { return nil, errUnsupported }
func mapWord(int) (*word, error)       { return nil, errUnsupported }
func (*word) load() ownership          { return 0 }
func (*word) swap(_, _ ownership) bool { return false }
func (*word) close()                   {}

func (*word) withdrawals(uint64) *atomic.Uint64 { return new(atomic.Uint64) }

type process struct{}

func watchProcess(int) (*process, error)       { return nil, errUnsupported }
func watchReceived(int) (*process, error)      { return nil, errUnsupported }
func (*process) diesWithin(time.Duration) bool { return false }
func (*process) deadC() <-chan struct{}        { return nil }
func (*process) kill() error                   { return errNoPidfd }
func (*process) close()                        {}

var errNoPidfd = errors.New("no pidfd of that process")

type fileID struct{ dev, ino uint64 }

func checkPath(string) error              { return nil }
func lockPath(string) (int, bool, error)  { return -1, false, errUnsupported }
func removeLock(int, string)              {}
func unlinkOurs(string, fileID)           {}
func listenAgain(*net.UnixListener) error { return nil }

func idOf(string) (fileID, error) { return fileID{}, nil }

func removeStale(network, path string) error {
	c, err := net.Dial(network, path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func bindControl(context.Context, string) (*net.UnixListener, fileID, error) {
	return nil, fileID{}, errUnsupported
}
