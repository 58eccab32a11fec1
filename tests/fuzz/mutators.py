"""Ways in which bytes of a file come to be other bytes."""

import bz2
import codecs
import gzip
import json
import random
import re
import unicodedata

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


def _text(change):
    """A change of text, of which the bytes of no other file are one."""

    def changed(content, rng):
        return change(bytes(content).decode("latin-1"), rng).encode("latin-1", "replace")

    return changed


def _wrapped(content, rng):
    """The whole of it as another program hands it on."""
    whole = bytes(content)
    return rng.choice((
        lambda: whole.replace(b"\n", b"\r\n"),
        lambda: whole.replace(b"\n", b"\r"),
        lambda: codecs.BOM_UTF8 + whole,
        lambda: whole.decode("latin-1").encode("utf-16"),
        lambda: whole.decode("latin-1").encode("utf-32"),
        lambda: gzip.compress(whole),
        lambda: bz2.compress(whole),
        lambda: whole + bytes(512),
        lambda: whole + b"\n",
        lambda: b"\n" + whole,
        lambda: whole + whole,
        lambda: whole.rstrip(),
        lambda: whole[: len(whole) // 512 * 512],
    ))()  # fmt: skip


def _lines(content, rng):
    """Lines that were cut off at one end, or stand in another order."""
    lines = bytes(content).split(b"\n")
    at = rng.randrange(len(lines))
    other = rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        return b"\n".join([*lines[:at], b""])
    if how == 1:
        return b"\n".join(lines[at:])
    if how == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        rng.shuffle(lines)
    return b"\n".join(lines)


_NUMBER = re.compile(r"(?<=[\[:, =])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_SPELLINGS = (
    "NaN", "Infinity", "-Infinity", "inf", "-0.0", "1" + "0" * 400, "1e400", "0x10", "1_0", "+1",
    "[" * 2000 + "]" * 2000, "true", "null", "01", "1.0", "1E0", ".5",
)  # fmt: skip


def _spelled(text, rng):
    """Another number, or the same one otherwise spelled."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return text
    one = rng.choice(found)
    known = one.group()
    again = f"{float(known)!r}" if rng.random() < 0.3 else rng.choice(_SPELLINGS)
    return text[: one.start()] + again + text[one.end() :]


def _named(text, rng):
    """A name in another case, or decomposed as some file systems do."""
    found = list(re.finditer(r"[A-Za-z_]{3,}", text))
    if not found:
        return text
    one = rng.choice(found)
    turn = rng.choice((str.upper, str.title, str.swapcase, lambda name: name[0] + "\xe9" + name[1:],
                       lambda name: unicodedata.normalize("NFD", "\xe9") + name))  # fmt: skip
    return text[: one.start()] + turn(one.group()) + text[one.end() :]


def _again(text, rng):
    """An entry of an object twice, the second with another value; or all of them in other order."""
    try:
        whole = json.loads(text.splitlines()[0] if rng.random() < 0.5 else text)
    except (ValueError, IndexError, RecursionError):
        whole = None
    if isinstance(whole, dict) and whole and rng.random() < 0.5:
        entries = list(whole.items())
        rng.shuffle(entries)
        return json.dumps(dict(entries), indent=rng.choice((None, 1)))
    found = list(re.finditer(r'"([A-Za-z_0-9]+)": ?', text))
    if not found:
        return text
    one = rng.choice(found)
    return text[: one.start()] + f'"{one.group(1)}": 1, ' + text[one.start() :]


def _turned(content, rng):
    """Words of the other byte order."""
    width = rng.choice((2, 4, 8))
    start = _place(content, rng) // width * width
    end = min(len(content), start + width * rng.choice((1, 16, 1 << 20))) // width * width
    for at in range(start, end, width):
        content[at : at + width] = content[at : at + width][::-1]
    return content


def _blocks(content, rng):
    """Two sectors of the disk exchanged, or one of them lost."""
    count = len(content) // 512
    if count < 2:
        return content
    a, b = (512 * rng.randrange(count) for _ in range(2))
    one, other = content[a : a + 512], content[b : b + 512]
    content[a : a + 512], content[b : b + 512] = other, rng.choice((one, bytes(512)))
    return content


_WAYS = (
    _bit, _bit, _byte, _cut, _without, _zeros, _twice, _swapped, _word, _line, _value, _wrapped,
    _lines, _text(_spelled), _text(_named), _text(_again), _turned, _blocks,
)  # fmt: skip
