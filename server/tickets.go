package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// All in seconds.
const (
	// ticketRotation and ticketLifetime are those of crypto/tls.
	ticketRotation = 24 * 60 * 60
	ticketLifetime = 7 * ticketRotation

	// ticketSlack is how far the clock may go back unnoticed.
	ticketSlack = 60
)

// maxTicketKeys is one more than a lifetime needs.
const maxTicketKeys = ticketLifetime/ticketRotation + 1

// TicketKeys are the keys of TLS session tickets. crypto/tls makes its own in
// each process, so that after a handover no session can be resumed. These can be
// handed over:
//
//	keys := server.NewTicketKeys()
//	if data, err := gen.State("tls-tickets"); err == nil {
//		if inherited, err := server.ParseTicketKeys(data); err == nil {
//			keys = inherited
//		}
//	}
//	keys.Apply(srv.TLSConfig)
//	gen.OfferState("tls-tickets", keys.Marshal)
//
// As in crypto/tls a new key is made each day, and tickets are accepted for as
// long as their key is not older than seven days.
//
// Whoever has the keys can read recorded TLS 1.2 sessions. So nothing but
// Marshal gives them away: printed or logged, they only say how many they are.
//
// All methods may be called at the same time.
type TicketKeys struct {
	set atomic.Pointer[ticketSet]
	mu  sync.Mutex // held to replace set
}

var (
	_ fmt.Formatter  = (*TicketKeys)(nil)
	_ slog.LogValuer = (*TicketKeys)(nil)
)

// A ticketKey is one key. What encrypts and authenticates is derived from it by
// crypto/tls.
type ticketKey struct {
	made   int64 // Unix seconds: it must mean the same in another process
	secret [32]byte
}

// A ticketSet is what the keys are for a while. It does not change.
type ticketSet struct {
	keys        []ticketKey // newest first; at least one
	config      *tls.Config // encrypts with the first, decrypts with any
	from, until int64       // Unix seconds: it holds from the one until before the other
}

// NewTicketKeys makes new keys.
func NewTicketKeys() *TicketKeys { return new(TicketKeys) }

// ParseTicketKeys reads keys that Marshal has written. It fails if they are
// malformed, if all of them are too old, or if one is from the future.
func ParseTicketKeys(data []byte) (*TicketKeys, error) {
	now := time.Now().Unix()
	keys, err := decodeTicketKeys(data, now)
	if err != nil {
		return nil, fmt.Errorf("parse TLS ticket keys: %w", err)
	}
	k := new(TicketKeys)
	k.set.Store(newTicketSet(keys, now))
	return k, nil
}

// Apply has config issue and accept tickets of these keys, also those that are
// made later, and whether or not config is cloned. It must be called before
// config is used. What config.GetConfigForClient returns needs an Apply of its
// own.
func (k *TicketKeys) Apply(config *tls.Config) {
	config.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		return k.current().config.EncryptTicket(cs, ss)
	}
	config.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		return k.current().config.DecryptTicket(ticket, cs)
	}
}

// Marshal writes the keys as ParseTicketKeys reads them: for a successor, and
// for nobody else. It never fails; it is what offers of state look like.
func (k *TicketKeys) Marshal(context.Context) ([]byte, error) {
	return encodeTicketKeys(k.current().keys), nil
}

// String says how many keys there are, and not what they are.
func (k *TicketKeys) String() string {
	n := 0
	if s := k.set.Load(); s != nil {
		n = len(s.keys)
	}
	return fmt.Sprintf("TLS ticket keys (%d)", n)
}

// Format writes String, whatever the verb.
func (k *TicketKeys) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue is String.
func (k *TicketKeys) LogValue() slog.Value { return slog.StringValue(k.String()) }

