package load

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxSamples is how many failures a Result describes in full.
const maxSamples = 16

// Result is what a run has counted, so far or in the end.
type Result struct {
	Started time.Time     `json:"started"`
	Elapsed time.Duration `json:"elapsed_ns"`
	Workers int           `json:"workers"`
	Seed    uint64        `json:"seed"`

	// Requests is the number of requests that have ended, in whatever way.
	// OK of them had a whole and correct answer.
	Requests int64 `json:"requests"`
	OK       int64 `json:"ok"`

	// Failures of the server; each request counts in at most one.
	Refused         int64 `json:"refused"`           // nobody listened
	DialFailed      int64 `json:"dial_failed"`       // no connection or no TLS session, for another reason
	Reset           int64 `json:"reset"`             // the connection was reset
	EOFBeforeAnswer int64 `json:"eof_before_answer"` // closed before the first byte of the answer
	EOFInAnswer     int64 `json:"eof_in_answer"`     // closed within the answer
	Timeout         int64 `json:"timeout"`           // no whole answer within Config.Timeout
	Malformed       int64 `json:"malformed"`         // the answer, or its connection, breaks the rules of HTTP
	WrongAnswer     int64 `json:"wrong_answer"`      // another request's id, or not its body
	BadStatus       int64 `json:"bad_status"`        // any status but 200
	StreamReset     int64 `json:"stream_reset"`      // RST_STREAM, with whatever code
	GoAwayRefused   int64 `json:"goaway_refused"`    // its stream had been opened, and is above that of a GOAWAY
	BehindClose     int64 `json:"behind_close"`      // pipelined behind an answer that said "Connection: close"
	OtherError      int64 `json:"other_error"`       // anything else, see FirstErrors

	// ClientFault counts requests that could not be made because this side ran
	// out of something (ports, descriptors). They say nothing about the server,
	// and a run that has any has not proved anything either.
	ClientFault int64 `json:"client_fault"`
	// Aborted counts requests cut short because the run's context ended.
	Aborted int64 `json:"aborted"`

	// Connects counts the connections made. AnnouncedReconnects of them replace
	// one whose last answer said "Connection: close", or that had a GOAWAY
	// without an error, UnannouncedReconnects one that the server closed or
	// reset without either.
	Connects              int64 `json:"connects"`
	AnnouncedReconnects   int64 `json:"announced_reconnects"`
	UnannouncedReconnects int64 `json:"unannounced_reconnects"`
	// LeftOpen counts HTTP/1.1 connections which the server said or was told to close,
	// and which it had not closed after Config.CloseWait. No failure.
	LeftOpen int64 `json:"left_open"`

	// Posts is the number of requests with a body among Requests, SentBytes the
	// bytes of those bodies.
	Posts     int64 `json:"posts"`
	SentBytes int64 `json:"sent_bytes"`
	// Pipelined is the number of requests among Requests that went out together
	// with others. Cut is the number of writes that were cut into pieces.
	Pipelined int64 `json:"pipelined"`
	Cut       int64 `json:"cut"`

	// Generations counts answers with a Handoverd-Generation header by its
	// value; GenerationsSeen has them in the order of their first appearance.
	Generations     map[string]int64 `json:"generations"`
	GenerationsSeen []Seen           `json:"generations_seen"`
	// WentBack counts new connections whose first answer came from a lower
	// generation than this worker had already seen. No failure by itself: a
	// rollback does it.
	WentBack int64 `json:"went_back"`

	// Latency is that of the requests that were OK, dialing included.
	Latency Histogram `json:"latency"`
	// FirstErrors are the first failures, client faults included.
	FirstErrors []Sample `json:"first_errors"`
}

// Seen says when answers of one generation came.
type Seen struct {
	Generation string    `json:"generation"`
	First      time.Time `json:"first"`
	Last       time.Time `json:"last"`
}

