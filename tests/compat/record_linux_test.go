package compat

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/handoverd/handoverd/tests/compat/v1"
)

// record is what was said, as one side saw it: the conversations in the order
// in which they began, each in its own order.
type record struct {
	mu  sync.Mutex
	all []*conversation
}

// conversation is one of a record.
type conversation struct {
	lines []string
	over  bool // somebody had the last word

	batch []v1.Item      // of the last sockets
	moved []v1.MovedItem // of the last connections
}

// by records the conversations of a frozen peer, which is O, the owner, or S,
// the successor or operator.
func (r *record) by(side string, fc v1.Config) v1.Config {
	other := map[string]string{"O": "S", "S": "O"}[side]
	fc.OnConn = func(c *v1.Conn) {
		conv := &conversation{}
		r.mu.Lock()
		r.all = append(r.all, conv)
		r.mu.Unlock()
		c.Record = func(sent bool, p []byte, fds int) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if sent {
				conv.add(side, p, fds)
			} else {
				conv.add(other, p, fds)
			}
		}
	}
	return fc
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for i, c := range r.all {
		if i > 0 {
			b.WriteString("\n")
		}
		for _, line := range c.lines {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// add notes what side says. What depends on time is left out: alive and
// progress. So is who closes first when the last word has been said, which
// nobody promises.
func (c *conversation) add(side string, p []byte, fds int) {
	if p == nil {
		if !c.over {
			c.lines = append(c.lines, side+" closes")
		}
		return
	}
	f, err := v1.Decode(p)
	if err != nil {
		c.lines = append(c.lines, fmt.Sprintf("%s %s (%v)", side, p, err))
		return
	}
	text := c.normal(f)
	if text == "" {
		return
	}
	if fds == 1 {
		text += " + 1 descriptor"
	} else if fds > 1 {
		text += fmt.Sprintf(" + %d descriptors", fds)
	}
	c.lines = append(c.lines, side+" "+text)
}

// volatile are members that differ each time.
var volatile = regexp.MustCompile(`"(program|build|pid|address|cookie|netns|dev|ino|message|started|owner_since|netns_cookie|backlog)":("[^"]*"|[0-9]+)`)

// normal is a frame as version 1 sees it, without what it does not know, with
// placeholders for what differs each time.
func (c *conversation) normal(f any) string {
	switch f := f.(type) {
	case *v1.Hello:
		f.Program, f.Build = "-", "-" // placeholders, whether or not they were sent
		f.Protocols = slices.DeleteFunc(f.Protocols, func(v int) bool { return v != v1.Protocol })
	case *v1.Refuse:
		f.Message, c.over = "-", true // for people, in words that may change
	case *v1.Welcome:
		f.Program, f.Build = "-", "-"
	case *v1.Sockets:
		c.batch = slices.Clone(f.Items)
		// Their order means nothing; states come in any.
		slices.SortFunc(f.Items, func(a, b v1.Item) int { return strings.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name) })
	case *v1.Received:
		return fmt.Sprintf(`{"type":"received","first":%d,"cookies":[%s]}`, f.First, c.proof(f))
	case *v1.Connections:
		c.moved = f.Items
	case *v1.Adopted:
		return fmt.Sprintf(`{"type":"adopted","cookies":[%s]}`, c.taken(f))
	case *v1.Drained:
		c.over = true
	case *v1.StatusPage:
		c.over = !f.More
	case *v1.Progress:
		return ""
	case *v1.Simple:
		switch f.Type {
		case "alive":
			return ""
		case "ok", "revoked", "rollback":
			c.over = true
		}
	}
	b, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return volatile.ReplaceAllString(string(b), `"$1":"<$1>"`)
}

// proof names the sockets whose cookies were received, in the order in which
// sockets are written here.
func (c *conversation) proof(f *v1.Received) string {
	if len(f.Cookies) != len(c.batch) {
		return fmt.Sprintf("%d of %d", len(f.Cookies), len(c.batch))
	}
	var names []string
	for i, it := range c.batch {
		name := it.Kind + " " + it.Name
		if f.Cookies[i] != it.Cookie {
			name += " WRONG"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		_, name, _ = strings.Cut(name, " ")
		names[i] = `"<cookie of ` + name + `>"`
	}
	return strings.Join(names, ",")
}

// taken tells which of the connections that were sent last were adopted.
func (c *conversation) taken(f *v1.Adopted) string {
	var names []string
	for _, id := range f.Cookies {
		i := slices.IndexFunc(c.moved, func(it v1.MovedItem) bool { return it.Cookie == id })
		names = append(names, fmt.Sprintf(`"<cookie of item %d>"`, i))
	}
	return strings.Join(names, ",")
}

// A record shows what is wrong, not only that something is.
func TestRecordShowsWhatIsWrong(t *testing.T) {
	c := &conversation{}
	c.add("O", []byte(`{"type":"sockets","first":0,"items":[{"name":"b","kind":"file","cookie":"2"},{"name":"a","kind":"file","cookie":"1"}]}`), 2)
	c.add("S", []byte(`{"type":"received","first":0,"cookies":["2","7"]}`), 0)
	c.add("S", []byte(`{"type":"received","first":0,"cookies":["2"]}`), 0)
	c.add("S", []byte(`{"type":"alive","later":1}`), 0)
	c.add("O", []byte(`{"type":"a-later-type"}`), 1)
	c.add("S", []byte(`{"type":"commit","later":1}`), 0)
	c.add("S", nil, 0)
	same(t, "lines", []string{
		`O {"type":"sockets","first":0,"items":[{"name":"a","kind":"file","cookie":"<cookie>"},{"name":"b","kind":"file","cookie":"<cookie>"}]} + 2 descriptors`,
		`S {"type":"received","first":0,"cookies":["<cookie of a WRONG>","<cookie of b>"]}`,
		`S {"type":"received","first":0,"cookies":[1 of 2]}`,
		`O {"type":"a-later-type"} (malformed frame: unknown type "a-later-type")`,
		`S {"type":"commit"}`,
		`S closes`,
	}, c.lines)
}
