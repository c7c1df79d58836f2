package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/internal/site"
)

const echoRequest = "POST /echo HTTP/1.1\r\nHost: migration\r\nX-Request-Id: 7\r\nContent-Length: 4\r\n\r\nbody"

// Ten thousand clients are connected and silent while one generation replaces
// the other, twice. Each then has its answer on the connection that it had.
func TestIdleConnectionsMigrate(t *testing.T) {
	n := scale(10_000, 500)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if room := int(min(limit.Cur, 1<<20)) - 200; room < n {
		t.Logf("%d connections instead of %d: RLIMIT_NOFILE is %d", room, n, limit.Cur)
		n = room
	}
	b := newBench(t)
	owner := b.serve()
	address := b.address("web")
	conns := make([]*rawConn, n)
	for i := range conns {
		conns[i] = b.connectTo(address)
		if i%2 == 0 { // the others have never sent anything
			conns[i].send(echoRequest)
			conns[i].wantEcho("1", false)
		}
	}
	total := func(st *handover.Status) int64 { return st.Stats.Total() }
	b.awaitStatus("all are connected", func(st *handover.Status) bool { return total(st) == int64(n) })
	for generation := uint64(2); generation <= 3; generation++ {
		// Probation is over when commit says so: from then on they move.
		successor := b.takeover("--probation=30m")
		b.awaitPhase(generation, handover.PhaseProbation)
		st := b.awaitStatus("it answers", func(*handover.Status) bool { return true })
		if got := total(st); got != 0 {
			t.Errorf("%d connections have moved in probation, want none", got)
		}
		begin := time.Now()
		b.wantRun(0, "committed", "commit")
		b.awaitStatus("all have moved", func(st *handover.Status) bool { return total(st) == int64(n) })
		moved := time.Since(begin)
		owner.wantCode(0)
		owner.awaitText(fmt.Sprintf("%d moved, 0 finished, 0 closed idle, 0 killed", n))
		owner = successor

		latencies := make([]time.Duration, n)
		var wg sync.WaitGroup
		const workers = 64
		for w := range workers {
			wg.Go(func() {
				for i := w; i < n; i += workers {
					sent := time.Now()
					conns[i].send(echoRequest)
					conns[i].wantEcho(strconv.FormatUint(generation, 10), false)
					latencies[i] = time.Since(sent)
				}
			})
		}
		wg.Wait()
		slices.Sort(latencies)
		t.Logf("%d connections moved %v after commit was called; first answers then: p50 %v, p99 %v, max %v",
			n, moved.Round(time.Millisecond), latencies[n/2], latencies[n*99/100], latencies[n-1])
	}
}

// A request that comes byte by byte over several takeovers is answered once,
// and so are those that were sent together with others.
func TestSlowAndPipelinedRequestsAcrossTakeovers(t *testing.T) {
	b := newBench(t)
	owner := b.serve()
	slow, together := b.connect("web"), b.connect("web")
	sent, generation := 0, uint64(1)
	const most = len(echoRequest) - len("\r\nbody") // the head stays incomplete
	for sent < most {
		together.send(echoRequest + echoRequest + echoRequest[:30])
		together.wantEcho("", false)
		for range 20 {
			if sent < most {
				slow.send(echoRequest[sent : sent+1])
				sent++
			}
		}
		generation++
		successor := b.succeed(generation)
		together.wantEcho("", false)
		together.send(echoRequest[30:])
		together.wantEcho("", false)
		owner.wantCode(0)
		owner = successor
	}
	if generation < 4 {
		t.Fatalf("%d generations, want several", generation)
	}
	for ; sent < len(echoRequest); sent++ {
		slow.send(echoRequest[sent : sent+1])
	}
	last := strconv.FormatUint(generation, 10)
	slow.wantEcho(last, false)
	// Once, not twice: what comes next is the answer to the next one.
	slow.send("GET /healthz HTTP/1.1\r\nHost: migration\r\n\r\n")
	res, err := http.ReadResponse(slow.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "ok\n" || res.Header.Get(site.GenerationHeader) != last {
		t.Errorf("the next answer is %q from %q: %v", body, res.Header.Get(site.GenerationHeader), err)
	}
}

// What takes longer than three takeovers ends complete, in the generation that
// began it: a download and an upload of 100 MB, and a stream of events.
func TestLongTransfersAcrossThreeTakeovers(t *testing.T) {
	// On a machine that takes longer for the takeovers the stream does too.
	for _, events := range []int{40, 200, 1000} {
		if longTransfers(t, events) {
			return
		}
		t.Logf("three takeovers took longer than %d events", events)
	}
	t.Error("no stream was open over three takeovers")
}

// longTransfers reports whether the stream of events was open in the end.
func longTransfers(t *testing.T, n int) bool {
	const size, step = 100_000_000, 10_000_000
	b := newBench(t)
	first := b.serve()
	answer := func(c *rawConn) *http.Response {
		t.Helper()
		res, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if gen := res.Header.Get(site.GenerationHeader); gen != "1" || res.Close {
			t.Errorf("generation %s answers, announces a close %v", gen, res.Close)
		}
		return res
	}

	download := b.connect("web")
	download.send(fmt.Sprintf("GET /bytes?n=%d HTTP/1.1\r\nHost: t\r\n\r\n", size))
	var downloaded site.Verifier
	body := answer(download).Body
	more := func(n int64) {
		t.Helper()
		if _, err := io.CopyN(&downloaded, body, n); err != nil {
			t.Fatalf("download: %v after %d bytes", err, downloaded.Offset)
		}
	}

	upload := b.connect("web")
	upload.send("POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
	var uploaded, offset = site.Verifier{}, 0
	echoed := make(chan error, 1)
	send := func(n int) {
		t.Helper()
		chunk := make([]byte, 100_000)
		for end := offset + n; offset < end; offset += len(chunk) {
			site.Fill(chunk, int64(offset))
			upload.send(fmt.Sprintf("%x\r\n%s\r\n", len(chunk), chunk))
		}
	}
	go func() { // reads while it is sent
		res, err := http.ReadResponse(upload.br, nil)
		if err == nil {
			_, err = io.Copy(&uploaded, res.Body)
		}
		echoed <- err
	}()

	stream := b.connect("web")
	stream.send(fmt.Sprintf("GET /events?n=%d HTTP/1.1\r\nHost: t\r\n\r\n", n))
	events := answer(stream).Body
	type counted struct {
		events int
		err    error
	}
	streamed := make(chan counted, 1)
	go func() {
		var c counted
		lines := bufio.NewScanner(events)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "id: ") {
				c.events++
			}
		}
		c.err = lines.Err()
		streamed <- c
	}()

	owner := first
	for generation := uint64(2); generation <= 4; generation++ {
		more(step)
		send(step)
		successor := b.succeed(generation)
		b.wantGeneration(generation)
		if owner != first {
			owner.wantCode(0)
		}
		owner = successor
	}
	open := len(streamed) == 0
	first.wantAlive()
	more(size - downloaded.Offset)
	send(size - offset)
	upload.send("0\r\n\r\n")
	if err := <-echoed; err != nil || uploaded.Offset != size {
		t.Errorf("upload: %d bytes of %d came back right: %v", uploaded.Offset, size, err)
	}
	if c := <-streamed; c.err != nil || c.events != n {
		t.Errorf("%d events of %d, error %v", c.events, n, c.err)
	}
	first.wantCode(0)
	first.awaitText("3 moved, 0 finished, 0 closed idle, 0 killed")
	for _, c := range []*rawConn{download, upload, stream} {
		c.send(echoRequest)
		c.wantEcho("4", false)
	}
	return open
}
