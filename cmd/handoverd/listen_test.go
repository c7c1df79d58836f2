//go:build linux

package main

import (
	"strings"
	"testing"
)

func TestListenForms(t *testing.T) {
	long := "/" + strings.Repeat("x", 107)
	for _, c := range []struct {
		text string
		want listenSpec
		says string // part of the error; "" if there is none
	}{
		{"tcp://:8080", listenSpec{"", "tcp", ":8080"}, ""},
		{"web=tcp://127.0.0.1:80", listenSpec{"web", "tcp", "127.0.0.1:80"}, ""},
		{"a=b=tcp4://0.0.0.0:http", listenSpec{"a=b", "tcp4", "0.0.0.0:http"}, ""},
		{"tcp6://[::1]:0", listenSpec{"", "tcp6", "[::1]:0"}, ""},
		{"dns=udp://:53", listenSpec{"dns", "udp", ":53"}, ""},
		{"udp4://:53", listenSpec{"", "udp4", ":53"}, ""},
		{"unix:///run/a=b.sock", listenSpec{"", "unix", "/run/a=b.sock"}, ""},
		{"x=unix:@abstract", listenSpec{"x", "unix", "@abstract"}, ""},
		{"unixpacket:///run/p", listenSpec{"", "unixpacket", "/run/p"}, ""},
		{"unixgram:@g", listenSpec{"", "unixgram", "@g"}, ""},
		{"", listenSpec{}, "give [NAME=]tcp://"},
		{"8080", listenSpec{}, "give [NAME=]tcp://"},
		{":8080", listenSpec{}, "unknown network"},
		{"http://:80", listenSpec{}, "unknown network"},
		{"tcp::80", listenSpec{}, "// is missing"},
		{"tcp://8080", listenSpec{}, "not HOST:PORT"},
		{"tcp://::1:80", listenSpec{}, "in brackets"},
		{"tcp://:", listenSpec{}, "not HOST:PORT"},
		{"tcp://:80/", listenSpec{}, "port"},
		{"tcp://:65536", listenSpec{}, "port"},
		{"=tcp://:80", listenSpec{}, "empty name"},
		{"@x=tcp://:80", listenSpec{}, "reserved"},
		{"a b=tcp://:80", listenSpec{}, "not allowed"},
		{"unix://run/x", listenSpec{}, "absolute path"},
		{"unix:/run/x", listenSpec{}, "absolute path"},
		{"unix:@", listenSpec{}, "absolute path"},
		{"unix://" + long, listenSpec{}, "at most 107"},
	} {
		got, err := parseListen(c.text)
		switch {
		case c.says == "" && (err != nil || got != c.want):
			t.Errorf("%q: %+v, %v, want %+v", c.text, got, err, c.want)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%q: error %v, want one that says %q", c.text, err, c.says)
		}
	}
}

func TestListenNamesAreUnique(t *testing.T) {
	for _, c := range []struct {
		texts []string
		says  string
	}{
		{[]string{"tcp://:1", "b=tcp://:2"}, ""},
		{[]string{"b=tcp://:2", "tcp://:1"}, ""},
		{[]string{"tcp://:1", "tcp://:2"}, "give the others one, as in web=tcp://:2"},
		{[]string{"a=tcp://:1", "a=tcp://:2"}, "two listeners are named"},
		{[]string{"default=tcp://:1", "tcp://:2"}, ""},
	} {
		var l listenList
		for _, text := range c.texts {
			if err := l.Set(text); err != nil {
				t.Fatal(err)
			}
		}
		err := nameListeners(l.specs)
		switch {
		case len(c.texts) == 2 && c.texts[0] == "default=tcp://:1":
			if exitCode(err) != exitUsage {
				t.Errorf("%v: %v", c.texts, err)
			}
		case c.says == "" && (err != nil || l.specs[0].name != defaultName && l.specs[1].name != defaultName):
			t.Errorf("%v: %v, %+v", c.texts, err, l.specs)
		case c.says != "" && (exitCode(err) != exitUsage || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%v: %v, want a usage error that says %q", c.texts, err, c.says)
		}
	}
}

func TestActivatedNamesAreMadeFit(t *testing.T) {
	used := map[string]bool{}
	for _, c := range [][2]string{
		{"web.socket", "web.socket"}, {"web.socket", "web.socket-2"}, {"web.socket", "web.socket-3"},
		{"@x", "x"}, {"a b:c\x01ü", "a-b-c--"}, {"", "socket"}, {"@", "socket-2"},
		{strings.Repeat("y", 300), strings.Repeat("y", 120)},
	} {
		if got := uniqueName(cleanName(c[0]), used); got != c[1] {
			t.Errorf("%q: %q, want %q", c[0], got, c[1])
		}
	}
}
