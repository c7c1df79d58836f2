"""Answers with what it was sent, and at /version with its version."""

import os

VERSION = "blue"
GENERATION = os.environ["HANDOVERD_GENERATION"]


def app(environ, start_response):
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/version":
        body = VERSION.encode()
    start_response("200 OK", [
        ("Content-Length", str(len(body))),
        ("Content-Type", "application/octet-stream"),
        ("Handoverd-Generation", GENERATION),
        ("X-Request-Id", environ.get("HTTP_X_REQUEST_ID", "")),
    ])
    return [body]
