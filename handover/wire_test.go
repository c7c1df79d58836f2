package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestFramesSurviveTheWire(t *testing.T) {
	for _, f := range []any{
		&frameHello{Type: typeHello, Protocols: []int{1, 2}, Intent: intentTakeover, Program: "p", Build: "b", PID: 7, Revision: 3, Force: true, Moves: true, Probation: millis(3 * time.Second)},
		&frameRefuse{Type: typeRefuse, Code: CodeBusy, Message: "later"},
		&frameWelcome{Type: typeWelcome, Protocol: 1, Generation: 4, Next: 6, Attempt: 2, Count: 9, ReadyTimeout: millis(time.Minute), Probation: millis(time.Second), AliveEvery: millis(time.Second)},
		&frameSockets{Type: typeSockets, First: 253, Items: []item{
			{Name: "http", Kind: KindListener, Network: "tcp", Address: "[::]:80", Asked: ":80", Cookie: 1<<64 - 1, Netns: 1},
			{Name: nameControl, Kind: kindControl, Network: "unixpacket", Address: "/x", Cookie: 2, Dev: 3, Ino: 4},
		}},
		&frameReceived{Type: typeReceived, First: 253, Cookies: []cookie{0, 1<<64 - 1}},
		&frameGranted{Type: typeGranted, Generation: 5, Settled: true},
		&frameSimple{Type: typeReady}, &frameSimple{Type: typeAlive}, &frameSimple{Type: typeCommit},
		&frameSimple{Type: typeRollback}, &frameSimple{Type: typeRevoked}, &frameSimple{Type: typeOK},
		&frameProgress{Type: typeProgress, Generation: 5, Stats: Stats{Connections: map[string]int64{"idle": 3}, Oldest: time.Second}},
		&frameDrained{Type: typeDrained, Generation: 5, Report: json.RawMessage(`{"finished":3}`)},
		&frameConnections{Type: typeMoved, Withdrawn: 1<<64 - 1, Items: []movedItem{
			{Listener: "http", Cookie: 1<<64 - 1, Unread: []byte("GET /\x00"), State: []byte{0xff}}, {Listener: "<&>", Cookie: 1},
		}},
		&frameAdopted{Type: typeAdopted, Cookies: []cookie{0, 1<<64 - 1}, Stop: "full"},
		&frameStatus{Type: typeStatus, Status: Status{Generation: 5, Phase: PhaseStandby}, More: true},
	} {
		p, err := encodeFrame(f)
		if err != nil {
			t.Fatalf("%T: %v", f, err)
		}
		got, err := decodeFrame(p)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		if d := cmp.Diff(f, got, cmpopts.IgnoreUnexported(frameConnections{})); d != "" {
			t.Errorf("%s: %s", p, d)
		}
	}
}

