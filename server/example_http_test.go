package server_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/handoverd/handoverd/server"
)

// An HTTP server that is stopped while a request is being answered.
func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	entered := make(chan struct{})
	var srv *server.Server
	srv = &server.Server{
		Server: http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				<-srv.Draining() // this request is in flight when the drain begins
				io.WriteString(w, "answered all the same")
			}),
			ReadHeaderTimeout: 10 * time.Second,
		},
		StopTimeout: time.Minute,
		KillTimeout: 10 * time.Second,
		Linger:      time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	answer := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			log.Fatal(err)
		}
		http.DefaultClient.CloseIdleConnections()
		answer <- string(body)
	}()

	// In a real program this is where it waits: for a signal, or for a
	// successor that has taken the listener over.
	<-entered

	report := srv.Stop(context.Background())
	fmt.Println(<-answer)
	fmt.Println(<-served)
	fmt.Println("connections:", report.Connections(), "clean:", report.Clean())
	// Output:
	// answered all the same
	// http: Server closed
	// connections: 1 clean: true
}
