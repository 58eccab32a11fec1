"""What lies on the disk: whole files, append-only lines, digests, and a study's folder.

Everything that a study leaves on disk goes through this package, so that a killed process, a full
disk, a changed bit or a half-copied folder can be told from a finished result.
"""

from landscape.storage.folder import STUDY_FORMAT, StudyFolder
from landscape.storage.names import is_plain_name, slug
from landscape.storage.seals import file_sha256, seal, sealed_sha256, unsealed
from landscape.storage.writing import (
    append_line,
    free_bytes,
    read_json,
    read_lines,
    truncate_lines,
    write_atomically,
    write_json,
    write_text,
    writing,
)

__all__ = [
    "STUDY_FORMAT", "StudyFolder", "append_line", "file_sha256", "free_bytes", "is_plain_name",
    "read_json", "read_lines", "seal", "sealed_sha256", "slug", "truncate_lines", "unsealed",
    "write_atomically", "write_json", "write_text", "writing",
]  # fmt: skip
