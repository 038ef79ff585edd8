"""A wrong setting is named, with what was given and what is expected, and never with a password."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.settings import (
    PREFIX,
    HubNotRunning,
    Settings,
    SettingsError,
    load_settings,
    ports_of,
    unknown_variables,
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX) or name == "FORWARDED_ALLOW_IPS":
            monkeypatch.delenv(name)


def test_the_defaults_are_valid() -> None:
    settings = load_settings()
    assert (settings.rtmp_port, settings.http_port) == (1935, 8000)
    assert settings.database_url is None


def test_every_wrong_setting_is_named_with_what_was_given_and_what_is_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STREAMRP2P_HTTP_PORT", "99999")
    monkeypatch.setenv("STREAMRP2P_EPOCH_LENGTH_S", "an hour")
    monkeypatch.setenv("STREAMRP2P_DATABASE_URL", "mysql://me:hunter2@db/x")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert "3 settings are wrong" in text
    assert "STREAMRP2P_HTTP_PORT=99999" in text
    assert "1 to 65535" in text
    assert "STREAMRP2P_EPOCH_LENGTH_S=an hour" in text
    assert "postgresql://" in text
    assert "hunter2" not in text


@given(
    st.text(
        st.characters(codec="ascii", exclude_characters="/@\x00 \n", categories=["L", "N", "P"]), min_size=6
    )
)
def test_a_password_in_a_wrong_url_is_never_shown(password: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMRP2P_REDIS_URL", f"http://user:{password}@host/0")
        with pytest.raises(SettingsError) as caught:
            load_settings()
    assert f":{password}@" not in str(caught.value)


def test_one_port_for_two_listeners_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMRP2P_RTMP_PORT", "8000")
    with pytest.raises(SettingsError, match="cannot share port 8000"):
        load_settings()


def test_low_latency_needs_fragmented_mp4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMRP2P_LOW_LATENCY_VIEWERS", "20")
    with pytest.raises(SettingsError, match="STREAMRP2P_LOW_LATENCY_VIEWERS needs STREAMRP2P_SEGMENTS=fmp4"):
        load_settings()
    monkeypatch.setenv("STREAMRP2P_SEGMENTS", "fmp4")
    assert load_settings().low_latency_viewers == 20


def test_rtmps_is_set_as_a_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings().rtmps_context() is None
    monkeypatch.setenv("STREAMRP2P_RTMPS_PORT", "1936")
    with pytest.raises(SettingsError, match="RTMPS needs all three"):
        load_settings()
    monkeypatch.setenv("STREAMRP2P_RTMPS_CERT", str(tmp_path / "cert.pem"))
    monkeypatch.setenv("STREAMRP2P_RTMPS_KEY", str(tmp_path / "key.pem"))
    with pytest.raises(SettingsError, match=r"cert\.pem .* cannot be used"):
        load_settings().rtmps_context()
    monkeypatch.setenv("STREAMRP2P_RTMPS_PORT", "8000")
    with pytest.raises(SettingsError, match="a port of its own"):
        load_settings()


@pytest.mark.parametrize(("given", "ports"), [("9000", [9000]), ("9000-9002", [9000, 9001, 9002])])
def test_srt_ports_are_a_port_or_a_range(
    monkeypatch: pytest.MonkeyPatch, given: str, ports: list[int]
) -> None:
    monkeypatch.setenv("STREAMRP2P_SRT_PORTS", given)
    assert list(ports_of(load_settings().srt_ports or "")) == ports


@pytest.mark.parametrize("given", ["80", "9000-", "9001-9000", "9000,9001", "70000", "9000-9016", "٩٠٠٠"])
def test_other_srt_ports_are_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("STREAMRP2P_SRT_PORTS", given)
    with pytest.raises(SettingsError, match=r"STREAMRP2P_SRT_PORTS=.* must be"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "named"),
    [("10.0.0.3", "10.0.0.3"), ("10.0.0.0/8, fd00::1", "10.0.0.0/8,fd00::1"), ("10.0.0.3/32", "10.0.0.3")],
)
def test_trusted_proxies_are_addresses_and_networks(
    monkeypatch: pytest.MonkeyPatch, given: str, named: str
) -> None:
    monkeypatch.setenv("STREAMRP2P_TRUSTED_PROXIES", given)
    assert load_settings().trusted_proxies == named


@pytest.mark.parametrize(
    "given", ["*", "10.0.0.3,*", "0.0.0.0/0", "::/0", "10.0.0.1/8", "proxy.example", ","]
)
def test_a_proxy_that_could_be_anybody_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("STREAMRP2P_TRUSTED_PROXIES", given)
    with pytest.raises(SettingsError, match="STREAMRP2P_TRUSTED_PROXIES="):
        load_settings()


def test_the_variable_that_once_named_proxies_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.3")
    assert unknown_variables() == [
        "FORWARDED_ALLOW_IPS is not read: name your proxies in STREAMRP2P_TRUSTED_PROXIES"
    ]


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMRP2P_DATABASE_URL", "")
    assert load_settings().database_url is None


def test_a_misspelt_variable_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMRP2P_HTTP_PRT", "1")
    assert unknown_variables() == ["STREAMRP2P_HTTP_PRT is not a setting; did you mean STREAMRP2P_HTTP_PORT?"]


def test_passwords_are_not_in_the_repr_of_the_settings() -> None:
    settings = Settings(database_url="postgresql://me:hunter2@db/x", redis_url="redis://:hunter2@r/0")
    assert "hunter2" not in repr(settings)


def test_an_external_database_wins_and_without_one_a_stopped_hub_is_an_error(tmp_path: Path) -> None:
    external = Settings(data_dir=tmp_path, database_url="postgresql://db/x")
    assert external.resolved_database_url() == "postgresql://db/x"
    embedded = Settings(data_dir=tmp_path)
    with pytest.raises(HubNotRunning, match="streamrp2p up"):
        embedded.resolved_database_url()
    embedded.runtime_path.write_text(
        json.dumps({"pid": str(os.getpid()), "database_url": "postgresql:///here"})
    )
    assert embedded.resolved_database_url() == "postgresql:///here"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    embedded.runtime_path.write_text(json.dumps({"pid": str(gone.pid), "database_url": "postgresql:///gone"}))
    with pytest.raises(HubNotRunning):
        embedded.resolved_database_url()


def test_the_public_url_is_used_as_given_and_guessed_otherwise() -> None:
    assert Settings(public_url="https://live.example.org/").base_url == "https://live.example.org"
    assert Settings(public_url="https://live.example.org").rtmp_server == "rtmp://live.example.org/live"
    assert Settings(http_host="127.0.0.1", rtmp_port=1936).rtmp_server == "rtmp://127.0.0.1:1936/live"