// current gives the keys that are good now, and makes a new one if it is time
// for it.
func (k *TicketKeys) current() *ticketSet {
	now := time.Now().Unix()
	if s := k.set.Load(); s.holds(now) {
		return s
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.set.Load()
	if !s.holds(now) {
		s = s.renew(now)
		k.set.Store(s)
	}
	return s
}

func (s *ticketSet) holds(now int64) bool { return s != nil && s.from <= now && now < s.until }

// renew is what s becomes at a time at which it does not hold. s may be nil.
func (s *ticketSet) renew(now int64) *ticketSet {
	var keys []ticketKey
	if s != nil {
		keys = validTicketKeys(s.keys, now)
	}
	if len(keys) == 0 || now-keys[0].made >= ticketRotation {
		fresh := ticketKey{made: now}
		rand.Read(fresh.secret[:]) // never fails
		keys = append([]ticketKey{fresh}, keys...)
		keys = keys[:min(len(keys), maxTicketKeys)]
	}
	return newTicketSet(keys, now)
}

func newTicketSet(keys []ticketKey, now int64) *ticketSet {
	s := &ticketSet{keys: keys, config: new(tls.Config), from: now - ticketSlack}
	secrets := make([][32]byte, len(keys))
	for i, k := range keys {
		secrets[i] = k.secret
	}
	s.config.SetSessionTicketKeys(secrets)
	s.until = min(keys[0].made+ticketRotation, keys[len(keys)-1].made+ticketLifetime)
	return s
}

// validTicketKeys leaves out what is too old. A key that was made later than now,
// because the clock has gone back, counts as made now: it must come to its end.
func validTicketKeys(all []ticketKey, now int64) (valid []ticketKey) {
	for _, k := range all {
		k.made = min(k.made, now)
		if now-k.made < ticketLifetime {
			valid = append(valid, k)
		}
	}
	return valid
}

// The encoding is ticketMagic, a version, and then each key, newest first: when
// it was made, and itself.
const (
	ticketMagic   = "tickets"
	ticketVersion = 1
	ticketHeader  = len(ticketMagic) + 1
	ticketKeySize = 8 + 32
)

func encodeTicketKeys(keys []ticketKey) []byte {
	b := make([]byte, 0, ticketHeader+len(keys)*ticketKeySize)
	b = append(b, ticketMagic...)
	b = append(b, ticketVersion)
	for _, k := range keys {
		b = binary.BigEndian.AppendUint64(b, uint64(k.made))
		b = append(b, k.secret[:]...)
	}
	return b
}

// decodeTicketKeys gives the keys that are good at a time. Its errors do not show
// what may be part of a key.
func decodeTicketKeys(data []byte, now int64) ([]ticketKey, error) {
	if len(data) < ticketHeader || string(data[:len(ticketMagic)]) != ticketMagic {
		return nil, errors.New("this is something else")
	}
	if v := data[len(ticketMagic)]; v != ticketVersion {
		return nil, fmt.Errorf("they are of version %d, and this program knows version %d", v, ticketVersion)
	}
	const most = ticketHeader + maxTicketKeys*ticketKeySize
	rest := data[ticketHeader:]
	switch {
	case len(data) > most:
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), most)
	case len(rest) == 0:
		return nil, errors.New("there is none")
	case len(rest)%ticketKeySize != 0:
		return nil, errors.New("the last one is cut off")
	}
	keys := make([]ticketKey, len(rest)/ticketKeySize)
	for i := range keys {
		k := &keys[i]
		k.made = int64(binary.BigEndian.Uint64(rest))
		copy(k.secret[:], rest[8:])
		rest = rest[ticketKeySize:]
		switch {
		case k.made < 0 || k.made > now+ticketSlack:
			return nil, fmt.Errorf("number %d is from the future", i+1)
		case k.secret == [32]byte{}:
			return nil, fmt.Errorf("number %d is zero", i+1)
		case i > 0 && k.made > keys[i-1].made:
			return nil, fmt.Errorf("number %d is newer than the one before", i+1)
		}
	}
	if keys = validTicketKeys(keys, now); len(keys) == 0 {
		return nil, errors.New("none is younger than seven days")
	}
	return keys, nil
}
