import fcntl
import http.server
import resource
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from fast_train.common.console import Display
from fast_train.data_prep.errors import DownloadError, PreparedSetError
from fast_train.data_prep.sources import download as module
from fast_train.data_prep.sources.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(monkeypatch):
    """A server on this machine; ``state`` says how it behaves and what it was asked for."""
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = SimpleNamespace(content=CONTENT, ranges=True, drop_after=[], statuses=[], asked=[], length=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append((self.path, self.headers.get("Range")))
            if state.statuses:
                status = state.statuses.pop(0)
                if status != 200:
                    self.send_error(status)
                    return
            self._send()

        def _send(self):
            total, start = len(state.content), 0
            if state.ranges and self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if state.length:
                self.send_header("Content-Length", str(total - start))
            self.end_headers()
            body = state.content[start:]
            self.wfile.write(body[: state.drop_after.pop(0)] if state.drop_after else body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{httpd.server_port}/folder/file.bin"
        yield state
        httpd.shutdown()
        thread.join()


@pytest.fixture
def fetch(server, tmp_path):
    """Downloads the server's file; the path it should lie at."""

    def run(url=None):
        target = tmp_path / "cache" / "file.bin"
        download(url or server.url, target, is_right=lambda p: p.read_bytes() == CONTENT, display=Display())
        return target

    return run


def _left(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("length", [True, False])
def test_a_plain_download(server, fetch, tmp_path, length):
    server.length = length
    assert fetch().read_bytes() == CONTENT
    assert _left(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(server, fetch, tmp_path, ranges):
    server.ranges, server.drop_after = ranges, [100_000, 50_000]
    assert fetch().read_bytes() == CONTENT
    asked = ["bytes=100000-", "bytes=150000-" if ranges else "bytes=50000-"]
    assert [header for _, header in server.asked] == [None, *asked]
    assert _left(tmp_path) == ["file.bin"]


def test_an_earlier_run_is_taken_up_again(server, fetch, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin.part").write_bytes(CONTENT[:123_456])
    assert fetch().read_bytes() == CONTENT
    assert [header for _, header in server.asked] == ["bytes=123456-"]


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more", b"x" * 1000, b"x" * len(CONTENT)])
def test_leftovers_whole_or_wrong_still_give_the_right_file(server, fetch, tmp_path, left):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin.part").write_bytes(left)
    assert fetch().read_bytes() == CONTENT
    assert _left(tmp_path) == ["file.bin"]


def test_wrong_content_is_deleted_and_said(server, fetch, tmp_path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=r"file\.bin is not the right file \(wrong MD5\), deleted"):
        fetch()
    assert _left(tmp_path) == []


def test_a_refusal_stands(server, fetch, tmp_path):
    server.statuses = [404]
    with pytest.raises(DownloadError, match="HTTP 404"):
        fetch()
    assert len(server.asked) == 1
    assert _left(tmp_path) == []


def test_a_busy_server_is_asked_again(server, fetch):
    server.statuses = [503, 429, 200]
    assert fetch().read_bytes() == CONTENT


def test_what_came_is_kept_for_the_next_run(server, fetch, tmp_path):
    server.drop_after = [1000] + [0] * 20
    with pytest.raises(DownloadError, match="the connection broke after 1,000 of 300,000 bytes"):
        fetch()
    assert _left(tmp_path) == ["file.bin.part"]
    server.drop_after = []
    assert fetch().read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=1000-"


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 100 kB: as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_is_told_with_its_folder(fetch, tmp_path):
    with pytest.raises(PreparedSetError, match=rf"{tmp_path}/cache can't take more: File too large"):
        fetch()


def test_nobody_there(server, fetch, tmp_path):
    with pytest.raises(DownloadError, match="connection refused"):
        fetch("http://127.0.0.1:9/file.bin")
    with pytest.raises(DownloadError, match="not an address"):
        fetch("http://127.0.0.1:port/file.bin")
    assert _left(tmp_path) == []


def test_two_downloads_do_not_mix(server, fetch, tmp_path):
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / "file.bin.part", "wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is downloading"):
            fetch()
