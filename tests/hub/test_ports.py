"""A port in use is one clear line: the port, what for, the setting, the program."""

import os
import socket
import subprocess
import sys

import pytest

from hub.ports import PortInUse, listen_on, require_free_port


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


def test_a_connection_made_while_nobody_accepts_is_served_by_the_next_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (listener,) = listen_on("127.0.0.1", port)
    accept_one = (
        "import socket, sys; c, _ = socket.socket(fileno=int(sys.argv[1])).accept(); c.sendall(b'here')"
    )
    with listener, socket.create_connection(("127.0.0.1", port), timeout=20) as early:
        command = [sys.executable, "-c", accept_one, str(listener.fileno())]
        for client in (early, None):  # the second process stands for the one that is started after a crash
            process = subprocess.Popen(command, pass_fds=(listener.fileno(),))
            with client or socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                assert connection.recv(4) == b"here"
            assert process.wait(20) == 0