func TestMalformedFrames(t *testing.T) {
	for _, p := range []string{
		``, `{`, `null`, `7`, `[]`, `"hello"`, `{}`, `{"type":7}`, `{"type":"hallo"}`,
		`{"type":"hello"`, `{"type":"hello"}x`, `{"type":"hello","protocols":"1"}`,
		`{"type":"hello","probation_ms":-1}`, `{"type":"hello","probation_ms":9223372036854775807}`,
		`{"type":"hello","revision":-1}`,
		`{"type":"hello","program":"` + strings.Repeat("x", maxText+1) + `"}`,
		`{"type":"welcome","generation":1,"next":2,"count":0,"alive_every_ms":1}`,
		`{"type":"welcome","generation":1,"next":2,"count":-1,"alive_every_ms":1}`,
		`{"type":"welcome","generation":1,"next":2,"count":65537,"alive_every_ms":1}`,
		`{"type":"welcome","generation":1,"next":1,"count":3,"alive_every_ms":1}`,
		`{"type":"welcome","generation":1,"next":2,"count":3,"alive_every_ms":0}`,
		`{"type":"welcome","generation":1,"next":18446744073709551615,"count":3,"alive_every_ms":1}`,
		`{"type":"welcome","generation":1,"next":2,"attempt":99999999,"count":3,"alive_every_ms":1}`,
		`{"type":"welcome","generation":1,"next":2,"count":3,"alive_every_ms":1,"probation_ms":3600001}`,
		`{"type":"sockets","first":0,"items":[]}`,
		`{"type":"sockets","first":-1,"items":[{"name":"a","kind":"file","cookie":"1"}]}`,
		`{"type":"sockets","first":65536,"items":[{"name":"a","kind":"file","cookie":"1"}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"","kind":"file","cookie":"1"}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"@control","kind":"file","cookie":"1"}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"a","kind":"control","cookie":"1"}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"a","kind":"listener","network":"udp","cookie":"1"}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"a","kind":"packet","network":"tcp","cookie":"1"}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"a","kind":"door","cookie":"1"}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"a","kind":"file","cookie":1}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"a","kind":"file","cookie":""}]}`,
		`{"type":"sockets","first":0,"items":[{"name":"a","kind":"file","cookie":"18446744073709551616"}]}`,
		`{"type":"received","first":-1}`,
		`{"type":"received","first":0,"cookies":["x"]}`,
		`{"type":"connections"}`,
		`{"type":"connections","items":[]}`,
		`{"type":"connections","items":[{}]}`,
		`{"type":"connections","items":[{"listener":"@control","cookie":"1"}]}`,
		`{"type":"connections","items":[{"listener":"a","cookie":1}]}`,
		`{"type":"connections","items":[{"listener":"a","cookie":"1","unread":"?"}]}`,
		`{"type":"connections","items":[{"listener":"a","cookie":"1"}],"withdrawn":-1}`,
		`{"type":"connections","items":[` + strings.Repeat(`{"listener":"a","cookie":"1"},`, 253) + `{"listener":"a","cookie":"1"}]}`,
		`{"type":"adopted","cookies":["-1"]}`,
		`{"type":"adopted","cookies":[` + strings.Repeat(`"1",`, 253) + `"1"]}`,
		`{"type":"adopted","stop":"` + strings.Repeat("x", maxText+1) + `"}`,
	} {
		if f, err := decodeFrame([]byte(p)); !errors.Is(err, errFrame) {
			t.Errorf("%.80s: %+v, %v", p, f, err)
		}
	}
	if _, err := decodeFrame(bytes.Repeat([]byte(" "), maxFrame+1)); !errors.Is(err, errFrame) {
		t.Error(err)
	}
}

// What a later version adds is ignored, and the type need not stand first.
func TestUnknownMembersAreIgnored(t *testing.T) {
	f, err := decodeFrame([]byte(` {"a":{"b":[1,2]}, "generation":3, "type":"granted"}`))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&frameGranted{Type: typeGranted, Generation: 3}, f); d != "" {
		t.Fatal(d)
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, s := range []string{
		`{"type":"hello","protocols":[1],"intent":"takeover","probation_ms":3000}`,
		`{"type":"refuse","code":"busy","message":"m"}`,
		`{"type":"welcome","protocol":1,"generation":1,"next":2,"attempt":1,"count":4,"ready_timeout_ms":1,"probation_ms":1,"alive_every_ms":1}`,
		`{"type":"sockets","first":0,"items":[{"name":"http","kind":"listener","network":"tcp","address":"[::]:80","cookie":"12","netns":"1"}]}`,
		`{"type":"received","first":0,"cookies":["12"]}`,
		`{"type":"granted","generation":2}`, `{"type":"alive"}`,
		`{"type":"progress","generation":1,"connections":{"idle":1}}`,
		`{"type":"drained","report":{"a":1}}`,
		`{"type":"status","status":{"phase":"owner","sockets":[]}}`,
		`{"type":"hello","protocols":[1],"intent":"report","generation":3,"moves":true}`,
		`{"type":"connections","items":[{"listener":"http","cookie":"12","unread":"R0VU","state":"AA=="},{"listener":"b","cookie":"1"}],"withdrawn":3}`,
		`{"type":"adopted","cookies":["12"],"stop":"no more"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		got, err := decodeFrame(p)
		if err != nil {
			if !errors.Is(err, errFrame) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		// What was accepted can be said again, and means the same.
		b, err := encodeFrame(got)
		if err != nil {
			return // grown past the limit by escaping
		}
		again, err := decodeFrame(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if d := cmp.Diff(got, again, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(frameConnections{})); d != "" {
			t.Fatalf("%s\n%s", b, d)
		}
	})
}
