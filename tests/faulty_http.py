"""The sockets of the local PEPS, and the faults that can be put on them.

A fault is called with the Handler of a request, and returns something true if it has
answered that request itself.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import socketserver
import ssl
import struct
import sys
import threading
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 256 * 1024
# Linger for no time at all: the kernel drops what is unsent and resets the connection.
LINGER_NOW = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


def status(code, headers=None, body=b"", content_type="text/html"):
    """Answer with this instead; a Content-Length among the headers is sent as it is."""
    return lambda handler: (
        handler.answer(code, {"Content-Type": content_type, **(headers or {})}, body)
        or True
    )


def cut(after):
    """Close the connection after so many bytes of the normal body; None: no head."""

    def fault(handler):
        handler.cut_after = after
        if after is None:
            handler.break_off()
        return after is None

    return fault


def reset(after):
    """The same as `cut`, but the connection is reset."""
    return lambda handler: setattr(handler, "reset", True) or cut(after)(handler)


def hold(event, after=0):
    """Send so many bytes of the normal body, wait for the event, go on.

    None: wait before its head.
    The server sets the event itself when it stops or is reset.
    """

    def fault(handler):
        if after is None:
            handler.peps.wait_held(event)
        else:
            handler.hold = (event, after)

    return fault


def stall(after=None):
    """Send so many bytes of the normal body, then nothing more; stay connected."""
    return lambda handler: hold(threading.Event(), after)(handler)


def no_range(handler):
    """Send all, whatever range was asked for."""
    handler.no_range = True


def without_length(handler):
    """Leave out the Content-Length; the body ends where the connection does."""
    handler.no_length = True


def raw(content):
    """Send these bytes instead of an answer, then close the connection."""

    def fault(handler):
        handler.wfile.write(content)
        handler.break_off()
        return True

    return fault


def head_and(body: bytes, *lines: str, code: str = "200 OK"):
    """An answer as it is written here, then the end of the connection."""
    head = "\r\n".join((f"HTTP/1.1 {code}", "Content-Type: application/zip", *lines))
    return raw(head.encode() + b"\r\n\r\n" + body)


def endless(head: bytes, again: bytes, pause_s: float = 0):
    """Send a head, then the same bytes until the client leaves or the server stops."""

    def fault(handler):
        stop = threading.Event()
        handler.peps.note_held(stop)
        with contextlib.suppress(OSError):
            handler.connection.sendall(head)
            while not stop.wait(pause_s) if pause_s else not stop.is_set():
                handler.connection.sendall(again)
        handler.break_off()
        return True

    return fault


def for_gets(*faults, for_ever: bool = False):
    """What GET requests meet in turn; then nothing, or the last one for ever."""
    turns = iter(faults)
    last = faults[-1] if for_ever else None

    def fault(handler):
        found = next(turns, last) if handler.command == "GET" else None
        return bool(found and found(handler))

    return fault


def for_heads(fault):
    """The fault for HEAD requests alone."""
    return lambda handler: handler.command == "HEAD" and fault(handler)


def error_document(code: int, text: str) -> tuple[int, dict, bytes]:
    """An error as the service puts it: status, headers and body."""
    content = json.dumps({"ErrorCode": code, "ErrorMessage": text}).encode()
    return code, {"Content-Type": "application/json"}, content


class Request(NamedTuple):
    """The head of a request: `query` undecoded, header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    host: str

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