// Sample describes one failed request.
type Sample struct {
	Time       time.Time `json:"time"`
	Worker     int       `json:"worker"`
	Kind       string    `json:"kind"`
	Generation string    `json:"generation"` // of the worker's last answer before
	RequestID  string    `json:"request_id"`
	OnConn     int       `json:"on_conn"` // 1 for the first request of its connection, 0 if there was none
	Detail     string    `json:"detail"`
}

func (s Sample) String() string {
	gen := "no generation seen yet"
	if s.Generation != "" {
		gen = "last seen generation " + s.Generation
	}
	return fmt.Sprintf("%s worker %d, request %d on its connection, %s: %s: %s [%s]",
		s.Time.Format("15:04:05.000000"), s.Worker, s.OnConn, gen, s.Kind, s.Detail, s.RequestID)
}

// Reconnects is the number of connections that replace one which the server
// ended, announced or not.
func (r Result) Reconnects() int64 { return r.AnnouncedReconnects + r.UnannouncedReconnects }

// Failed is the number of requests that the server failed.
func (r Result) Failed() int64 {
	var n int64
	for o := range outcomeNames {
		if outcome(o).failed() {
			n += *r.counter(outcome(o))
		}
	}
	return n
}

// Err returns nil if there was at least one request and all were OK, except
// for those aborted by the caller's own context.
func (r Result) Err() error {
	switch {
	case r.Failed() > 0 || r.ClientFault > 0:
		return errors.New("load: " + r.String())
	case r.OK == 0:
		return errors.New("load: no request was answered: " + r.String())
	}
	return nil
}

// counter is the count of requests that ended in o.
func (r *Result) counter(o outcome) *int64 {
	switch o {
	case ok:
		return &r.OK
	case refused:
		return &r.Refused
	case dialFailed:
		return &r.DialFailed
	case reset:
		return &r.Reset
	case eofBeforeAnswer:
		return &r.EOFBeforeAnswer
	case eofInAnswer:
		return &r.EOFInAnswer
	case timedOut:
		return &r.Timeout
	case malformed:
		return &r.Malformed
	case wrongAnswer:
		return &r.WrongAnswer
	case badStatus:
		return &r.BadStatus
	case streamReset:
		return &r.StreamReset
	case goAwayRefused:
		return &r.GoAwayRefused
	case behindClose:
		return &r.BehindClose
	case clientFault:
		return &r.ClientFault
	case aborted:
		return &r.Aborted
	}
	return &r.OtherError
}

// saw counts an answer of generation gen.
func (r *Result) saw(gen string, at time.Time) {
	if r.Generations == nil {
		r.Generations = make(map[string]int64)
	}
	r.Generations[gen]++
	for i := len(r.GenerationsSeen) - 1; i >= 0; i-- {
		if s := &r.GenerationsSeen[i]; s.Generation == gen {
			s.Last = at
			return
		}
	}
	r.GenerationsSeen = append(r.GenerationsSeen, Seen{gen, at, at})
}

func (r *Result) addSample(s Sample) {
	if len(r.FirstErrors) < maxSamples {
		r.FirstErrors = append(r.FirstErrors, s)
	}
}

// Merge adds o to r as if both had been one run. o is not changed and shares
// nothing with r afterwards.
func (r *Result) Merge(o Result) {
	r.Latency = r.Latency.clone()
	r.Generations = maps.Clone(r.Generations)
	r.GenerationsSeen = slices.Clone(r.GenerationsSeen)
	r.add(&o)
}

// add is Merge for an r that shares nothing with another Result.
func (r *Result) add(o *Result) {
	r.mergeTimes(o)
	r.Workers += o.Workers
	if r.Seed == 0 {
		r.Seed = o.Seed
	}
	r.Requests += o.Requests
	for k := range outcomeNames {
		*r.counter(outcome(k)) += *o.counter(outcome(k))
	}
	r.Connects += o.Connects
	r.AnnouncedReconnects += o.AnnouncedReconnects
	r.UnannouncedReconnects += o.UnannouncedReconnects
	r.LeftOpen += o.LeftOpen
	r.Posts += o.Posts
	r.SentBytes += o.SentBytes
	r.Pipelined += o.Pipelined
	r.Cut += o.Cut
	r.WentBack += o.WentBack
	r.Latency.Merge(&o.Latency)
	r.mergeGenerations(o)
	r.FirstErrors = slices.SortedStableFunc(
		slices.Values(slices.Concat(r.FirstErrors, o.FirstErrors)),
		func(a, b Sample) int { return a.Time.Compare(b.Time) })
	r.FirstErrors = r.FirstErrors[:min(len(r.FirstErrors), maxSamples)]
}

