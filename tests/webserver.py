"A local web server with moods, for the tests of what is downloaded."
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


class Web:
    """Serves `files` (path -> bytes). `moods` (path -> list) says how the next answers to a path go wrong, one entry each; when the list is
    empty all is well: a number >= 400 is a status, (status, Retry-After) a busy server, "cut:N" ends the connection after N bytes, "stall:N"
    stops sending after N bytes, "page" is an HTML page, "plain page" one that calls itself a binary, "notice" a text that calls itself HTML,
    "ignore" pays no heed to ranges, "other" sends other bytes of the same length."""

    def __init__(self, files=None):
        self.files, self.moods, self.asked, self.sent = dict(files or {}), {}, [], 0
        self.ranges, self.etag, self.pause, self.lock, self.over = True, '"v1"', 0., threading.Lock(), threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args): pass
            def do_GET(self):
                try: web.answer(self)
                except (BrokenPipeError, ConnectionResetError): pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.over.set(); self.server.shutdown(); self.server.server_close()

    def answer(self, h):
        path = h.path.split("?")[0]
        with self.lock: mood = self.moods[path].pop(0) if self.moods.get(path) else ""
        begin = int(h.headers["Range"][6:].split("-")[0]) if "Range" in h.headers else 0
        self.asked.append((path, begin, mood, h.headers.get("If-Range")))
        if isinstance(mood, tuple): h.send_response(mood[0]); h.send_header("Retry-After", mood[1]); h.send_header("Content-Length", 0); h.end_headers(); return
        if isinstance(mood, int) or path not in self.files: h.send_error(mood or 404); return
        data = PAGE if "page" in mood else b"Sorry, we have moved." if mood == "notice" else self.files[path]
        if mood == "other": data = bytes(255 - b for b in data)
        fits = h.headers.get("If-Range") in (None, self.etag)
        if not self.ranges or mood == "ignore" or not fits: begin = 0
        if begin and begin >= len(data):
            h.send_response(416); h.send_header("Content-Range", f"bytes */{len(data)}"); h.send_header("Content-Length", 0); h.end_headers(); return
        body = data[begin:]
        h.send_response(206 if begin else 200)
        if begin: h.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        if self.etag: h.send_header("ETag", self.etag)
        h.send_header("Content-Type", "text/html; charset=utf-8" if mood in ("page", "notice") else "application/octet-stream")
        h.send_header("Content-Length", len(body)); h.end_headers()
        kind, _, n = str(mood).partition(":")
        for i in range(0, len(body), 4096):
            piece = body[i:i + 4096] if kind not in ("cut", "stall") else body[i:min(i + 4096, int(n))]
            with self.lock: self.sent += len(piece)  # before it is sent: who has it all may ask at once
            h.wfile.write(piece)
            if self.pause: time.sleep(self.pause)
            if kind in ("cut", "stall") and i + 4096 >= int(n):
                h.wfile.flush()
                if kind == "stall": self.over.wait(3)
                h.close_connection = True
                return


def without_proxy():
    "Requests to this machine must not go through a proxy."
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
