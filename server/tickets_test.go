package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A firstSession is a client's cache that keeps the first session it gets, and
// so always presents the same ticket.
type firstSession struct{ session *tls.ClientSessionState }

func (c *firstSession) Get(string) (*tls.ClientSessionState, bool) {
	return c.session, c.session != nil
}

func (c *firstSession) Put(_ string, s *tls.ClientSessionState) {
	if c.session == nil {
		c.session = s
	}
}

// A visit makes a connection and reports whether it resumed a session.
type visit func(client *tls.Config) (resumed bool)

// visitPlain visits servers that are bare crypto/tls.
func visitPlain(t *testing.T, config *tls.Config, keys *TicketKeys) visit {
	config = config.Clone()
	keys.Apply(config)
	return func(client *tls.Config) bool {
		t.Helper()
		near, far := net.Pipe()
		served := make(chan error, 1)
		go func() {
			c := tls.Server(far, config)
			_, err := io.WriteString(c, "hello")
			c.Close()
			served <- err
		}()
		c := tls.Client(near, client)
		b, err := io.ReadAll(c)
		if serr := <-served; err != nil || serr != nil || string(b) != "hello" {
			t.Fatalf("client: %q, %v; server: %v", b, err, serr)
		}
		c.Close()
		return c.ConnectionState().DidResume
	}
}

// visitServer visits a Server.
func visitServer(t *testing.T, config *tls.Config, keys *TicketKeys) visit {
	srv, ln := newServer(http.HandlerFunc(hello)), newPipeListener()
	srv.TLSConfig = config.Clone()
	keys.Apply(srv.TLSConfig)
	serveTLS(t, srv, ln)
	t.Cleanup(func() { srv.Close() })
	return func(client *tls.Config) bool {
		t.Helper()
		c := ln.dialTLS(t, client)
		c.get("/")
		c.Close()
		return c.Conn.(*tls.Conn).ConnectionState().DidResume
	}
}

// parsed is what the successor makes of keys.
func parsed(t *testing.T, keys *TicketKeys) *TicketKeys {
	t.Helper()
	data, err := keys.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseTicketKeys(data)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSessionsAreResumedByTheNextServer(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for name, start := range map[string]func(*testing.T, *tls.Config, *TicketKeys) visit{"crypto/tls": visitPlain, "Server": visitServer} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+" "+tls.VersionName(version), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testResumption(t, start, serverTLS, clientTLS, version) })
			})
		}
	}
}

func testResumption(t *testing.T, start func(*testing.T, *tls.Config, *TicketKeys) visit, serverTLS, clientTLS *tls.Config, version uint16) {
	began := time.Now()
	client := func() *tls.Config {
		c := clientTLS.Clone()
		c.MinVersion, c.MaxVersion = version, version
		c.ClientSessionCache = new(firstSession)
		return c
	}
	want := func(resumed bool, what string, at visit, client *tls.Config) {
		t.Helper()
		if got := at(client); got != resumed {
			t.Errorf("after %v %s: resumed = %v, want %v", time.Since(began), what, got, resumed)
		}
	}
	a := NewTicketKeys()
	atA := start(t, serverTLS, a)
	want(false, "another client at A", atA, client())
	// The first key is a day old when it is used last: sessions that clients
	// still like will outlive it.
	time.Sleep(23 * time.Hour)
	one, two, three := client(), client(), client()
	want(false, "one, new at A", atA, one)
	want(true, "one at A", atA, one)
	time.Sleep(2 * time.Hour)
	want(false, "two, new at A", atA, two)
	if got := a.String(); got != "TLS ticket keys (2)" {
		t.Errorf("A has %s, want two", got)
	}

	atB := start(t, serverTLS, parsed(t, a))
	want(true, "one at B", atB, one)
	want(true, "two at B", atB, two)
	time.Sleep(25 * time.Hour)
	want(false, "three, new at B", atB, three)
	want(true, "three at B", atB, three)
	want(false, "three, of a key that A has not got, at A", atA, three)
	want(true, "one at B", atB, one)
	want(false, "one at a stranger", start(t, serverTLS, NewTicketKeys()), one)

	time.Sleep(time.Until(began.Add(7*24*time.Hour - time.Minute)))
	want(true, "one at B", atB, one)
	time.Sleep(2 * time.Minute)
	want(false, "one, of a key of seven days, at B", atB, one)
	want(true, "two at B", atB, two)
	time.Sleep(30 * 24 * time.Hour)
	want(false, "two, long after, at B", atB, two)
}

func TestTicketKeysRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewTicketKeys()
		newest := func() ticketKey { return k.current().keys[0] }
		first := newest()
		time.Sleep(24*time.Hour - time.Second)
		if newest() != first {
			t.Error("the key was replaced within a day")
		}
		time.Sleep(time.Second)
		if newest() == first {
			t.Error("the key was not replaced after a day")
		}
		for range 30 {
			time.Sleep(24 * time.Hour)
			seen := map[[32]byte]bool{}
			for i, key := range k.current().keys {
				seen[key.secret] = true
				if age := time.Since(time.Unix(key.made, 0)); age != time.Duration(i)*24*time.Hour || age >= 7*24*time.Hour {
					t.Fatalf("key %d is %v old", i, age)
				}
			}
			if len(seen) > 7 {
				t.Fatalf("%d keys", len(seen))
			}
		}
		if n := len(parsed(t, k).current().keys); n != 7 {
			t.Errorf("%d keys are handed over, want 7", n)
		}
	})
}