class Server(socketserver.ThreadingTCPServer):
    """The listening socket, which knows its connections so that it can end them."""

    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, peps, handler=None, port=0):
        self.peps, self.open = peps, {}
        super().__init__(("127.0.0.1", port), handler or Handler)

    def process_request(self, request, client_address):
        work = self.process_request_thread
        thread = threading.Thread(
            target=work, args=(request, client_address), daemon=True
        )
        self.open[thread] = request
        thread.start()

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.open.pop(threading.current_thread(), None)

    def handle_error(self, request, client_address):
        """Say nothing of broken connections, which are what the tests are about."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError)):
            super().handle_error(request, client_address)

    def drop_connections(self):
        """End all connections and wait for their threads."""
        threads = list(self.open.items())
        for _, request in threads:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for thread, _ in threads:
            if thread.ident:  # else it is only about to start
                thread.join(5)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; faults set its fields from `cut_after` on, for one request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def peps(self):
        return self.server.peps

    def log_message(self, *args):
        """Be quiet; the journal has it all."""

    def parse_request(self) -> bool:
        """Read a head, and put it into the journal."""
        self.cut_after, self.reset, self.hold, self.no_range, self.no_length = (
            None,
            False,
            None,
            False,
            False,
        )
        if not super().parse_request():
            return False
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        # A client that takes this for its proxy names the whole URL.
        path = re.sub(r"^https?://[^/]+", "", path)
        self.record = Request(
            self.command, path, query, headers, headers.get("host", "")
        )
        self.peps.note(self.record)
        return True

    def do_GET(self):
        try:
            if not any(fault(self) for fault in self.peps.faults_for(self.record)):
                self.peps.route(self)
        finally:
            self.peps.note()

    do_HEAD = do_GET

    def answer_file(self, content: bytes | Path):
        """Answer with a product, or with the rest of it that was asked for."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.record.headers.get("range", ""))
        first, headers = (
            int(asked[1]) if asked and not self.no_range else 0,
            {"Content-Type": "application/zip"},
        )
        if first == 0:
            self.answer(200, headers, content, (0, size))
        elif first >= size:
            self.answer(416, {"Content-Range": f"bytes */{size}"})
        else:
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
            self.answer(206, headers, content, (first, size))

    def answer(self, code, headers=None, body: bytes | Path = b"", part=None):
        """Send an answer; all go through here, so that a fault can hit each of them.

        A Content-Length among the headers replaces the right one; `part` is first byte
        and end of what is sent of the body.
        """
        start, stop = part or (0, len(body))
        head = self.make_head(code, headers or {}, stop - start)
        size = 0 if self.command == "HEAD" else stop - start
        end = start + (size if self.cut_after is None else min(size, self.cut_after))
        held = min(end, start + self.hold[1]) if self.hold else end
        first = (
            body[start:held]
            if isinstance(body, bytes) and held - start <= CHUNK_BYTES
            else b""
        )
        self.count(len(first))  # before it leaves, for who has it all may ask at once
        self.connection.sendall(head + first)  # a small body in the same packet
        self.pump(body, start + len(first), held)
        if held < end:
            self.peps.wait_held(self.hold[0])
            self.pump(body, held, end)
        if self.cut_after is not None:
            self.break_off()

    def make_head(self, code, headers, length) -> bytes:
        lines = {"Date": self.date_time_string(), "Content-Length": length, **headers}
        if self.no_length:
            del lines["Content-Length"]
            self.close_connection = True
        if self.close_connection:
            lines["Connection"] = "close"
        # A client that waits for more than there is must not wait for ever.
        if str(lines.get("Content-Length")) != str(length):
            self.close_connection = True
        phrase = self.responses.get(code, ("Unknown",))[0]
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"HTTP/1.1 {code} {phrase}\r\n{text}\r\n".encode("latin-1")

    def pump(self, body, start, end):
        """Send bytes `start` to before `end` of a body, in pieces that are counted."""
        with (
            body.open("rb")
            if isinstance(body, Path)
            else contextlib.nullcontext() as file
        ):
            while start < end:
                if file:
                    file.seek(start)
                piece = (
                    file.read(min(CHUNK_BYTES, end - start))
                    if file
                    else memoryview(body)[start:end][:CHUNK_BYTES]
                )
                self.count(len(piece))
                sent = self.connection.send(piece)
                self.count(sent - len(piece))
                start += sent

    def count(self, size):
        if self.command == "GET":
            self.peps.count_sent(self.record.path, size)

    def break_off(self):
        self.close_connection = True
        if self.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOW)
            # Closed here and by hand, as the server would first end it in good order.
            self.rfile.close()
            self.connection.close()
