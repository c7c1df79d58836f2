package child

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// firstFD is the first inherited descriptor: SD_LISTEN_FDS_START.
const firstFD = 3

// A Custom is a way to tell a program which descriptors it inherits. The zero
// value is systemd's, which is always followed unless NoSystemd is given.
type Custom struct {
	kind     string // the word, or "" for systemd, or "template"
	variable string
	parts    []part
}

// The customs that have no parameters.
var (
	Systemd       = Custom{}
	NoSystemd     = Custom{kind: "no-systemd"}
	Einhorn       = Custom{kind: "einhorn"}
	ServerStarter = Custom{kind: "server-starter"}
	Nginx         = Custom{kind: "nginx"}
)

// A part of a template is text, or stands for descriptors.
type part struct {
	text string // or the socket's name, or what separates descriptors
	verb string // "", "fd", "fd:", "fds"
}

// ParseCustom parses one of
//
//	systemd         LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID: sd_listen_fds(3). Always on
//	no-systemd      none of these
//	einhorn         EINHORN_FD_COUNT, EINHORN_FD_0, EINHORN_FD_FAMILY_0, ...,
//	                EINHORN_FDS="3 4", EINHORN_MASTER_PID: the program's parent
//	server-starter  SERVER_STARTER_PORT="127.0.0.1:80=3;/run/app=4",
//	                SERVER_STARTER_GENERATION. No packet sockets
//	nginx           NGINX="3;4;"
//	NAME=TEXT       that variable. In TEXT {fd:web} is the descriptor of the socket
//	                web, {fd} that of the only socket, {fds} are all descriptors with
//	                commas between them, {fds:;} with semicolons; {{ and }} are braces
func ParseCustom(text string) (Custom, error) {
	switch text {
	case "systemd":
		return Systemd, nil
	case "no-systemd", "einhorn", "server-starter", "nginx":
		return Custom{kind: text}, nil
	}
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return Custom{}, fmt.Errorf("%q is none of systemd, no-systemd, einhorn, server-starter, nginx, NAME=TEXT", text)
	}
	if !isVariable(name) {
		return Custom{}, fmt.Errorf("%q: %q is no name of an environment variable: letters, digits and _", text, name)
	}
	if isOurs(name) {
		return Custom{}, fmt.Errorf("%q: %s is set by a custom of its own", text, name)
	}
	if strings.ContainsRune(value, 0) {
		return Custom{}, fmt.Errorf("%q contains a zero byte", text)
	}
	parts, err := parseTemplate(value)
	if err != nil {
		return Custom{}, fmt.Errorf("%q: %w", text, err)
	}
	return Custom{kind: "template", variable: name, parts: parts}, nil
}

// String is what ParseCustom accepts.
func (c Custom) String() string {
	switch c.kind {
	case "":
		return "systemd"
	case "template":
		var b strings.Builder
		b.WriteString(c.variable + "=")
		for _, p := range c.parts {
			b.WriteString(p.String())
		}
		return b.String()
	}
	return c.kind
}

func (p part) String() string {
	switch p.verb {
	case "":
		return strings.NewReplacer("{", "{{", "}", "}}").Replace(p.text)
	case "fd:":
		return "{fd:" + p.text + "}"
	case "fds":
		return "{fds:" + p.text + "}"
	}
	return "{" + p.verb + "}"
}

