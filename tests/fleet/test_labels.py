"""Names, labels and the choice of machines by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effbench.core.errors import InvalidValue, UnknownName
from effbench.fleet.labels import Label, check_name, select

pytestmark = pytest.mark.quick

MACHINES = {
    "pi5-b": ["board=pi5", "arch=arm64"],
    "pi5-a": ["board=pi5", "arch=arm64", "disk=nvme"],
    "gpu-1": ["device=cuda", "machine=gpu-1"],
    "spare": [],
}

names = st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,39}", fullmatch=True)


@given(names, names)
def test_a_label_is_the_same_after_any_writing(key: str, value: str) -> None:
    label = Label(key, value)
    assert Label.parse(str(label)) == Label.of_resource(label.resource) == label
    assert "=" not in label.resource


@given(st.text(max_size=50))
def test_a_name_is_taken_or_refused_in_one_line(text: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    good = 0 < len(text) <= 40 and set(text) <= allowed and text[0] not in ".-"
    try:
        assert check_name(text) == text and good
    except InvalidValue as error:
        assert not good and len(str(error).splitlines()) == 1


@pytest.mark.parametrize("bad", ["", "a b", "Pi5", "a\n", "-a", ".a", "..", "a/b", "a:b", "ä", "x" * 41, "a=b"])
def test_what_is_no_name(bad: str) -> None:
    with pytest.raises(InvalidValue, match="1 to 40 characters") as caught:
        check_name(bad, "--name")
    assert str(caught.value).startswith("--name: ") and "\n" not in str(caught.value)


def test_a_bare_word_is_a_machine() -> None:
    assert Label.parse("gpu-1") == Label("machine", "gpu-1")
    assert Label.parse("board=pi5").resource == "board:pi5"


@pytest.mark.parametrize("text", ["board=", "=pi5", "board=pi5=1", "board=Pi5", "board:pi5"])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(InvalidValue, match="1 to 40 characters"):
        Label.parse(text)


def test_a_machine_cannot_give_itself_another_name_by_a_label() -> None:
    assert Label.of_machine("board=pi5") == Label("board", "pi5")
    with pytest.raises(InvalidValue, match="machine's name; set it with --name"):
        Label.of_machine("machine=gpu-1")
    with pytest.raises(InvalidValue, match="expected KEY=VALUE"):
        Label.of_machine("pi5")


@pytest.mark.parametrize(
    ("on", "chosen"),
    [
        ([], ["pi5-b", "pi5-a", "gpu-1", "spare"]),
        (["board=pi5"], ["pi5-b", "pi5-a"]),
        (["gpu-1"], ["gpu-1"]),
        (["machine=spare"], ["spare"]),
        (["gpu-1", "board=pi5"], ["pi5-b", "pi5-a", "gpu-1"]),
        (["board=pi5,disk=nvme"], ["pi5-a"]),
        (["board=pi5, pi5-b"], ["pi5-b"]),
        (["pi5-a", "board=pi5,disk=nvme"], ["pi5-a"]),
    ],
)
def test_on_chooses(on: list[str], chosen: list[str]) -> None:
    assert select(on, MACHINES) == chosen


@pytest.mark.parametrize("word", ["board=pi4", "pi5", "board", "machine=pi6", "board=Pi5", "", "board=pi5,board=pi4"])
def test_an_unknown_label_is_told_with_those_there_are(word: str) -> None:
    with pytest.raises(UnknownName) as caught:
        select(["gpu-1", word], MACHINES)
    said = str(caught.value)
    assert "\n" not in said
    for known in ("board=pi5", "arch=arm64", "disk=nvme", "device=cuda", *MACHINES):
        assert known in said
    assert "machine=gpu-1" not in said


def test_labels_that_no_machine_has_together() -> None:
    with pytest.raises(InvalidValue, match="no machine has all of these labels; give --on twice"):
        select(["board=pi5,device=cuda"], MACHINES)


def test_no_machine_at_all() -> None:
    assert select([], {}) == []
    with pytest.raises(InvalidValue, match="no machine is connected; start one with: effbench fleet worker"):
        select(["board=pi5"], {})