// When the clock goes back, keys become neither eternal nor many.
func TestTicketKeysWhenTheClockGoesBack(t *testing.T) {
	const now = 2_000_000_000
	s := (*ticketSet)(nil).renew(now)
	if !s.holds(now) || !s.holds(now-60) || s.holds(now-61) || s.holds(now+ticketRotation) {
		t.Fatalf("made at %d, holds from %d until %d", now, s.from, s.until)
	}
	for year := int64(1); year < 20; year++ {
		then := now - year*365*ticketRotation
		s = s.renew(then)
		if len(s.keys) > maxTicketKeys || s.until > then+ticketRotation {
			t.Fatalf("%d keys hold until %d, at %d", len(s.keys), s.until, then)
		}
		if s = s.renew(then + ticketRotation); len(s.keys) > maxTicketKeys || s.keys[0].made != then+ticketRotation {
			t.Fatalf("%d keys, the newest of %d, at %d", len(s.keys), s.keys[0].made, then)
		}
	}
	if got, err := decodeTicketKeys(encodeTicketKeys(s.keys), s.keys[0].made); err != nil || !slices.Equal(got, s.keys) {
		t.Errorf("what came of it cannot be handed over: %v", err)
	}
}

// testKey is a key of which every part can be recognised.
func testKey(made int64) ticketKey {
	k := ticketKey{made: made}
	for i := range k.secret {
		k.secret[i] = 0xa1 + byte(3*i)
	}
	return k
}

// shows reports whether text has a part of a key in it, in whatever form.
func shows(text string, k ticketKey) bool {
	for part := range slices.Chunk(k.secret[:], 6) {
		if len(part) < 6 {
			continue
		}
		var sharp []string
		for _, b := range part {
			sharp = append(sharp, fmt.Sprintf("%#x", b))
		}
		forms := []string{
			string(part), fmt.Sprintf("%x", part), fmt.Sprintf("%X", part), fmt.Sprintf("% x", part),
			strings.Trim(fmt.Sprint(part), "[]"), strings.Join(sharp, ", "),
			strings.ReplaceAll(strings.Trim(fmt.Sprint(part), "[]"), " ", ","),
			strings.Trim(fmt.Sprintf("%q", part), `"`), strings.Trim(fmt.Sprintf("%+q", part), `"`),
		}
		for skip := range 3 {
			forms = append(forms, base64.RawStdEncoding.EncodeToString(part[skip:skip+3]))
		}
		if slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(text, form) }) {
			return true
		}
	}
	return false
}

func TestTicketKeysAreNotShown(t *testing.T) {
	key := testKey(time.Now().Unix())
	k := NewTicketKeys()
	k.set.Store(newTicketSet([]ticketKey{key}, key.made))
	type exported struct{ Keys *TicketKeys }
	type hidden struct{ keys *TicketKeys }
	type embedded struct{ TicketKeys }
	var inside embedded
	inside.set.Store(k.set.Load())
	config := new(tls.Config)
	k.Apply(config)

	verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%t", "%T", "%p", "%z"}
	for _, v := range []any{k, &k, exported{k}, &exported{k}, hidden{k}, &hidden{k}, &inside, []*TicketKeys{k}, map[string]any{"k": k}, config} {
		var text strings.Builder
		for _, verb := range verbs {
			fmt.Fprintf(&text, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			text.Write(b)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&text, nil), slog.NewJSONHandler(&text, nil)} {
			slog.New(h).With("with", v).Info("keys", "keys", v, slog.Group("group", "keys", v))
		}
		if shows(text.String(), key) {
			t.Errorf("a key is shown:\n%s", text.String())
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, k); got != "TLS ticket keys (1)" {
			t.Errorf("%s: %q", verb, got)
		}
	}
	if got := fmt.Sprint(k, (*TicketKeys)(nil), NewTicketKeys()); got != "TLS ticket keys (1) <nil> TLS ticket keys (0)" {
		t.Errorf("%q", got)
	}

	// And if one were shown, it would be noticed.
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d"} {
		if !shows(fmt.Sprintf(verb, key.secret[:]), key) {
			t.Errorf("%s is not recognised", verb)
		}
	}
	if b, err := json.Marshal(key.secret[:]); err != nil || !shows(string(b), key) {
		t.Errorf("JSON is not recognised: %s, %v", b, err)
	}
}

