"""Ways in which bytes of a file come to be other bytes."""

import random

_WORDS = (
    b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"true", b"..", b"/etc/passwd", b"\0",
    b"999999999999999999999", b"0.5", b'"a|b"', b"\xff\xfe", b"=", b"\n", b"[[", b"'", b"-0", b"1",
)  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_WAYS)(bytearray(content), rng)
    return bytes(content)


def _place(content, rng):
    return rng.randrange(len(content)) if content else 0


def _bit(content, rng):
    if content:
        content[_place(content, rng)] ^= 1 << rng.randrange(8)
    return content


def _byte(content, rng):
    if content:
        content[_place(content, rng)] = rng.randrange(256)
    return content


def _cut(content, rng):
    return content[: _place(content, rng)]


def _without(content, rng):
    at = _place(content, rng)
    del content[at : at + rng.choice((1, 4, 17, 64, 512))]
    return content


def _zeros(content, rng):
    at, size = _place(content, rng), rng.choice((1, 8, 64, 512))
    content[at : at + size] = bytes(len(content[at : at + size]))
    return content


def _twice(content, rng):
    at, size = _place(content, rng), rng.choice((1, 8, 64, 300))
    content[at:at] = content[at : at + size]
    return content


def _swapped(content, rng):
    a, b = sorted((_place(content, rng), _place(content, rng)))
    size = min(rng.choice((1, 8, 64)), b - a)
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    return content


def _word(content, rng):
    at = _place(content, rng)
    content[at : at + rng.choice((0, 1, 3, 8))] = rng.choice(_WORDS)
    return content


def _line(content, rng):
    lines = bytes(content).split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.5:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    else:
        del lines[at]
    return b"\n".join(lines)


def _value(content, rng):
    """Another value behind one of the equals signs or colons."""
    places = [i for i, byte in enumerate(content) if byte in b"=:"]
    if places:
        at = rng.choice(places) + 1
        ends = [end for end in (content.find(c, at) for c in b"\n,}") if end >= 0]
        content[at : min(ends, default=at)] = rng.choice(_WORDS)
    return content


_WAYS = (_bit, _bit, _byte, _cut, _without, _zeros, _twice, _swapped, _word, _line, _value)
