import contextlib
import errno
import fcntl
import hashlib
import http.server
import os
import resource
import threading
import urllib.request
from dataclasses import dataclass, field

import numpy as np
import pytest

from fast_train.common.console import Display
from fast_train.data_prep.errors import DownloadError, PreparedSetError
from fast_train.data_prep.sources import download as module
from fast_train.data_prep.sources.download import Pace, download
from fast_train.data_prep.sources.known import KnownFile

CONTENT = np.random.default_rng(0).bytes(300_000)
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
KNOWN = KnownFile("file.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest())


@dataclass
class Host:
    """How an address behaves, and which parts it was asked for."""

    url: str
    content: bytes = CONTENT
    ranges: bool = True
    #: What it says a part begins with, beyond what was asked for.
    lie: int = 0
    length: bool = True
    #: Bytes after which each connection in turn breaks.
    drop_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    reason: str | None = None
    location: str | None = None
    #: Seconds before the status line, between the headers' bytes, and between pieces of the content.
    silence: float = 0.0
    header_pause: float = 0.0
    piece: int = len(CONTENT)
    piece_pause: float = 0.0
    asked: list[str | None] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host = self.server.hosts[self.path.split("/")[1]]
        host.asked.append(self.headers.get("Range"))
        # An error: the reader has left.
        with contextlib.suppress(OSError):
            self._answer(host)

    def _answer(self, host):
        self.server.stop.wait(host.silence)
        if host.header_pause:
            for byte in b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 1000:
                self.wfile.write(bytes([byte]))
                if self.server.stop.wait(host.header_pause):
                    return
        if host.location:
            self.send_response(302)
            self.send_header("Location", host.location)
            self.end_headers()
        elif host.statuses and (status := host.statuses.pop(0)) != 200:
            self.send_response(status, host.reason)
            self.end_headers()
        else:
            self._send(host)

    def _send(self, host):
        total, start = len(host.content), 0
        if host.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(416 if start >= total else 206)
            self.send_header("Content-Range", f"bytes {start + host.lie}-{total - 1}/{total}")
        else:
            self.send_response(200)
        if host.length:
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        body = host.content[start:]
        body = body[: host.drop_after.pop(0)] if host.drop_after else body
        for at in range(0, len(body), host.piece):
            self.wfile.write(body[at : at + host.piece])
            if self.server.stop.wait(host.piece_pause):
                return

    def log_message(self, *args):
        pass


@pytest.fixture
def make_host(monkeypatch):
    """Makes addresses on this machine that behave as they are told to."""
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "HURRIED", Pace(silence=1.0, rate=500_000, seconds=0.2))
    monkeypatch.setattr(module, "PATIENT", Pace(silence=10.0, rate=10_000, seconds=0.2))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.hosts, httpd.stop = {}, threading.Event()
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def make(**behaviour):
            name = f"host-{len(httpd.hosts)}"
            httpd.hosts[name] = Host(f"http://127.0.0.1:{httpd.server_port}/{name}/file.bin", **behaviour)
            return httpd.hosts[name]

        yield make
        httpd.stop.set()
        httpd.shutdown()
        thread.join()


@pytest.fixture
def fetch(tmp_path):
    """Downloads the file from hosts or addresses; the path it should lie at."""

    def run(*hosts):
        target = tmp_path / "cache" / "file.bin"
        download([getattr(host, "url", host) for host in hosts], target, KNOWN, Display())
        return target

    return run


