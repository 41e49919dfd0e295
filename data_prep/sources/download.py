"""Downloads of known files from several addresses.

The bytes go into ``NAME.part``, which gets its name once its checksums are right. An address that is slow, silent or
broken is left for the next one, which goes on from the bytes that are there: it is the same file everywhere.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fast_train.common.console import Display
from fast_train.common.files import lock, sync
from fast_train.common.text import format_bytes, one_line, show
from fast_train.data_prep.errors import DownloadError
from fast_train.data_prep.sources.known import KnownFile
from fast_train.data_prep.staging import check_free_disk, disk_room

_CHUNK = 1 << 16
# Chunks that a connection reads ahead of the disk.
_AHEAD = 64
#: Rounds over all addresses in a row that bring less than this beyond the most that was there, before giving up; fewer
#: where nobody ever answered.
_WORTH_BYTES = 1 << 20
_ROUNDS, _ROUNDS_UNANSWERED = 5, 2
#: After the first such round; each later pause is twice as long.
FIRST_PAUSE_SECONDS = 1.0
# Busy or momentarily out of order; any other refusal stands.
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Pace:
    """What a host must keep up: to send something every ``silence`` seconds, and ``rate`` bytes/s over ``seconds``."""

    silence: float
    rate: float
    seconds: float


#: The first while another address is left; the second of one that is taken although it is slow.
HURRIED = Pace(silence=5.0, rate=500_000.0, seconds=10.0)
PATIENT = Pace(silence=20.0, rate=10_000.0, seconds=60.0)


class _Passing(Exception):
    """The connection failed, or was left, for a reason that may pass."""


class _Refused(Exception):
    """Nothing right comes from this address."""


def download(addresses: Sequence[str], target: Path, known: KnownFile, display: Display) -> None:
    """Fetch a known file to ``target`` from addresses (http or https) in the order in which they are to be tried,
    going on from what an earlier run left in ``target.part``.

    Never more than the file's size is written, and a wrong content is deleted. A host that is too slow (`HURRIED`) is
    left while there is another; then the fastest is taken, unless it crawls (`PATIENT`). Raises DownloadError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.touch()
    with disk_room(target.parent), open(part, "r+b") as file:
        try:
            lock(file.fileno())
        except BlockingIOError as error:
            raise DownloadError(f"another process is downloading {show(part)}; try again when it is done") from error
        try:
            if known.fault(target) is None:
                # Another process brought it in the meantime.
                return
            check_free_disk(target.parent, known.size - _size(file), "the download")
            _Download(list(addresses), file, part, known, display).run()
            sync(file.fileno())
            os.replace(part, target)
        finally:
            if _size(file) == 0:
                part.unlink(missing_ok=True)


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


class _Download:
    def __init__(self, addresses: list[str], file: BinaryIO, part: Path, known: KnownFile, display: Display) -> None:
        self._addresses, self._file, self._part, self._known, self._display = addresses, file, part, known, display
        self._answered = False
        # By address: bytes/s, and why it was left.
        self._rates: dict[str, float] = {}
        self._reasons: dict[str, str] = {}

    def run(self) -> None:
        """Go round the addresses until the file is right."""
        fruitless, first, largest = 0, True, _size(self._file)
        while True:
            for address in sorted(self._addresses, key=lambda address: -self._rates.get(address, 0.0)):
                alone = len(self._addresses) == 1
                if self._is_right_from(address, PATIENT if alone or (self._answered and not first) else HURRIED):
                    return
            first = False
            # Wrong bytes are deleted, and a host could send them again and again.
            gain = _size(self._file) - largest
            largest += max(gain, 0)
            fruitless = 0 if gain >= _WORTH_BYTES else fruitless + 1
            if not self._addresses or fruitless >= (_ROUNDS if self._answered else _ROUNDS_UNANSWERED):
                reasons = "; ".join(f"{_host(address)}: {reason}" for address, reason in self._reasons.items())
                raise DownloadError(f"{self._known.name} can't be downloaded ({reasons})")
            if fruitless:
                pause = FIRST_PAUSE_SECONDS * 2 ** (fruitless - 1)
                self._display.say(f"trying again in {pause:g} s")
                time.sleep(pause)

    def _is_right_from(self, address: str, pace: Pace) -> bool:
        """Whether the file is whole and right after what this address sends."""
        resumed = _size(self._file) > 0
        try:
            self._fetch(address, pace)
            self._file.flush()
            fault = self._known.fault(self._part)
            if fault is None:
                return True
            self._file.truncate(0)
            if not resumed:
                raise _Refused(f"its file {fault}")
        except (_Passing, _Refused) as error:
            if isinstance(error, _Refused):
                self._addresses.remove(address)
            self._reasons[address] = str(error)
            self._display.say(f"{_host(address)}: {error}")
            return False
        # What was there may be of another address, of another file, or of a write that broke off.
        self._display.say(f"the resumed {self._known.name} {fault}; starting over")
        return self._is_right_from(address, pace)

    def _fetch(self, address: str, pace: Pace) -> None:
        """Append what is missing; over what is there, where the host can't send a part."""
        have, total = _size(self._file), self._known.size
        if have > total:
            have = self._file.truncate(0)
        if have == total:
            return
        connection = _Connection(address, have)
        try:
            at = self._file.seek(_start(connection.receive(pace.silence), have, total))
            self._answered = True
            label = f"{self._known.name} from {_host(address)}"
            with self._display.progress(label, total, done=at, in_bytes=True) as advance:
                began, received = time.monotonic(), 0
                while chunk := connection.receive(pace.silence):
                    at, received = at + len(chunk), received + len(chunk)
                    if at > total:
                        self._file.truncate(0)
                        raise _Refused(f"it sends more than {total:,} bytes")
                    self._file.write(chunk)
                    advance(len(chunk))
                    seconds = time.monotonic() - began
                    self._rates[address] = received / max(seconds, 1.0)
                    if seconds >= pace.seconds:
                        if received < pace.rate * seconds:
                            raise _Passing(f"{format_bytes(received / seconds)}/s are too slow")
                        began, received = time.monotonic(), 0
        except urllib.error.HTTPError as error:
            error.close()
            self._answered = True
            kind = _Passing if error.code in _PASSING_STATUS else _Refused
            raise kind(f"HTTP {error.code} {show(str(error.reason))}") from error
        finally:
            connection.close()
        if at < total:
            raise _Passing(f"the connection broke after {at:,} of {total:,} bytes")