func TestParseTicketKeys(t *testing.T) {
	const day = 24 * 60 * 60
	now := time.Now().Unix()
	zero := testKey(now)
	zero.secret = [32]byte{}
	good := encodeTicketKeys([]ticketKey{testKey(now)})
	huge := slices.Clone(good)
	huge[ticketHeader] = 0xff
	for _, c := range []struct {
		what string
		data []byte
		says string // part of the error; "" if there is none
	}{
		{"a key", good, ""},
		{"as many keys as there may be", encodeTicketKeys(slices.Repeat([]ticketKey{testKey(now)}, maxTicketKeys)), ""},
		{"a slow clock", encodeTicketKeys([]ticketKey{testKey(now + 30)}), ""},
		{"old and older", encodeTicketKeys([]ticketKey{testKey(now - 7*day + 60), testKey(now - 8*day)}), ""},
		{"nothing", nil, "something else"},
		{"something else", []byte("session ticket keys, but not ours"), "something else"},
		{"bare keys", good[ticketHeader:], "something else"},
		{"the future's version", append([]byte("tickets\x02"), good[ticketHeader:]...), "version 2"},
		{"no keys", good[:ticketHeader], "none"},
		{"less than a key", good[:len(good)-1], "cut off"},
		{"more than a key", append(slices.Clone(good), 0xa1), "cut off"},
		{"too many keys", encodeTicketKeys(slices.Repeat([]ticketKey{testKey(now)}, maxTicketKeys+1)), "at most"},
		{"far too much", append(slices.Clone(good), make([]byte, 64<<20)...), "at most"},
		{"a key of zeros", encodeTicketKeys([]ticketKey{testKey(now), zero}), "zero"},
		{"the wrong order", encodeTicketKeys([]ticketKey{testKey(now - day), testKey(now)}), "newer"},
		{"the future", encodeTicketKeys([]ticketKey{testKey(now + day)}), "future"},
		{"the far future", huge, "future"},
		{"too old", encodeTicketKeys([]ticketKey{testKey(now - 7*day - 1), testKey(now - 8*day)}), "younger"},
		{"no date", encodeTicketKeys([]ticketKey{testKey(0)}), "younger"},
	} {
		k, err := ParseTicketKeys(c.data)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.says == "":
			if got := k.current().keys; got[len(got)-1].secret != testKey(0).secret {
				t.Errorf("%s: other keys", c.what)
			}
		case err == nil || k != nil || !strings.Contains(err.Error(), c.says):
			t.Errorf("%s: %v, %v; want an error that says %q", c.what, k, err, c.says)
		case shows(err.Error(), testKey(0)):
			t.Errorf("%s: the error shows a key: %v", c.what, err)
		}
	}
}

func FuzzParseTicketKeys(f *testing.F) {
	const now = 2_000_000_000
	f.Add([]byte(nil))
	f.Add(encodeTicketKeys(nil))
	f.Add(encodeTicketKeys([]ticketKey{testKey(now)}))
	f.Add(encodeTicketKeys([]ticketKey{testKey(now + ticketSlack), testKey(now), testKey(now - ticketRotation)}))
	f.Add(encodeTicketKeys([]ticketKey{testKey(now - ticketLifetime + 1), testKey(now - ticketLifetime)}))
	f.Add(encodeTicketKeys(slices.Repeat([]ticketKey{testKey(now)}, maxTicketKeys+1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := ParseTicketKeys(data); err == nil {
			k.current()
		}
		keys, err := decodeTicketKeys(data, now)
		if err != nil {
			if keys != nil {
				t.Fatalf("keys and %v", err)
			}
			return
		}
		for _, k := range keys {
			if age := now - k.made; age < 0 || age >= ticketLifetime {
				t.Fatalf("a key is %d seconds old", age)
			}
		}
		again, err := decodeTicketKeys(encodeTicketKeys(keys), now)
		if err != nil || !slices.Equal(again, keys) {
			t.Fatalf("written and read again: %v", err)
		}
		if !bytes.HasPrefix(data, encodeTicketKeys(nil)) {
			t.Fatal("another encoding")
		}
		if s := newTicketSet(keys, now); !s.holds(now) && !s.renew(now).holds(now) {
			t.Fatal("the keys are of no use")
		}
	})
}

// However many want a ticket when a new key is due, they get the same key: one
// that a successor knows too.
func TestTicketKeysAtTheSameTime(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		cache := new(firstSession)
		clientTLS.ClientSessionCache = cache
		visitPlain(t, serverTLS, NewTicketKeys())(clientTLS)
		_, session, err := cache.session.ResumptionState()
		if err != nil {
			t.Fatal(err)
		}
		k, config := NewTicketKeys(), new(tls.Config)
		k.Apply(config)
		for range 100 {
			time.Sleep(25 * time.Hour)
			tickets := make([][]byte, 8)
			var wg sync.WaitGroup
			for i := range tickets {
				wg.Go(func() {
					tickets[i], _ = config.WrapSession(tls.ConnectionState{}, session)
					k.Marshal(context.Background())
					_ = fmt.Sprint(k)
				})
			}
			wg.Wait()
			next := new(tls.Config)
			parsed(t, k).Apply(next)
			for _, ticket := range tickets {
				if ss, err := next.UnwrapSession(ticket, tls.ConnectionState{}); ss == nil || err != nil {
					t.Fatalf("a ticket was made with a key that is lost: %v", err)
				}
			}
		}
	})
}