func (r *Result) mergeTimes(o *Result) {
	switch {
	case o.Started.IsZero():
	case r.Started.IsZero():
		r.Started, r.Elapsed = o.Started, o.Elapsed
	default:
		end := r.Started.Add(r.Elapsed)
		if e := o.Started.Add(o.Elapsed); e.After(end) {
			end = e
		}
		if o.Started.Before(r.Started) {
			r.Started = o.Started
		}
		r.Elapsed = end.Sub(r.Started)
	}
}

func (r *Result) mergeGenerations(o *Result) {
	if r.Generations == nil {
		r.Generations = make(map[string]int64)
	}
	for gen, n := range o.Generations {
		r.Generations[gen] += n
	}
	seen := r.GenerationsSeen
	for _, s := range o.GenerationsSeen {
		i := slices.IndexFunc(seen, func(t Seen) bool { return t.Generation == s.Generation })
		if i < 0 {
			seen = append(seen, s)
			continue
		}
		if s.First.Before(seen[i].First) {
			seen[i].First = s.First
		}
		if s.Last.After(seen[i].Last) {
			seen[i].Last = s.Last
		}
	}
	slices.SortStableFunc(seen, func(a, b Seen) int { return a.First.Compare(b.First) })
	r.GenerationsSeen = seen
}

// String is a report of a few lines for people.
func (r Result) String() string {
	var b strings.Builder
	perSecond := 0.0
	if r.Elapsed > 0 {
		perSecond = float64(r.Requests) / r.Elapsed.Seconds()
	}
	verdict := "none failed"
	if n := r.Failed(); n > 0 {
		verdict = fmt.Sprintf("%d FAILED", n)
	}
	fmt.Fprintf(&b, "%d requests in %v (%.0f/s) by %d workers: %d ok, %s\n",
		r.Requests, r.Elapsed.Round(time.Millisecond), perSecond, r.Workers, r.OK, verdict)
	for k := range outcomeNames {
		if o := outcome(k); o != ok && *r.counter(o) > 0 {
			fmt.Fprintf(&b, "  %-26s%d\n", o, *r.counter(o))
		}
	}
	fmt.Fprintf(&b, "  latency                   p50 %v, p99 %v, p99.9 %v, max %v\n",
		r.Latency.Quantile(.5), r.Latency.Quantile(.99), r.Latency.Quantile(.999),
		r.Latency.Max().Round(time.Microsecond))
	fmt.Fprintf(&b, "  connections               %d, of these %d reconnects: %d announced, %d unannounced\n",
		r.Connects, r.Reconnects(), r.AnnouncedReconnects, r.UnannouncedReconnects)
	if r.Pipelined > 0 || r.Cut > 0 {
		fmt.Fprintf(&b, "  sent awkwardly            %d requests pipelined, %d writes cut\n", r.Pipelined, r.Cut)
	}
	if len(r.GenerationsSeen) > 0 {
		gens := make([]string, len(r.GenerationsSeen))
		for i, s := range r.GenerationsSeen {
			gens[i] = fmt.Sprintf("%s (%d)", s.Generation, r.Generations[s.Generation])
		}
		fmt.Fprintf(&b, "  generations (answers)     %s\n", strings.Join(gens, ", "))
	}
	if r.WentBack > 0 {
		fmt.Fprintf(&b, "  back to a lower one       %d\n", r.WentBack)
	}
	for _, s := range r.FirstErrors {
		fmt.Fprintf(&b, "  %v\n", s)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
