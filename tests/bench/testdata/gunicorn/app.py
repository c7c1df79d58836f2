"""The handler of package peer, for gunicorn."""

import os

with open(os.environ["BENCH_GENERATION"]) as f:
    GENERATION = f.read().strip()


def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response(
        "200 OK",
        [
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", str(len(body))),
            ("X-Request-Id", environ.get("HTTP_X_REQUEST_ID", "")),
            ("Handoverd-Generation", GENERATION),
        ],
    )
    return [body]