def _start(answer: Any, have: int, total: int) -> int:
    """Where in the file the content of an answer begins. _Refused: it is of another file, or another part of it."""
    if answer.status == http.client.PARTIAL_CONTENT:
        if not re.fullmatch(rf"bytes {have}-\d+/({total}|\*)", answer.headers.get("Content-Range", "")):
            raise _Refused("it sends another part than was asked for, or of another file")
        return have
    if answer.status != http.client.OK:
        raise _Refused(f"HTTP {answer.status}")
    length = answer.headers.get("Content-Length")
    if length not in (None, str(total)):
        raise _Refused(f"its file has {show(length)} bytes, not {total}")
    return 0


class _Connection:
    """One request, in a thread of its own: whatever a host does or leaves undone, nobody waits for it longer than they
    want to."""

    def __init__(self, address: str, start: int) -> None:
        self._items: Queue[Any] = Queue(_AHEAD)
        self._closed = Event()
        Thread(target=self._run, args=(address, start), daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def receive(self, seconds: float) -> Any:
        """First the response, its content not read yet, then bytes of the content; none at its end."""
        try:
            item = self._items.get(timeout=seconds)
        except Empty:
            raise _Passing(f"no answer for {seconds:g} s") from None
        if isinstance(item, Exception):
            raise item
        return item

    def _run(self, address: str, start: int) -> None:
        headers = {"User-Agent": "fast-train", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            opener = urllib.request.build_opener(_Redirects)
            with opener.open(urllib.request.Request(address, headers=headers), timeout=PATIENT.silence) as response:
                self._put(response)
                # Not read(), which waits for a whole chunk of one byte a second.
                while not self._closed.is_set() and (chunk := response.read1(_CHUNK)):
                    self._put(chunk)
            self._put(b"")
        except Exception as error:
            self._put(_told(error))

    def _put(self, item: Any) -> None:
        while not self._closed.is_set():
            with suppress(Full):
                self._items.put(item, timeout=0.1)
                return


class _Redirects(urllib.request.HTTPRedirectHandler):
    """What is asked for by https comes by https, and nothing by other ways than the two."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ({"https"} if req.type == "https" else {"http", "https"}):
            raise _Refused(f"it redirects from {req.type} to {show(scheme)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _told(error: Exception) -> Exception:
    """An error of a connection in the words of ours."""
    if isinstance(error, (_Refused, urllib.error.HTTPError)):
        return error
    if isinstance(error, (http.client.InvalidURL, UnicodeError)):
        return _Refused(f"not an address: {show(one_line(error))}")
    return _Passing(show(_reason(error.reason if isinstance(error, urllib.error.URLError) else error)))


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {PATIENT.silence:g} s"
    if isinstance(error, socket.gaierror):
        return f"no network, or no such host: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error) if isinstance(error, BaseException) else str(error)


def _host(address: str) -> str:
    # Without a password, which an address may hold.
    return show(urlsplit(address).netloc.rpartition("@")[2])
