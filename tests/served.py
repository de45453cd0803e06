"""A web server of a folder on this machine, which can misbehave."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Served:
    """What a server of a folder was asked, and how it is to answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.ranges = True
        """Whether it knows HTTP's ranges."""
        self.cuts: list[int] = []
        """After how many bytes to break off each of the next answers."""
        self.statuses: dict[str, list[int]] = {}
        """Path -> the statuses of its next answers."""
        self.asked: list[tuple[str, str | None]] = []
        """The path and range of each request."""

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a folder at `.address`, http://127.0.0.1:PORT."""
    state = Served(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, state))
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, state: Served, *args: Any) -> None:
        self.state = state
        super().__init__(*args)

    def do_GET(self) -> None:
        state = self.state
        wanted = self.headers["Range"]
        state.asked.append((self.path, wanted))
        file = state.folder / self.path.lstrip("/")
        planned = state.statuses.get(self.path)
        status = planned.pop(0) if planned else 200 if file.is_file() else 404
        if status != 200:
            self.send_error(status)
            return
        content = file.read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: state.cuts.pop(0) if state.cuts else None])

    def log_message(self, *args: Any) -> None: ...
