"""A port in use is one clear line: the port, what for, the setting, the program."""

import os
import socket

import pytest

from hub.ports import PortInUse, require_free_port


def test_a_taken_port_is_named_with_the_setting_and_the_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            require_free_port("127.0.0.1", port, use="RTMP", setting="STREAMRP2P_RTMP_PORT", patience_s=0)
    text = str(caught.value)
    assert f"port {port} (RTMP)" in text
    assert "STREAMRP2P_RTMP_PORT" in text
    assert f"(process {os.getpid()})" in text


def test_a_free_port_passes_and_stays_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for _ in range(2):
        require_free_port("127.0.0.1", port, use="HTTP", setting="STREAMRP2P_HTTP_PORT")


def test_an_address_that_is_not_ours_is_told_apart_from_a_taken_port() -> None:
    with pytest.raises(PortInUse, match="cannot listen"):
        require_free_port("192.0.2.77", 9, use="HTTP", setting="STREAMRP2P_HTTP_HOST")
