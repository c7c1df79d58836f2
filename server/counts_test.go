package server

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// While connections come, go, and change their state, every look at the counts
// must see between none and all of them, and the end must see none.
func TestCountsUnderLoad(t *testing.T) {
	const clients, conns, requests = 8, 20, 5
	srv := &Server{Server: http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hijack" {
			c, _, _ := http.NewResponseController(w).Hijack()
			c.Close()
			return
		}
		hello(w, r)
	})}}
	ln := listenTCP(t)
	served := serve(t, srv, ln)
	quit := make(chan struct{})
	var watcher, load sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
			}
			c := srv.Counts()
			// A connection that its client has left is known for some moments.
			if min(c.New, c.Active, c.Idle, c.Hijacked) < 0 || c.Open() > clients*conns || c.Oldest < 0 {
				t.Errorf("counts %+v", c)
				return
			}
		}
	})
	for range clients {
		load.Go(func() {
			for range conns {
				c := dialTCP(t, ln.Addr().String())
				for range requests {
					c.get("/")
				}
				c.sendGet("/hijack")
				c.wantEOF()
				c.Close()
			}
		})
	}
	load.Wait()
	close(quit)
	watcher.Wait()
	eventually(t, "no connection is open", func() bool { return srv.Counts() == Counts{} })

	open := make([]*client, 10)
	for i := range open {
		open[i] = dialTCP(t, ln.Addr().String())
		open[i].get("/")
	}
	eventually(t, "all are idle", func() bool { return srv.Counts() == Counts{Idle: len(open)} })
	for _, c := range open {
		c.Close()
	}
	report := srv.Stop(t.Context())
	wantReport(t, report, Report{Finished: report.Finished})
	served()
}

func TestReportForPeopleAndMachines(t *testing.T) {
	r := Report{Finished: 10, Closed: 3, Killed: 1, Hijacked: 2, Remaining: 4, Stuck: 5, Duration: 1234567 * time.Microsecond}
	want := "drained 14 connections in 1.235s: 0 moved, 10 finished, 3 closed idle, 1 killed (2 of them hijacked); 4 handlers still running; 5 could not be closed"
	if diff := cmp.Diff(want, r.String()); diff != "" {
		t.Errorf("String (-want +got):\n%s", diff)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	wantJSON := `{"moved":0,"finished":10,"closed":3,"killed":1,"hijacked":2,"remaining":4,"stuck":5,"duration_ns":1234567000}`
	if diff := cmp.Diff(wantJSON, string(b)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil || back != r {
		t.Errorf("read back as %+v, %v", back, err)
	}
	if err := (&stopError{report: r}); !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not hold the report", err)
	}
}