func isVariable(name string) bool {
	for i, r := range name {
		letter := r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != ""
}

func parseTemplate(text string) (parts []part, err error) {
	var plain strings.Builder
	flush := func() {
		if plain.Len() > 0 {
			parts = append(parts, part{text: plain.String()})
			plain.Reset()
		}
	}
	for text != "" {
		i := strings.IndexAny(text, "{}")
		if i < 0 {
			plain.WriteString(text)
			break
		}
		plain.WriteString(text[:i])
		brace := text[i]
		text = text[i+1:]
		if text != "" && text[0] == brace { // doubled: itself
			plain.WriteByte(brace)
			text = text[1:]
			continue
		}
		if brace == '}' {
			return nil, errors.New("} without {; write }} for the brace itself")
		}
		inner, rest, ok := strings.Cut(text, "}")
		if !ok {
			return nil, errors.New("{ without }; write {{ for the brace itself")
		}
		p, err := parsePlaceholder(inner)
		if err != nil {
			return nil, err
		}
		flush()
		parts = append(parts, p)
		text = rest
	}
	flush()
	return parts, nil
}

func parsePlaceholder(inner string) (part, error) {
	verb, arg, has := strings.Cut(inner, ":")
	switch {
	case inner == "fd":
		return part{verb: "fd"}, nil
	case inner == "fds":
		return part{verb: "fds", text: ","}, nil
	case verb == "fds" && has && !strings.ContainsRune(arg, '{'):
		return part{verb: "fds", text: arg}, nil
	case verb == "fd" && has && arg != "":
		if err := checkName(arg); err != nil {
			return part{}, err
		}
		return part{verb: "fd:", text: arg}, nil
	}
	return part{}, fmt.Errorf("{%s} is none of {fd}, {fd:NAME}, {fds}, {fds:SEPARATOR}", inner)
}

// expand fills a template in.
func expand(parts []part, sockets []Socket) (string, error) {
	var b strings.Builder
	for _, p := range parts {
		switch p.verb {
		case "":
			b.WriteString(p.text)
		case "fd":
			if len(sockets) != 1 {
				return "", fmt.Errorf("{fd} needs exactly one socket, and there are %d: use {fd:NAME} or {fds}", len(sockets))
			}
			b.WriteString(strconv.Itoa(firstFD))
		case "fd:":
			i := slices.IndexFunc(sockets, func(s Socket) bool { return s.Name == p.text })
			if i < 0 {
				return "", fmt.Errorf("{fd:%s}: no socket has that name, there are: %s", p.text, strings.Join(names(sockets), ", "))
			}
			b.WriteString(strconv.Itoa(firstFD + i))
		case "fds":
			b.WriteString(strings.Join(numbers(sockets), p.text))
		}
	}
	return b.String(), nil
}

func names(sockets []Socket) (all []string) {
	for _, s := range sockets {
		all = append(all, s.Name)
	}
	return all
}

func numbers(sockets []Socket) (all []string) {
	for i := range sockets {
		all = append(all, strconv.Itoa(firstFD+i))
	}
	return all
}

// environment is the program's environment, but for LISTEN_PID, which the
// shim adds if pid is true. master is the pid of the program's parent, family
// the address family of each socket.
func (c *Config) environment(master int, family []string) (env []string, pid bool, err error) {
	set := map[string]string{}
	var order []string
	put := func(name, value string) {
		if _, ok := set[name]; !ok {
			order = append(order, name)
		}
		set[name] = value
	}
	pid = len(c.Sockets) > 0
	for _, custom := range c.Customs {
		switch custom.kind {
		case "no-systemd":
			pid = false
		case "einhorn":
			c.einhorn(put, master, family)
		case "server-starter":
			err = c.serverStarter(put)
		case "nginx":
			put("NGINX", c.nginx())
		case "template":
			var text string
			if text, err = expand(custom.parts, c.Sockets); err == nil {
				put(custom.variable, text)
			}
		}
		if err != nil {
			return nil, false, fmt.Errorf("custom %q: %w", custom, err)
		}
	}
	if pid {
		put("LISTEN_FDS", strconv.Itoa(len(c.Sockets)))
		put("LISTEN_FDNAMES", c.fdNames())
	}
	if c.Dir != "" {
		put("PWD", c.Dir) // as os/exec does
	}
	env = c.inherited(set)
	for _, name := range order {
		env = append(env, name+"="+set[name])
	}
	return env, pid, nil
}

// inherited is what the program gets of Env: all but what customs set, and but
// those in set.
func (c *Config) inherited(set map[string]string) (env []string) {
	last := map[string]int{} // of a name that is there twice the last one counts, as in os/exec
	for i, entry := range c.Env {
		name, _, _ := strings.Cut(entry, "=")
		last[name] = i
	}
	for i, entry := range c.Env {
		name, _, _ := strings.Cut(entry, "=")
		if _, again := set[name]; !again && !isOurs(name) && last[name] == i {
			env = append(env, entry)
		}
	}
	return env
}

// isOurs tells whether a variable belongs to a custom, or to the conversation
// of this process with its own manager.
func isOurs(name string) bool {
	switch name {
	case "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID",
		"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
		"SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION", "NGINX":
		return true
	}
	return strings.HasPrefix(name, "EINHORN_")
}

// fdNames gives each socket a name, also those that have none:
// sd_listen_fds_with_names(3) calls them "unknown".
func (c *Config) fdNames() string {
	all := names(c.Sockets)
	for i := range all {
		orDefault(&all[i], "unknown")
	}
	return strings.Join(all, ":")
}

// einhorn follows Einhorn's prepare_child_environment, and its older
// EINHORN_FDS, which socketmaster still uses.
func (c *Config) einhorn(put func(name, value string), master int, family []string) {
	put("EINHORN_MASTER_PID", strconv.Itoa(master))
	put("EINHORN_FD_COUNT", strconv.Itoa(len(c.Sockets)))
	put("EINHORN_FDS", strings.Join(numbers(c.Sockets), " "))
	for i := range c.Sockets {
		put(fmt.Sprintf("EINHORN_FD_%d", i), strconv.Itoa(firstFD+i))
		if i < len(family) && family[i] != "" {
			put(fmt.Sprintf("EINHORN_FD_FAMILY_%d", i), family[i])
		}
	}
}

// serverStarter follows Server::Starter, whose servers split at ';' and '='
// and take what has a colon for an address, a number for a port of all IPv4
// addresses, and the rest for a path.
func (c *Config) serverStarter(put func(name, value string)) error {
	var entries []string
	for i, s := range c.Sockets {
		if s.packet() {
			continue
		}
		address := s.Address
		if strings.HasPrefix(s.Network, "tcp") {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return fmt.Errorf("socket %q: %w", s.Name, err)
			}
			if address = net.JoinHostPort(host, port); host == "" || host == "0.0.0.0" {
				address = port
			}
		}
		if address == "" || strings.ContainsAny(address, ";=\x00") {
			return fmt.Errorf("socket %q: the address %q cannot be told this way", s.Name, address)
		}
		entries = append(entries, fmt.Sprintf("%s=%d", address, firstFD+i))
	}
	put("SERVER_STARTER_PORT", strings.Join(entries, ";"))
	put("SERVER_STARTER_GENERATION", strconv.FormatUint(c.Generation, 10))
	return nil
}

// nginx follows ngx_exec_new_binary: each number is followed by a semicolon.
func (c *Config) nginx() string {
	var b strings.Builder
	for _, n := range numbers(c.Sockets) {
		b.WriteString(n + ";")
	}
	return b.String()
}
