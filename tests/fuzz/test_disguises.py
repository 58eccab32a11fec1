"""What stands where a file of each kind should: one sentence, no wait, and no other numbers."""

import codecs
import gzip
import io
import json
import os
import re
import struct
import warnings
import zipfile
from contextlib import suppress
from functools import cache

import pytest

from landscape.errors import LandscapeError
from tests.fuzz.kinds import KINDS
from tests.fuzz.test_fuzz import at_most, is_fewer

LFS = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:"
    "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
DEEP = 100_000


@cache
def _much():
    return _archive({"archive/data.pkl": bytes(1 << 28), "values.npy": bytes(1 << 20)})


def _archive(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _pipe(path, content):
    os.mkfifo(path)


def _loop(path, content):
    path.symlink_to(path)


def _gone(path, content):
    path.symlink_to(path.with_name("gone"))


# Each is given the path, free of the file, and what the file held.
DISGUISES = {
    "nothing": lambda path, content: path.touch(),
    "a folder": lambda path, content: path.mkdir(),
    "a pipe": _pipe,
    "a link to itself": _loop,
    "a link to nothing": _gone,
    "a pointer of git-lfs": lambda path, content: path.write_text(LFS),
    "gzip": lambda path, content: path.write_bytes(gzip.compress(content)),
    "a zip of it": lambda path, content: path.write_bytes(_archive({path.name: content})),
    "zeros": lambda path, content: path.write_bytes(bytes(len(content))),
    "its first half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "itself twice": lambda path, content: path.write_bytes(content + content),
    "UTF-16": lambda path, content: path.write_bytes(
        codecs.BOM_UTF16_LE + content.decode("latin-1").encode("utf-16-le")
    ),
    "a BOM and it": lambda path, content: path.write_bytes(codecs.BOM_UTF8 + content),
    "its lines of Windows": lambda path, content: path.write_bytes(content.replace(b"\n", b"\r\n")),
    "Latin-1": lambda path, content: path.write_bytes("naïve = 'ü'\n".encode("latin-1") + content),
    "a page of a login": lambda path, content: path.write_text("<!DOCTYPE html><html>\n"),
    "deep JSON": lambda path, content: path.write_text("[" * DEEP + "]" * DEEP),
    "JSON of a huge number": lambda path, content: path.write_text('{"a": ' + "9" * 5000 + "}"),
    "a name twice": lambda path, content: path.write_text('{"a": 1, "a": 2}'),
    "a header that is too long": lambda path, content: path.write_bytes(
        struct.pack("<Q", 2**62) + b"{}"
    ),
    "a tensor that is too large": lambda path, content: path.write_bytes(_bomb()),
    "an archive that unpacks to much": lambda path, content: path.write_bytes(_much()),
}


def _bomb():
    head = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    return struct.pack("<Q", len(head)) + head.encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("what", DISGUISES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_no_such_file_is_one_sentence(kind, what, tmp_path):
    path = kind.make(tmp_path)
    whole, content = kind.read(path), path.read_bytes()
    path.unlink()
    DISGUISES[what](path, content)
    try:
        with at_most(20), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.read(path)
    except LandscapeError as error:
        said = str(error)
        assert "\n" not in said.strip(), said
        assert len(said) < 1500, said
        assert not re.search(r"Traceback|<[a-z_.]+ object at", said), said
        return
    except BaseException as error:
        raise AssertionError(f"{what} in place of {kind.name}: {error!r}") from error
    finally:
        with suppress(OSError):
            path.unlink()
    # Lines and rows that are left out are made again, and said.
    assert found == whole or (kind.fewer and is_fewer(found, whole)), f"{found!r}"[:300]
