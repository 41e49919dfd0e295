"""Downloads that resume: into ``NAME.part``, which gets its name once it is whole and its checksum is right."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fast_train.common.console import Display
from fast_train.common.files import lock
from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import DownloadError
from fast_train.data_prep.staging import check_free_disk, disk_room

_CHUNK = 1 << 16
_TIMEOUT_SECONDS = 20.0
#: Attempts in a row that bring nothing, before giving up; a host that has never answered gets fewer.
_ATTEMPTS, _ATTEMPTS_UNANSWERED = 5, 2
#: Before the second attempt; each later pause is twice as long.
FIRST_PAUSE_SECONDS = 1.0
# Busy or momentarily out of order; any other refusal stands.
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The connection failed in a way that may pass."""


def download(url: str, target: Path, *, is_right: Callable[[Path], bool], display: Display) -> None:
    """Fetch ``url`` (http or https) to ``target``, going on from what an earlier run left in ``target.part``.

    ``is_right`` checks the content of the whole file. Broken connections are tried again with growing pauses. Raises
    DownloadError: no connection, a refusal, wrong content (which is deleted).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with disk_room(target.parent), open(part, "ab") as file:
        try:
            lock(file.fileno())
        except BlockingIOError as error:
            raise DownloadError(f"another process is downloading {show(part)}; try again when it is done") from error
        resumed = _size(file) > 0
        try:
            _fetch(url, file, display)
            right = is_right(part)
            if resumed and not right:
                # The earlier part may be of another file, or of a write that broke off.
                display.say(f"{show(target.name)}: the resumed download is not right; starting over")
                file.truncate(0)
                _fetch(url, file, display)
                right = is_right(part)
            if not right:
                file.truncate(0)
                raise DownloadError(f"{show(url)} is not the right file (wrong MD5), deleted")
            os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            if _size(file) == 0:
                part.unlink()


def _size(file: BinaryIO) -> int:
    # This also moves the position to the end: truncating leaves it where it was.
    return file.seek(0, os.SEEK_END)


def _fetch(url: str, file: BinaryIO, display: Display) -> None:
    """Append to ``file`` what is missing of the content of ``url``."""
    answered, failures = False, 0
    while True:
        before = _size(file)
        try:
            _fetch_once(url, file, display)
            return
        except _Interrupted as error:
            gained = _size(file) - before
            answered = answered or gained > 0 or isinstance(error.__cause__, urllib.error.HTTPError)
            failures = 1 if gained > 0 else failures + 1
            if failures >= (_ATTEMPTS if answered else _ATTEMPTS_UNANSWERED):
                raise DownloadError(f"{show(url)} can't be downloaded ({error})") from error
            pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1)
            display.say(f"{error}; trying again in {pause:g} s")
            time.sleep(pause)


def _fetch_once(url: str, file: BinaryIO, display: Display) -> None:
    have = _size(file)
    headers = {"User-Agent": "fast-train", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = _passing_errors(urllib.request.urlopen)(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if _total(error.headers) != have:
                file.truncate(0)
                raise _Interrupted("the server has less than what was downloaded before") from error
            return
        raise DownloadError(f"{show(url)} can't be downloaded (HTTP {error.code} {error.reason})") from error
    with response:
        first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != http.client.PARTIAL_CONTENT or not first or int(first[1]) != have:
            # The server sends all of it.
            file.truncate(0)
            have = 0
        total = _total(response.headers)
        if total is not None:
            check_free_disk(Path(file.name).parent, total - have, "the download")
        label = url.rsplit("/", 1)[-1]
        with display.progress(label, total, done=have, in_bytes=True) as advance:
            read = _passing_errors(response.read)
            while chunk := read(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
            file.flush()
    if total is not None and _size(file) < total:
        raise _Interrupted(f"the connection broke after {_size(file):,} of {total:,} bytes")


def _passing_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with errors of the network as _Interrupted and refusals as HTTPError; for reading and opening."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except urllib.error.HTTPError as error:
            if error.code in _PASSING_STATUS:
                raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
            raise
        except (http.client.InvalidURL, UnicodeError) as error:
            raise DownloadError(f"--source is not an address: {one_line(error)}") from error
        except urllib.error.URLError as error:
            raise _Interrupted(_network_reason(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_network_reason(error)) from error

    return call


def _network_reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {_TIMEOUT_SECONDS:g} s"
    if isinstance(error, socket.gaierror):
        return f"no network, or no such host: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error) if isinstance(error, BaseException) else str(error)


def _total(headers: Any) -> int | None:
    """The size of the whole content, where the headers tell."""
    whole = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    if whole:
        return int(whole[1])
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None
