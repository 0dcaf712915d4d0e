"""Which opened files listeners are told of."""

import os
from pathlib import Path

from effbench.user_code import opened_files


def test_a_listener_hears_once_of_a_file_and_not_of_what_it_opens_itself(
    tmp_path: Path,
) -> None:
    """Also where a folder descriptor names the folder: without it, the hook would take the current one."""
    (tmp_path / "weights").write_text("1")
    heard: list[str] = []

    def listener(path: str, flags: int) -> None:
        heard.append(path)
        Path(path).read_text()

    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with opened_files.listening(listener):
            os.close(os.open("weights", os.O_RDONLY, dir_fd=folder))
            (tmp_path / "weights").read_text()
    finally:
        os.close(folder)
    assert [path for path in heard if path.endswith("weights")] == [str(tmp_path / "weights")] * 2
