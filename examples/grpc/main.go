// Command grpc is a gRPC server that replaces itself without failing a call:
//
//	cd examples/grpc
//	go run . &
//	grpcurl -plaintext -proto echo.proto -d '"hello"' localhost:8084 example.Echo/Say
//	go run .      # the first one ends
//
// The package server is not needed here, for grpc.Server has a drain of its own
// that is right. GracefulStop sends each connection a GOAWAY that refuses
// nothing, and a PING; only when the client has answered that, and so opens its
// calls elsewhere, the GOAWAY follows that names the last call to be answered.
// (Stop would cut them.) Calls go on where they began: a unary call is over
// soon, and a stream is served by the old process until it ends, however many
// takeovers come meanwhile:
//
//	grpcurl -plaintext -proto echo.proto -d @ localhost:8084 example.Echo/Chat
//
// Type "hello", quotes included, then start another generation, and type on. A
// stream that never ends is cut after -grace, and its client gets Unavailable. If
// streams last for days, have their handlers return when Superseded is closed,
// as examples/websocket does, and their clients open them again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/handoverd/handoverd/handover"
)

func main() {
	socket := flag.String("socket", "/tmp/grpc.sock", "control socket")
	listen := flag.String("listen", "127.0.0.1:8084", "address of the first generation")
	grace := flag.Duration("grace", time.Minute, "how long streams may go on in a drain")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, *socket, *listen, *grace); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, socket, address string, grace time.Duration) error {
	gen, err := handover.Start(ctx, handover.Config{Socket: socket}) // takes over, or starts generation 1
	if err != nil {
		return err
	}
	defer gen.Close()
	defer context.AfterFunc(ctx, func() { gen.Stop(context.Background()) })()
	ln, err := gen.Listen("grpc", "tcp", address) // inherited under that name, or bound now
	if err != nil {
		return err
	}
	// GracefulStop, and Stop too, begin by waiting for connections that have not
	// said hello. A client that is silent would hold up everything for two minutes.
	srv := grpc.NewServer(grpc.ConnectionTimeout(min(grace, 5*time.Second)))
	e := &echo{generation: gen.Number()}
	srv.RegisterService(&service, e)
	go srv.Serve(ln) // Accept waits until the socket is ours
	if err := gen.Ready(ctx); err != nil {
		return fmt.Errorf("own the socket: %w", err) // the predecessor serves on
	}
	log.Printf("generation %d serves %v", gen.Number(), ln.Addr())
	<-gen.Superseded() // a successor owns the socket for good, or SIGTERM came
	cut := time.AfterFunc(grace, srv.Stop)
	srv.GracefulStop() // returns early when Stop has cut what was left
	report := map[string]any{"answered": e.answered.Load(), "cut": !cut.Stop()}
	gen.Drained(report)
	log.Printf("generation %d: %v: %d calls answered, cut %v", gen.Number(), gen.Cause(), report["answered"], report["cut"])
	return nil
}

// service is what protoc would make of echo.proto.
var service = grpc.ServiceDesc{
	ServiceName: "example.Echo",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Say", Handler: say}},
	Streams:     []grpc.StreamDesc{{StreamName: "Chat", Handler: chat, ClientStreams: true, ServerStreams: true}},
}

type echo struct {
	generation uint64
	answered   atomic.Int64
}

func (e *echo) answer(in *wrapperspb.StringValue) *wrapperspb.StringValue {
	return wrapperspb.String(fmt.Sprintf("generation %d: %s", e.generation, in.Value))
}

func say(e any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	in := new(wrapperspb.StringValue)
	if err := decode(in); err != nil {
		return nil, err
	}
	e.(*echo).answered.Add(1)
	return e.(*echo).answer(in), nil
}

func chat(e any, stream grpc.ServerStream) error {
	for {
		in := new(wrapperspb.StringValue)
		err := stream.RecvMsg(in)
		if errors.Is(err, io.EOF) {
			e.(*echo).answered.Add(1)
			return nil
		}
		if err == nil {
			err = stream.SendMsg(e.(*echo).answer(in))
		}
		if err != nil {
			return err
		}
	}
}
