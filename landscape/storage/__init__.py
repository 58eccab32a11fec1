"""What lies on the disk: whole files, append-only lines, digests, and a study's folder.

Everything that a study leaves on disk goes through this package, so that a killed process, a full
disk, a changed bit or a half-copied folder can be told from a finished result. Whatever is written
carries a digest, and whoever reads it compares: what can be made again is made again, and said;
what cannot is refused with its path.
"""

from landscape.storage.arrays import read_array, read_arrays, write_arrays
from landscape.storage.checkpoints import (
    MEASURED,
    SESSION,
    final_path,
    kept_weights,
    outcome_path,
    sessions,
    sessions_path,
    state_path,
    weights_path,
)
from landscape.storage.documents import (
    append_line,
    digest_of,
    fits,
    load_json,
    read_json,
    read_lines,
    truncate_lines,
    unsealed_json,
    write_json,
)
from landscape.storage.folder import STUDY_FORMAT, StudyFolder
from landscape.storage.hdf5 import open_hdf5
from landscape.storage.names import check_name, folder_name, is_plain_name, slug, visible
from landscape.storage.seals import (
    check_sealed_zip,
    check_zip,
    declared_sha256,
    file_sha256,
    metadata,
    seal,
    seal_zip,
    sealed_sha256,
    unsealed,
)
from landscape.storage.writing import (
    aside,
    check_file,
    free_bytes,
    hold,
    is_temporary,
    make_room,
    reading,
    sweep,
    write_atomically,
    write_text,
    writing,
)

__all__ = [
    "MEASURED", "SESSION", "STUDY_FORMAT", "StudyFolder", "append_line", "aside", "check_file",
    "check_name", "check_sealed_zip", "check_zip", "declared_sha256", "digest_of",
    "file_sha256", "final_path", "fits", "folder_name", "free_bytes", "hold", "is_plain_name",
    "is_temporary", "kept_weights", "load_json", "make_room", "metadata", "open_hdf5",
    "outcome_path", "read_array", "read_arrays", "read_json", "read_lines", "reading", "seal",
    "seal_zip", "sealed_sha256", "sessions", "sessions_path", "slug", "state_path", "sweep",
    "truncate_lines", "unsealed", "unsealed_json", "visible", "weights_path", "write_arrays",
    "write_atomically", "write_json", "write_text", "writing",
]  # fmt: skip
