package child

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// shimName is argv[0] of a process that is to become a program.
const shimName = "handover-exec-shim"

// shimExecutes is what the shim writes right before execve(2). An end without
// it means that there was no shim.
const shimExecutes = "x"

// busyTime bounds how long the shim waits for an executable that somebody is
// still writing (ETXTBSY), as happens when it has just been installed.
const busyTime = 5 * time.Second

// A shimJob is what the shim needs to know. It comes through a file, since an
// environment meant for the program could upset the shim's own runtime.
// Strings are bytes, as they need not be UTF-8.
type shimJob struct {
	Path        []byte
	Argv, Env   [][]byte
	ListenPID   bool // add it to Env
	DeathSignal int
	Parent      int
}

// A shimError is what the shim writes when it fails.
type shimError struct {
	Step  string
	Errno syscall.Errno
	Text  string
}

func (e *shimError) Error() string {
	if e.Errno == 0 {
		return e.Step + ": " + e.Text
	}
	return e.Step + ": " + e.Errno.Error()
}

func (e *shimError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Shim has to be called first thing in main, also in a TestMain. It returns at
// once, unless this process is one that Start made to become the program: then
// it never returns.
//
// Such a process has the sockets at 3, 4, ... already, and after them the file
// with its job and the pipe for its failure. It makes all but the sockets
// close-on-exec, puts its own pid into LISTEN_PID, and executes the program in
// its place.
func Shim() {
	if len(os.Args) != 2 || os.Args[0] != shimName {
		return
	}
	// The death signal is an attribute of the thread that executes.
	runtime.LockOSThread()
	n, err := strconv.ParseUint(os.Args[1], 10, 31)
	if err != nil {
		os.Exit(126)
	}
	job, status := firstFD+int(n), firstFD+int(n)+1
	err = becomeProgram(job, status)
	// Only a failure gets here.
	failure, ok := err.(*shimError)
	if !ok {
		failure = &shimError{Step: "prepare", Text: err.Error()}
		errors.As(err, &failure.Errno)
	}
	b, _ := json.Marshal(failure)
	unix.Write(status, b) // below PIPE_BUF, and there is room
	os.Exit(127)
}

func becomeProgram(jobFD, statusFD int) error {
	if err := keepFrom(jobFD); err != nil {
		return &shimError{Step: "close_range", Errno: errnoOf(err), Text: err.Error()}
	}
	job, err := readJob(jobFD)
	if err != nil {
		return err
	}
	argv, env := texts(job.Argv), texts(job.Env)
	if job.ListenPID {
		env = append(env, "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(job.DeathSignal), 0, 0, 0); err != nil {
		return &shimError{Step: "prctl", Errno: errnoOf(err)}
	}
	// If the parent died before, nothing will come.
	if job.DeathSignal != 0 && os.Getppid() != job.Parent {
		return &shimError{Step: "prctl", Text: "the parent has died"}
	}
	if _, err := unix.Write(statusFD, []byte(shimExecutes)); err != nil {
		return &shimError{Step: "report", Errno: errnoOf(err)}
	}
	for end := time.Now().Add(busyTime); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Exec(string(job.Path), argv, env)
		if err != syscall.ETXTBSY || time.Now().After(end) {
			return &shimError{Step: "execve", Errno: errnoOf(err)}
		}
	}
}

// keepFrom makes all descriptors from first on close-on-exec.
func keepFrom(first int) error {
	err := unix.CloseRange(uint(first), 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	if err != unix.ENOSYS && err != unix.EINVAL && err != unix.EPERM {
		return err
	}
	// Before Linux 5.11, or a seccomp filter that does not know it.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd) // fails for the one that read the directory
		}
	}
	return nil
}

func readJob(fd int) (*shimJob, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &shimError{Step: "fstat", Errno: errnoOf(err)}
	}
	b := make([]byte, st.Size)
	if _, err := io.ReadFull(io.NewSectionReader(preader(fd), 0, st.Size), b); err != nil {
		return nil, &shimError{Step: "read", Errno: errnoOf(err), Text: err.Error()}
	}
	job := new(shimJob)
	if err := json.Unmarshal(b, job); err != nil {
		return nil, &shimError{Step: "read", Text: err.Error()}
	}
	return job, nil
}

// preader reads without the runtime's poller, whose descriptors would be new.
type preader int

func (fd preader) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		m, err := unix.Pread(int(fd), b[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// jobFile puts the job into a file in memory. The caller closes it.
func jobFile(job *shimJob) (int, error) {
	b, err := json.Marshal(job)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate(shimName, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("write", err)
		}
		b = b[n:]
	}
	return fd, nil
}

// explain says what a failure of the shim means.
func (e *shimError) explain(path string) error {
	if e.Step != "execve" {
		return fmt.Errorf("prepare to execute %s: %w", path, e)
	}
	err := &fs.PathError{Op: "execute", Path: path, Err: e.Errno}
	switch e.Errno {
	case syscall.ENOENT:
		return fmt.Errorf("%w: the file is there, but what runs it is not: the interpreter after #!, or the dynamic loader", err)
	case syscall.ENOEXEC:
		return fmt.Errorf("%w: no program for this machine, or a script without an interpreter", err)
	}
	return err
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

func texts(all [][]byte) []string {
	s := make([]string, len(all))
	for i, b := range all {
		s[i] = string(b)
	}
	return s
}

func bytesOf(all []string) [][]byte {
	b := make([][]byte, len(all))
	for i, s := range all {
		b[i] = []byte(s)
	}
	return b
}
