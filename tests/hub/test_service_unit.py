"""The friend's systemd unit: what it runs is what was meant, and systemd itself reads it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.service_unit import UNIT_NAME, Unit, quoted


def unit(user: str | None = "root", data_dir: str = "/var/lib/my node") -> Unit:
    return Unit(
        ("/bin/echo", "node", "run", "100%", "$HOME"), Path(data_dir), "https://hub.example/%i", 256, user
    )


def unquoted(line: str) -> list[str]:
    """What systemd makes of a command line of quoted words (systemd.service(5)), by a second, simpler reading."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    return [re.sub(r"\\(.)", r"\1", w).replace("$$", "$").replace("%%", "%") for w in words]


printable = st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1)


@given(st.lists(printable, min_size=1, max_size=5))
def test_any_words_come_through_as_they_are(words: list[str]) -> None:
    line = " ".join(map(quoted, words))
    assert unquoted(line) == words
    assert "\n" not in line


@pytest.mark.parametrize("word", ["a\nExecStartPre=/bin/rm", "a\0", "\x1b"])
def test_no_line_can_be_smuggled_in(word: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        quoted(word)


def test_a_system_service_runs_as_its_owner_and_writes_to_its_folder_only() -> None:
    text = unit("ana").text()
    assert "User=ana" in text
    assert 'ReadWritePaths="/var/lib/my node"' in text
    assert "ProtectSystem=strict" in text
    assert "WantedBy=multi-user.target" in text
    assert "MemoryMax=512M" in text


def test_a_users_own_service_asks_for_nothing_that_needs_root() -> None:
    text = unit(None).text()
    assert "User=" not in text
    assert "ProtectSystem" not in text
    assert "NoNewPrivileges=yes" in text
    assert "WantedBy=default.target" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's programs")
@pytest.mark.parametrize("user", ["root", None])
def test_systemd_finds_nothing_wrong(user: str | None, tmp_path: Path) -> None:
    path = tmp_path / UNIT_NAME
    path.write_text(unit(user, str(tmp_path)).text())
    command = ["systemd-analyze", "verify", "--man=no", *(["--user"] if user is None else []), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if UNIT_NAME in line]
    assert not complaints
