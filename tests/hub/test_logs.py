"""No secret reaches a log line, whichever library wrote it, in either format."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hub.logs import MASK, configure_logging, mask_text

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Long and mixed, so that finding one in a line is no accident.
secrets = st.text("abcdefghijkmnpqrstuvwxyz23456789", min_size=16, max_size=40)
names = st.sampled_from(
    [
        "stream_key",
        "token",
        "password",
        "seed",
        "key_seed",
        "authorization",
        "api_token",
        "Authorization",
        "db.password",
    ]
)
carriers = st.sampled_from(
    [
        "rtmp push with main_{key} refused",
        "GET /api?token={secret}&x=1",
        "connecting to postgresql://hub:{secret}@db:5432/x",
        "Authorization: Bearer {secret}",
        "used sp2p_operator_{token}",
        "{{'password': '{secret}', 'n': 1}}",
    ]
)


@contextmanager
def logged(*, as_json: bool) -> Iterator[io.StringIO]:
    old, root = sys.stderr, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.stderr = io.StringIO()
    # as a server in this process may have left it
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        configure_logging(json=as_json, level="debug")
        yield sys.stderr
    finally:
        sys.stderr = old
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


@given(names, secrets, st.booleans())
def test_a_value_under_a_secrets_name_never_shows_at_any_depth(name: str, secret: str, as_json: bool) -> None:
    with logged(as_json=as_json) as lines:
        structlog.get_logger("t").info(
            "seen", **{name.replace(".", "_"): secret}, deep=[{"a": {name: secret}}]
        )
    assert secret not in lines.getvalue()
    assert MASK in lines.getvalue()


@given(
    carriers,
    secrets,
    st.text(BASE32, min_size=32, max_size=32),
    st.text(BASE64, min_size=43, max_size=43),
    st.booleans(),
)
def test_a_secret_inside_a_message_never_shows(
    carrier: str, secret: str, key: str, token: str, as_json: bool
) -> None:
    text = carrier.format(secret=secret, key=key, token=token)
    hidden = key if "{key}" in carrier else token if "{token}" in carrier else secret
    with logged(as_json=as_json) as lines:
        structlog.get_logger("t").warning(text)
        structlog.get_logger("t").warning("with a value", detail=text, raw=text.encode())
        logging.getLogger("uvicorn.error").info("from a library: %s", text)
        try:
            raise ValueError(text)
        except ValueError:
            structlog.get_logger("t").exception("failed")
            logging.getLogger("alembic").exception("failed")
    assert lines.getvalue().count("\n") >= 5
    assert hidden not in lines.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "main_stream is live",
        "GET /live/main/index.m3u8 200",
        "rendition 7f3c 12 segments",
        "a token of thanks",
    ],
)
def test_plain_text_is_left_alone(text: str) -> None:
    assert mask_text(text) == text


def test_json_lines_are_one_object_each_and_carry_the_level() -> None:
    with logged(as_json=True) as lines:
        structlog.get_logger("t").info("one", segments=3)
        logging.getLogger("uvicorn.error").warning("two\nlines")
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (first["event"], first["segments"], first["level"]) == ("one", 3, "info")
    assert (second["event"], second["level"], second["logger"]) == ("two\nlines", "warning", "uvicorn.error")


def test_a_record_that_cannot_be_rendered_shows_no_arguments() -> None:
    with logged(as_json=False) as lines:
        logging.getLogger("x").info("%d", "sp2p_operator_secretsecret")
    assert "could not be rendered" in lines.getvalue()
    assert "secretsecret" not in lines.getvalue()
