//go:build faults

// Command program is a web server that replaces itself, for the tests of what
// a takeover survives. Its agent kills, blocks and hinders it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
	"github.com/handoverd/handoverd/tests/faults/agent"
)

type program struct {
	cfg     handover.Config
	host    string
	port    int // of the first socket
	sockets int
	agent   *agent.Agent
}

func main() {
	p := &program{}
	only := flag.Bool("takeover", false, "fail if there is nobody to take over from")
	flag.StringVar(&p.cfg.Socket, "socket", "", "control socket")
	flag.DurationVar(&p.cfg.StepTimeout, "step", 0, "StepTimeout")
	flag.DurationVar(&p.cfg.ReadyTimeout, "ready", 0, "ReadyTimeout")
	flag.DurationVar(&p.cfg.AliveTimeout, "alive", 0, "AliveTimeout")
	flag.DurationVar(&p.cfg.Probation, "probation", 0, "Probation")
	flag.StringVar(&p.host, "host", "", "address of all sockets")
	flag.IntVar(&p.port, "port", 0, "port of the first socket")
	flag.IntVar(&p.sockets, "sockets", 1, "number of sockets")
	flag.Parse()
	if *only {
		p.cfg.Mode = handover.TakeOverOnly
	}
	p.cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if p.agent, err = agent.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	p.cfg.OnEvent = p.agent.OnEvent
	err = p.run(context.Background())
	p.agent.End(err)
	if err != nil {
		os.Exit(1)
	}
}

func (p *program) run(ctx context.Context) error {
	gen, err := handover.Start(ctx, p.cfg)
	if err != nil {
		return err
	}
	defer gen.Close()
	srv := &server.Server{
		Server:      http.Server{Handler: http.HandlerFunc(p.answer)},
		StopTimeout: 30 * time.Second,
	}
	for i := range p.sockets {
		ln, err := gen.Listen("web"+strconv.Itoa(i), "tcp", fmt.Sprintf("%s:%d", p.host, p.port+i))
		if err != nil {
			return errors.Join(err, srv.Close())
		}
		go srv.Serve(ln)
	}
	if err := gen.Ready(ctx); err != nil {
		return errors.Join(err, srv.Close())
	}
	select {
	case <-p.agent.Stopped():
		err = gen.Stop(ctx)
		<-gen.Superseded()
	case <-gen.Superseded():
	}
	gen.Drained(srv.Stop(ctx))
	if cause := gen.Cause(); !errors.Is(cause, handover.ErrSuperseded) && !errors.Is(cause, handover.ErrStopRequested) {
		err = cause
	}
	return err
}

// answer echoes, a little later, so that there are always requests in work.
func (p *program) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	time.Sleep(2 * time.Millisecond)
	h := w.Header()
	h.Set("Handoverd-Generation", strconv.Itoa(int(p.agent.Label())))
	h.Set("X-Request-Id", r.Header.Get("X-Request-Id"))
	w.Write(body)
}
