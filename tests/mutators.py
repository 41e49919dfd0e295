"""Damage to bytes, JSON and TOML."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

#: (offset, width) in bytes.
Places = list[tuple[int, int]]
_NUMBERS = (0, 1, -1, 255, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**18, 10**400, 0.5, 1e308, 5e-324)
_FLOATS = tuple(map(float, ("inf", "-inf", "nan")))
_TEXTS = ("", "\x1b[2J\x1b]0;x\x07", "\u202egnp", "\ud800", "\0", "a\nb", "..", "../x", "/etc/hosts", "x" * 9999)
# "deep" becomes a structure that is nested deeper than Python writes, or reads.
_EXTREMES = (None, True, False, [], {}, [[]], "deep", *_NUMBERS, *_FLOATS, *_TEXTS)
_TOML_NUMBERS = ("0", "-1", "1e308", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "0x10", "1979-05-27T07:32:00Z")
_TOML_OTHERS = ("true", '""', '"\\u001b[2J"', "'''x", "[]", "{}", "[[[[1]]]]", "[" * 2000 + "]" * 2000, "{a = {b = 1}}")
_TOML_VALUES = (*_TOML_NUMBERS, *_TOML_OTHERS)


class Mutator:
    """Damage to bytes and to values, drawn from one generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._draw = generator

    def below(self, end: int) -> int:
        return int(self._draw.integers(max(end, 1)))

    def choose(self, options: Sequence[Any]) -> Any:
        return options[self.below(len(options))]

    def chance(self, share: float) -> bool:
        return bool(self._draw.random() < share)

    def damage(self, raw: bytes, numbers: Sequence[Places] = ()) -> bytes:
        """Other bytes than ``raw``. numbers: what a reader may trust, in groups of which one is chosen."""
        ways: list[Callable[[bytearray], bytes]] = [
            self._flip, self._cut, self._repeat, self._splice, self._run, self._insert, self._number,
        ]  # fmt: skip
        while True:
            if numbers and self.chance(0.5):
                changed, group = bytearray(raw), self.choose(numbers)
                for _ in range(1 + self.below(3)):
                    place, width = self.choose(group)
                    changed[place : place + width] = self._extreme(changed, place, width)
            else:
                changed = bytearray(self.choose(ways)(bytearray(raw)))
            if changed != raw:
                return bytes(changed)

    def _flip(self, raw: bytearray) -> bytes:
        for _ in range(self.choose((1, 1, 2, 20)) if raw else 0):
            raw[self._place(raw)] ^= 1 << self.below(8)
        return raw

    def _cut(self, raw: bytearray) -> bytes:
        return raw[: self._place(raw)] if self.chance(0.7) else raw[self._place(raw) :]

    def _repeat(self, raw: bytearray) -> bytes:
        first, length = self._place(raw), 1 + self.below(self.choose((8, 100, len(raw))))
        return raw[: first + length] + raw[first:]

    def _splice(self, raw: bytearray) -> bytes:
        source, target, length = self._place(raw), self._place(raw), 1 + self.below(self.choose((8, 64, 1000)))
        part = raw[source : source + length]
        raw[target : target + len(part)] = part
        return raw

    def _run(self, raw: bytearray) -> bytes:
        first, length = self._place(raw), 1 + self.below(self.choose((8, 64, len(raw))))
        length = min(length, len(raw) - first)
        raw[first : first + length] = self.choose((b"\0", b"\xff", b" ")) * length
        return raw

    def _insert(self, raw: bytearray) -> bytes:
        first = self._place(raw)
        return raw[:first] + self._draw.bytes(1 + self.below(64)) + raw[first:]

    def _number(self, raw: bytearray) -> bytes:
        place, width = self._place(raw), self.choose((1, 2, 4, 8))
        raw[place : place + width] = self._extreme(raw, place, width)
        return raw

    def _place(self, raw: bytes) -> int:
        """Heads and tails hold more than their share of what readers go by."""
        near = self.below(min(len(raw), self.choose((64, 1000))))
        return self.choose((self.below(len(raw)), near, max(len(raw) - 1 - near, 0)))

    def _extreme(self, raw: bytearray, place: int, width: int) -> bytes:
        order: Any = self.choose(("little", "big"))
        now, top = int.from_bytes(raw[place : place + width], order), 1 << 8 * width
        value = self.choose((0, 1, top // 2 - 1, top // 2, top - 1, now + 1, now - 1, 2 * now, len(raw), top - now))
        return int(value % top).to_bytes(width, order)

    def damage_json(self, raw: bytes) -> bytes:
        """Mostly JSON still, with a value, a name or the structure changed."""
        if self.chance(0.2):
            return self.damage(raw)
        while True:
            data = [json.loads(raw)]
            for _ in range(self.choose((1, 1, 1, 3))):
                # A change may have left nothing to change.
                with contextlib.suppress(IndexError):
                    self._change(*self.choose(list(_places(data))[1:]))
            text = json.dumps(data[0])
            depth = self.choose((1100, 100_000))
            text = text.replace('"deep"', self.choose(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))
            if text.encode("utf-8", "surrogatepass") != raw:
                return text.encode("utf-8", "surrogatepass")

    def _change(self, container: Any, key: Any) -> None:
        value = container[key]
        way = self.below(8)
        if way == 0 and (isinstance(container, dict) or len(container) > 1):
            del container[key]
        elif way == 1:
            container[key] = [value] if self.chance(0.5) else {"a": value}
        elif way == 2 and isinstance(container, list):
            container.extend([value] * self.choose((1, 2, 1000)))
        elif way == 3 and isinstance(container, dict):
            container[self.choose(_TEXTS)] = value
        elif way == 4:
            other, place = self.choose(list(_places(value)) or [(container, key)])
            container[key] = other[place]
        else:
            container[key] = self.choose(self._kindred(value))

    def _kindred(self, value: Any) -> Sequence[Any]:
        """What to put in a value's place, of its own kind two times in three."""
        if self.chance(0.33):
            return _EXTREMES
        if isinstance(value, str):
            return [*_TEXTS, value + "x", value[:-1], value.upper()]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return [*_NUMBERS, value + 1, value - 1, -value, value * 2]
        return _EXTREMES

    def damage_toml(self, raw: bytes) -> bytes:
        """Lines and values of TOML changed."""
        lines = raw.decode().split("\n")
        at = self.below(len(lines))
        way = self.below(6)
        if way == 0:
            del lines[at]
        elif way == 1:
            lines.insert(self.below(len(lines)), lines[at])
        elif way == 2:
            lines[at] = lines[at].rpartition("=")[0] + "= " + self.choose(_TOML_VALUES)
        elif way == 3:
            lines.insert(at, f"{json.dumps(self.choose(_TEXTS))} = {self.choose(_TOML_VALUES)}")
        elif way == 4:
            lines.insert(at, "[" * self.choose((1, 2)) + ".".join("a" * self.choose((1, 1000, 100_000))) + "]")
        else:
            return self.damage(raw)
        return "\n".join(lines).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a value of JSON."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(item)