def _left(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("length", [True, False])
def test_a_plain_download(make_host, fetch, tmp_path, capsys, length):
    host = make_host(length=length)
    assert fetch(host).read_bytes() == CONTENT
    assert _left(tmp_path) == ["file.bin"]
    assert "file.bin from 127.0.0.1:" in capsys.readouterr().out


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(make_host, fetch, tmp_path, ranges):
    host = make_host(ranges=ranges, drop_after=[100_000, 50_000])
    assert fetch(host).read_bytes() == CONTENT
    # Without ranges the second one broke within what was there.
    assert host.asked == [None, "bytes=100000-", "bytes=150000-" if ranges else "bytes=100000-"]
    assert _left(tmp_path) == ["file.bin"]


def test_an_earlier_run_is_taken_up_again(make_host, fetch, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin.part").write_bytes(CONTENT[:123_456])
    host = make_host()
    assert fetch(host).read_bytes() == CONTENT
    assert host.asked == ["bytes=123456-"]


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more", b"x" * 1000, b"x" * len(CONTENT)])
def test_leftovers_whole_or_wrong_still_give_the_right_file(make_host, fetch, tmp_path, left):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin.part").write_bytes(left)
    assert fetch(make_host()).read_bytes() == CONTENT
    assert _left(tmp_path) == ["file.bin"]


@pytest.mark.parametrize(
    "behaviour, said",
    [
        ({"content": WRONG}, "its file has the wrong MD5"),
        ({"content": b"<html>please log in</html>"}, "its file has 26 bytes, not 300000"),
        ({"content": CONTENT * 2, "length": False}, "it sends more than 300,000 bytes"),
        ({"statuses": [404], "reason": "\x1b[31mgone"}, r"HTTP 404 \\x1b\[31mgone"),
        ({"location": "ftp://127.0.0.1/file.bin"}, "it redirects from http to ftp"),
        ({"location": "file:///etc/passwd"}, "HTTP 302 Found - Redirection to url 'file:///etc/passwd'"),
    ],
)
def test_what_can_not_become_right_is_asked_for_once_and_leaves_nothing(make_host, fetch, tmp_path, behaviour, said):
    host = make_host(**behaviour)
    with pytest.raises(DownloadError, match=rf"file\.bin can't be downloaded \(127\.0\.0\.1:\d+: {said}"):
        fetch(host)
    assert len(host.asked) == 1
    assert _left(tmp_path) == []


@pytest.mark.parametrize(
    "behaviour",
    [
        {"content": WRONG},
        {"content": CONTENT[:1000]},
        {"content": CONTENT * 2, "length": False},
        {"statuses": [404]},
        {"statuses": [503] * 9},
        {"silence": 60},
        {"header_pause": 0.1},
        {"piece": 20_000, "piece_pause": 0.1},
        {"piece": 1, "piece_pause": 0.05},
        {"drop_after": [100_000] + [0] * 9},
        {"drop_after": [1] * 99},
        {"ranges": False, "drop_after": [100_000] * 9},
    ],
)
def test_a_host_that_does_not_deliver_is_left_for_the_next(make_host, fetch, tmp_path, behaviour):
    first, second = make_host(**behaviour), make_host()
    assert fetch(first, second).read_bytes() == CONTENT
    assert len(first.asked) == len(second.asked) == 1
    assert _left(tmp_path) == ["file.bin"]


def test_the_next_goes_on_from_the_bytes_that_are_there(make_host, fetch, capsys):
    slow, fast = make_host(piece=20_000, piece_pause=0.1), make_host()
    assert fetch(slow, fast).read_bytes() == CONTENT
    assert int(fast.asked[0].removeprefix("bytes=").rstrip("-")) > 0
    assert "/s are too slow" in capsys.readouterr().out


def test_of_slow_hosts_the_fastest_is_taken(make_host, fetch, monkeypatch):
    # So high that both are too slow.
    monkeypatch.setattr(module, "HURRIED", Pace(silence=5.0, rate=1e9, seconds=0.1))
    slower, faster = make_host(piece=1000, piece_pause=0.05), make_host(piece=20_000, piece_pause=0.03)
    dead = "http://127.0.0.1:9/file.bin"
    assert fetch(slower, dead, faster).read_bytes() == CONTENT
    assert len(slower.asked) == 1
    assert len(faster.asked) == 2


def test_right_bytes_after_wrong_ones_begin_anew(make_host, fetch):
    wrong, right = make_host(content=WRONG[::-1], drop_after=[100_000] * 9), make_host()
    assert fetch(wrong, right).read_bytes() == CONTENT
    assert right.asked == ["bytes=100000-", None]


def test_a_lie_about_ranges_is_not_believed(make_host, fetch, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin.part").write_bytes(CONTENT[:1000])
    liar, honest = make_host(lie=500), make_host()
    assert fetch(liar, honest).read_bytes() == CONTENT
    assert len(liar.asked) == 1
    assert honest.asked == ["bytes=1000-"]


@pytest.mark.parametrize(
    "behaviour, said",
    [
        ({"drop_after": [1] * 99}, "the connection broke after 5 of 300,000 bytes"),
        ({"ranges": False, "drop_after": [1000] * 99}, "the connection broke after 1,000 of 300,000 bytes"),
        ({"piece": 1, "piece_pause": 0.01}, "B/s are too slow"),
        ({"silence": 60}, "no answer for 0.15 s"),
        ({"header_pause": 0.1}, "no answer for 0.15 s"),
        ({"piece": 1000, "piece_pause": 60}, "no answer for 0.15 s"),
    ],
)
def test_the_last_host_is_not_waited_for_without_end(make_host, fetch, monkeypatch, behaviour, said):
    silence = 0.15 if said.startswith("no answer") else 10.0
    monkeypatch.setattr(module, "PATIENT", Pace(silence=silence, rate=10_000, seconds=0.1))
    with pytest.raises(DownloadError, match=said):
        fetch(make_host(**behaviour))


def test_what_was_thrown_away_is_no_gain_when_it_comes_again(make_host, fetch, monkeypatch):
    monkeypatch.setattr(module, "_WORTH_BYTES", 1000)
    host = make_host(content=WRONG, drop_after=[50_000] + [240_000, 300_000, 1] * 20)
    with pytest.raises(DownloadError, match="the connection broke after 1 of 300,000 bytes"):
        fetch(host)
    assert len(host.asked) == 10


def test_a_slow_host_serves_where_there_is_no_other(make_host, fetch):
    host = make_host(piece=10_000, piece_pause=0.01)
    assert fetch(host).read_bytes() == CONTENT
    assert len(host.asked) == 1


def test_a_redirect_is_followed(make_host, fetch):
    assert fetch(make_host(location=make_host().url)).read_bytes() == CONTENT


def test_https_stays_https():
    # What a server with a certificate of its own would be needed for.
    redirects = module._Redirects()
    request = urllib.request.Request("https://127.0.0.1/a")
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://127.0.0.1/b") is not None
    with pytest.raises(Exception, match="redirects from https to http"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://127.0.0.1/b")


def test_a_busy_server_is_asked_again(make_host, fetch):
    assert fetch(make_host(statuses=[503, 429, 200])).read_bytes() == CONTENT


def test_what_came_is_kept_for_the_next_run(make_host, fetch, tmp_path):
    host = make_host(drop_after=[1000] + [0] * 20)
    with pytest.raises(DownloadError, match="the connection broke after 1,000 of 300,000 bytes"):
        fetch(host)
    assert _left(tmp_path) == ["file.bin.part"]
    host.drop_after = []
    assert fetch(host).read_bytes() == CONTENT
    assert host.asked[-1] == "bytes=1000-"


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 100 kB: as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_is_told_with_its_folder(make_host, fetch, tmp_path):
    with pytest.raises(PreparedSetError, match=rf"{tmp_path}/cache can't take more: File too large"):
        fetch(make_host())


def test_nobody_there(fetch, make_host, tmp_path):
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9: connection refused; 127\.0\.0\.1:port: not an address"):
        fetch("http://127.0.0.1:9/file.bin", "http://127.0.0.1:port/file.bin")
    assert _left(tmp_path) == []


def test_two_downloads_do_not_mix(make_host, fetch, tmp_path):
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / "file.bin.part", "wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is downloading"):
            fetch(make_host())


def test_what_another_process_brought_meanwhile_is_taken(make_host, fetch, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin").write_bytes(CONTENT)
    host = make_host()
    assert fetch(host).read_bytes() == CONTENT
    assert host.asked == []
    assert _left(tmp_path) == ["file.bin"]


def test_a_disk_without_locks_and_flushing_takes_a_download(make_host, fetch, monkeypatch):
    def refuse(number):
        def call(*_):
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    assert fetch(make_host()).read_bytes() == CONTENT
