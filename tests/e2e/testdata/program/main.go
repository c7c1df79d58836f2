// Program is a server that knows nothing of handoverd, for the end-to-end
// tests: it serves HTTP on the sockets that it is started with, until SIGTERM.
//
//	/echo            what it was sent
//	/fork?n=1000     makes so many orphans: each is a process whose parent ends before it does
//	/processes       what processes there are, as lines "pid ppid state command"
//	/exit?code=3     ends at once
//
// Flags say how it stops: -linger for so long after the last request, -code the exit status.
package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	parent  = "parent" // makes orphans and ends
	orphan  = "orphan" // ends when its parent has ended
	perFork = 50       // orphans of one parent
	request = "X-Request-Id"
	header  = "Handoverd-Generation"
)

func main() {
	linger := flag.Duration("linger", 0, "how long it takes to stop")
	code := flag.Int("code", 0, "exit status after SIGTERM")
	flag.Parse()
	switch flag.Arg(0) {
	case parent:
		fatal(beParent(flag.Arg(1)))
	case orphan:
		io.Copy(io.Discard, os.Stdin) // whose other end only the parent has
	default:
		fatal(serve(*linger))
		os.Exit(*code)
	}
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "program:", err)
		os.Exit(1)
	}
}

func serve(linger time.Duration) error {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return fmt.Errorf("LISTEN_FDS: %w", err)
	}
	// The benchmark starts it with no LISTEN_PID.
	if pid := os.Getenv("LISTEN_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("LISTEN_PID is %s, and this is process %d", pid, os.Getpid())
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	srv := &http.Server{Handler: handler()}
	for i := range n {
		f := os.NewFile(uintptr(3+i), "listener") // SD_LISTEN_FDS_START
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		f.Close()
		go srv.Serve(ln)
	}
	fmt.Println("program: serves")
	<-stop
	begin := time.Now()
	err = srv.Shutdown(context.Background())
	time.Sleep(linger)
	fmt.Printf("program: stopped in %v\n", time.Since(begin))
	return err
}

func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(header, os.Getenv("HANDOVERD_GENERATION"))
		w.Header().Set(request, r.Header.Get(request))
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		os.Exit(code)
	})
	mux.HandleFunc("/fork", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue("n"))
		if err == nil {
			err = fork(n)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("/processes", func(w http.ResponseWriter, _ *http.Request) {
		if err := processes(w); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return mux
}

// fork makes n orphans through parents that end.
func fork(n int) error {
	for ; n > 0; n -= perFork {
		cmd := exec.Command("/proc/self/exe", parent, strconv.Itoa(min(n, perFork)))
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	return nil
}

// beParent starts processes, and ends without waiting for them.
func beParent(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	r, _, err := os.Pipe()
	if err != nil {
		return err
	}
	for range n {
		cmd := exec.Command("/proc/self/exe", orphan)
		cmd.Stdin = r
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	return nil
}

// processes lists /proc, which is that of the container.
func processes(w io.Writer) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	for _, e := range entries {
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		i, j := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
		if _, numeric := strconv.Atoi(e.Name()); numeric != nil || err != nil || i < 0 || j < i {
			continue // no process, or one that has just ended
		}
		f := strings.Fields(string(text[j+1:])) // state ppid ...
		fmt.Fprintln(out, e.Name(), f[1], f[0], string(text[i+1:j]))
	}
	return out.Flush()
}
