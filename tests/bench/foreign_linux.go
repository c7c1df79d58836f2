package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Servers that are no Go programs. The generation is written into what they
// read when they start, so that answers tell it as those of the others do.

// nginx is upgraded as its manual says (nginx.org/en/docs/control.html,
// "Upgrading Executable on the Fly"), for which it has to be a daemon.
func nginx(s site, backend string) service {
	s.detaches = true
	t := &signalled{site: s, signal: syscall.SIGUSR2, command: func(s *site) []string {
		return []string{"nginx", "-p", s.dir, "-e", s.path("error.log"), "-c", s.path("nginx.conf")}
	}}
	t.prepare = func(s *site) error {
		listen := s.addr
		if s.tls {
			listen += " ssl http2"
		}
		return os.WriteFile(s.path("nginx.conf"), fmt.Appendf(nil, nginxConfig, s.dir, s.lab.cert, s.lab.key, backend, listen, s.generation), 0o644)
	}
	pid := filepath.Join(s.lab.path(s.name), "nginx.pid")
	t.main = func(ctx context.Context) (int, error) { return pidFile(ctx, pid, t.pid) }
	t.after = func(_ context.Context, old int) error {
		if err := syscall.Kill(old, syscall.SIGWINCH); err != nil {
			return err
		}
		return syscall.Kill(old, syscall.SIGQUIT)
	}
	return t
}

// nginxConfig keeps connections for as long as the others do.
const nginxConfig = `
user root;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log warn;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	client_body_buffer_size 64k;
	proxy_buffers 8 16k;
	keepalive_timeout 300s;
	keepalive_requests 100000000;
	ssl_certificate %[2]s;
	ssl_certificate_key %[3]s;
	upstream backend {
		server %[4]s;
		keepalive 64;
		keepalive_requests 100000000;
	}
	server {
		listen %[5]s;
		location / {
			proxy_pass http://backend;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_hide_header Handoverd-Generation;
			add_header Handoverd-Generation %[6]d;
		}
	}
}
`

// haproxy is reloaded by its master process (management guide, chapter 4).
func haproxy(s site, backend, option string) service {
	t := &signalled{site: s, signal: syscall.SIGUSR2, stays: true, command: func(s *site) []string {
		return []string{"haproxy", "-W", "-f", s.path("haproxy.cfg")}
	}}
	t.prepare = func(s *site) error {
		listen := s.addr
		if s.tls {
			listen += " ssl crt " + s.lab.path("both.pem") + " alpn h2,http/1.1"
		}
		return os.WriteFile(s.path("haproxy.cfg"), fmt.Appendf(nil, haproxyConfig, s.dir, option, listen, s.generation, backend), 0o644)
	}
	t.main = func(context.Context) (int, error) { return t.current.pid(), nil }
	return t
}

const haproxyConfig = `
global
	stats socket %[1]s/stats level admin expose-fd listeners
	hard-stop-after 10s
	maxconn 4000
defaults
	mode http
	%[2]s
	timeout connect 10s
	timeout client 300s
	timeout server 300s
frontend web
	bind %[3]s
	http-response set-header Handoverd-Generation %[4]d
	default_backend echo
backend echo
	server echo %[5]s
`

var gunicornArgs = []string{"--worker-class=gthread", "--workers=2", "--threads=32", "--keep-alive=300",
	"--graceful-timeout=10", "--log-level=warning"}

// gunicorn is upgraded as its manual says ("Upgrading to a new binary on the
// fly"). SIGWINCH is left out: it is only for those that are daemons.
func gunicorn(s site) service {
	t := &signalled{site: s, signal: syscall.SIGUSR2, command: func(s *site) []string {
		return append(append([]string{"gunicorn", "--bind=" + s.addr, "--pid=" + s.path("pid"), "--chdir=" + gunicornApp(s.lab)},
			gunicornArgs...), "app:app")
	}}
	pid := filepath.Join(s.lab.path(s.name), "pid")
	t.main = func(ctx context.Context) (int, error) { return pidFile(ctx, pid, t.pid) }
	t.after = func(_ context.Context, old int) error { return syscall.Kill(old, syscall.SIGTERM) }
	return t
}

// gunicornBelow is the same application as a program of handoverd.
func gunicornBelow(s site) service {
	args := append([]string{"--ready=notify", "--", "gunicorn", "--chdir=" + gunicornApp(s.lab)}, gunicornArgs...)
	return spawn(handoverd(append(args, "app:app")...))(s)
}

func gunicornApp(l *lab) string { return filepath.Join(l.module, "testdata/gunicorn") }
