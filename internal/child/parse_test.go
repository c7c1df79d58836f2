package child

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseCustom(t *testing.T) {
	for _, text := range []string{
		"systemd", "no-systemd", "einhorn", "server-starter", "nginx",
		"FD={fd}", "FDS={fds:,}", "X={fd:web}", "X=a{{b}}c{fd:a.b}{fds:; }", "X=", "_x1=y",
	} {
		c, err := ParseCustom(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if c.String() != text {
			t.Errorf("%s becomes %s", text, c)
		}
	}
	for text, says := range map[string]string{
		"":                      "none of systemd",
		"Systemd":               "none of systemd",
		"=x":                    "no name",
		"1X=y":                  "no name",
		"A B=y":                 "no name",
		"LISTEN_FDS=1":          "custom of its own",
		"EINHORN_FD_0=3":        "custom of its own",
		"NGINX={fds:;};":        "custom of its own",
		"NOTIFY_SOCKET=/x":      "custom of its own",
		"X={":                   "{ without }",
		"X={fd":                 "{ without }",
		"X=}":                   "} without {",
		"X={fd:}":               "none of {fd}",
		"X={fdx}":               "none of {fd}",
		"X={}":                  "none of {fd}",
		"X={fd:a b}":            "printable",
		"X={fd:a:b}":            "printable",
		"X={fds:{}":             "none of {fd}",
		"X=\x00":                "zero byte",
		"X={fd:" + "\xff" + "}": "printable",
	} {
		if c, err := ParseCustom(text); err == nil {
			t.Errorf("%q is accepted: %v", text, c)
		} else if !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

func TestEnvironment(t *testing.T) {
	sockets := []Socket{
		{Name: "web", Network: "tcp", Address: "0.0.0.0:80"},
		{Name: "tls", Network: "tcp", Address: "[::1]:443"},
		{Name: "all", Network: "tcp", Address: "[::]:81"},
		{Name: "app", Network: "unix", Address: "/run/app"},
		{Name: "dns", Network: "udp", Address: "127.0.0.1:53"},
		{Name: "", Network: "unixpacket", Address: "@x"},
	}
	custom := func(texts ...string) (all []Custom) {
		for _, text := range texts {
			c, err := ParseCustom(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
		return all
	}
	base := []string{"A=1", "B=2", "LISTEN_PID=9", "A=3", "NOTIFY_SOCKET=x", "EINHORN_SOCK_PATH=x"}
	for name, test := range map[string]struct {
		customs []Custom
		sockets []Socket
		env     []string
		pid     bool
	}{
		"default":     {nil, sockets, []string{"B=2", "A=3", "LISTEN_FDS=6", "LISTEN_FDNAMES=web:tls:all:app:dns:unknown"}, true},
		"no sockets":  {nil, nil, []string{"B=2", "A=3"}, false},
		"none at all": {custom("no-systemd"), sockets, []string{"B=2", "A=3"}, false},
		"server-starter": {custom("no-systemd", "server-starter"), sockets, []string{"B=2", "A=3",
			"SERVER_STARTER_PORT=80=3;[::1]:443=4;[::]:81=5;/run/app=6;@x=8", "SERVER_STARTER_GENERATION=5"}, false},
		"nginx": {custom("no-systemd", "nginx"), sockets[:2], []string{"B=2", "A=3", "NGINX=3;4;"}, false},
		"einhorn": {custom("no-systemd", "einhorn"), sockets[:2], []string{"B=2", "A=3", "EINHORN_MASTER_PID=77",
			"EINHORN_FD_COUNT=2", "EINHORN_FDS=3 4", "EINHORN_FD_0=3", "EINHORN_FD_FAMILY_0=AF_INET", "EINHORN_FD_1=4"}, false},
		"templates": {custom("no-systemd", "A={fd:app}", "C={{{fds: }}}", "D={fd:tls}/{fd:web}"), sockets,
			[]string{"B=2", "A=6", "C={3 4 5 6 7 8}", "D=4/3"}, false},
		"the only socket": {custom("no-systemd", "A={fd}"), sockets[3:4], []string{"B=2", "A=3"}, false},
	} {
		c := Config{Env: base, Customs: test.customs, Sockets: test.sockets, Generation: 5}
		env, pid, err := c.environment(77, []string{"AF_INET"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(test.env, env); diff != "" || pid != test.pid {
			t.Errorf("%s: LISTEN_PID %v, %s", name, pid, diff)
		}
	}
	for name, c := range map[string]Config{
		"path with a semicolon": {Customs: custom("server-starter"), Sockets: []Socket{{Name: "x", Network: "unix", Address: "/a;b"}}},
		"no address":            {Customs: custom("server-starter"), Sockets: []Socket{{Name: "x", Network: "tcp", Address: ""}}},
		"unknown":               {Customs: custom("X={fd:nobody}"), Sockets: sockets},
		"several":               {Customs: custom("X={fd}"), Sockets: sockets},
	} {
		if env, _, err := c.environment(1, nil); err == nil {
			t.Errorf("%s: %q", name, env)
		}
	}
}

func TestParseReadiness(t *testing.T) {
	for _, text := range []string{
		"none", "notify", "http://127.0.0.1:80/health?x=1", "http://[::1]/", "tcp://localhost:1", "tcp://[::1]:65535",
		"delay=2s", "delay=0s", "exec=true", `exec=a "b c" 'd' e\ f`,
	} {
		r, err := ParseReadiness(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if r.String() != text {
			t.Errorf("%s becomes %s", text, r)
		}
	}
	for text, says := range map[string]string{
		"":                "give notify",
		"ready":           "give notify",
		"NOTIFY":          "give notify",
		"http://":         "no host",
		"http://:80/":     "no host",
		"http://a:b/":     "port",
		"http://a:0/":     "no port",
		"http://a:70000/": "no port",
		"https://a/":      "not supported",
		"tcp://a":         "tcp://HOST:PORT",
		"tcp://:80":       "tcp://HOST:PORT",
		"tcp://a:http":    "no port",
		"tcp://a:+1":      "no port",
		"delay=":          "500ms",
		"delay=-1s":       "500ms",
		"delay=2":         "500ms",
		"exec=":           "no command",
		"exec=  ":         "no command",
		"exec=''":         "no command",
		`exec=a "b`:       "not closed",
		`exec=a \`:        "backslash",
		"exec=a \x00":     "zero byte",
		"http://a/\x7f":   "invalid",
	} {
		if r, err := ParseReadiness(text); err == nil {
			t.Errorf("%q is accepted: %v", text, r)
		} else if !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	if got := (Readiness{}).String(); got != "none" {
		t.Error(got)
	}
}

func TestSplitWords(t *testing.T) {
	for text, want := range map[string][]string{
		"":                     nil,
		" a  b\tc\n":           {"a", "b", "c"},
		`a "b c" d`:            {"a", "b c", "d"},
		`a 'b "c' d`:           {"a", `b "c`, "d"},
		`a b\ c \\ \"`:         {"a", "b c", `\`, `"`},
		`"a\"b" "c\\d" "e\fg"`: {`a"b`, `c\d`, `e\fg`},
		`'a\b'`:                {`a\b`},
		`'' ""`:                {"", ""},
		`x'y'"z"`:              {"xyz"},
	} {
		got, err := splitWords(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestParseMessage(t *testing.T) {
	text := func(s string) *string { return &s }
	for in, want := range map[string]message{
		"":                            {},
		"READY=1":                     {ready: true},
		"READY=1\n":                   {ready: true},
		"READY=1\nREADY=0":            {ready: true},
		"READY=0\nX\n=\nREADY=1":      {ready: true},
		"READY= 1":                    {},
		"READY=1\x00":                 {},
		"STATUS=a=b":                  {status: text("a=b")},
		"STATUS=":                     {status: text("")},
		"STATUS=\x1b]0;x\x07\xff\ty":  {status: text("]0;x� y")},
		"STOPPING=1\nRELOADING=1":     {stopping: true, reloading: true},
		"MAINPID=12":                  {mainPID: 12},
		"MAINPID=1":                   {},
		"MAINPID=-5":                  {},
		"MAINPID=99999999999":         {},
		"EXTEND_TIMEOUT_USEC=1500000": {extend: 1500 * time.Millisecond},
		"EXTEND_TIMEOUT_USEC=18446744073709551615": {extend: 24 * time.Hour},
		"EXTEND_TIMEOUT_USEC=-1":                   {},
		"BARRIER=1\nWATCHDOG=1\nFDSTORE=1":         {},
	} {
		got := parseMessage([]byte(in))
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(message{})); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"TERM": 15, "SIGQUIT": 3, "quit": 3, "sigkill": 9, "3": 3, "64": 64,
		"RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63,
	} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("%s: %v %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "65", "-1", "SIG", "TERMINATE", "RTMIN3", "RTMIN+31", "RTMAX+1", "SIG3", "SIGSIGTERM", " TERM"} {
		if got, err := ParseSignal(text); err == nil {
			t.Errorf("%q is accepted: %v", text, got)
		}
	}
}

func FuzzParseCustom(f *testing.F) {
	for _, text := range []string{"systemd", "nginx", "X={fd:web}", "X={fds:;}{{}}", "X={fd", "=", "X={fd}{fds}"} {
		f.Add(text)
	}
	sockets := []Socket{{Name: "web"}}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCustom(text)
		if err != nil {
			return
		}
		again, err := ParseCustom(c.String())
		if err != nil {
			t.Fatalf("%q becomes %q: %v", text, c, err)
		}
		if again.String() != c.String() {
			t.Fatalf("%q becomes %q becomes %q", text, c, again)
		}
		one, err1 := expand(c.parts, sockets)
		two, err2 := expand(again.parts, sockets)
		if one != two || (err1 == nil) != (err2 == nil) {
			t.Fatalf("%q: %q %v, %q %v", text, one, err1, two, err2)
		}
	})
}

func FuzzParseReadiness(f *testing.F) {
	for _, text := range []string{"notify", "http://a:1/b", "tcp://[::1]:2", "delay=1s", `exec=a "b" 'c' \d`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseReadiness(text)
		if err != nil {
			return
		}
		if r.String() != text {
			t.Fatalf("%q becomes %q", text, r)
		}
		for _, w := range r.words {
			if strings.ContainsRune(w, 0) {
				t.Fatalf("%q: a zero byte in %q", text, w)
			}
		}
	})
}

// Words that are quoted come out as they were.
func FuzzSplitWords(f *testing.F) {
	f.Add("a", "b c")
	f.Add(`\`, `"'`)
	f.Add("\xcf", "\x83")
	f.Fuzz(func(t *testing.T, a, b string) {
		splitWords(a) // must not panic
		if strings.ContainsRune(a+b, 0) {
			return
		}
		quote := func(s string) string {
			return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
		}
		got, err := splitWords(quote(a) + " \t" + quote(b))
		if err != nil || !slices.Equal(got, []string{a, b}) {
			t.Fatalf("%q %q: %q, %v", a, b, got, err)
		}
	})
}

func FuzzParseMessage(f *testing.F) {
	for _, text := range []string{"READY=1", "STATUS=x\nMAINPID=3", "EXTEND_TIMEOUT_USEC=1", "READY=1\x00", "\n=\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := parseMessage(b)
		said := slices.Contains(strings.Split(string(b), "\n"), "READY=1")
		if m.ready != said {
			t.Fatalf("%q: ready %v", b, m.ready)
		}
		if m.mainPID < 0 || m.mainPID == 1 || m.extend < 0 || m.extend > 24*time.Hour {
			t.Fatalf("%q: %+v", b, m)
		}
		if m.status != nil {
			for _, r := range *m.status {
				if r < ' ' || r == 127 {
					t.Fatalf("%q: status %q", b, *m.status)
				}
			}
		}
	})
}

func FuzzParseSignal(f *testing.F) {
	for _, text := range []string{"TERM", "SIGRTMIN+1", "9"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSignal(text); err == nil && (s < 1 || s > sigRTMax) {
			t.Fatalf("%q: %d", text, int(s))
		}
	})
}
