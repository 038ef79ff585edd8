"""Every setting of the hub, in one place (docs/operators.md describes the same list, tests/test_docs.py compares).

Invariant: a hub that starts has valid settings; one that does not says which variable is wrong, what it was given
(never a password) and what is expected. Settings come from `STREAMRP2P_*` variables and from nowhere else.
"""

import difflib
import ipaddress
import json
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "STREAMRP2P_"
_CHECKOUT = Path(__file__).resolve().parent.parent
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")


class SettingsError(Exception):
    """One or more settings are wrong, or the hub they point to is not running."""

    exit_code = 2


class HubNotRunning(Exception):
    """The embedded database is asked for and no hub runs on this data directory. Transient: start it, try again."""

    exit_code = 10


def _default_data_dir() -> Path:
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / ".data"
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "streamrp2p"


def _scheme(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in schemes or not (parts.netloc or parts.path):
            raise ValueError(f"must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value.rstrip("/") if parts.scheme.startswith("http") else value

    return AfterValidator(check)


def _secret_scheme(*schemes: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        if urlsplit(value.get_secret_value()).scheme not in schemes:
            raise ValueError(f"must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    return AfterValidator(check)


def _witnesses(value: str) -> str:
    from ledger.tlog.cosigners import WitnessAddress  # an HTTP client: not for every command

    WitnessAddress.parse_all(value)
    return value


def _proxies(value: str) -> str:
    found = []
    for text in value.split(","):
        if text.strip() == "*":
            raise ValueError("must not be *: everybody could say which network they are in")
        network = ipaddress.ip_network(text.strip())
        if not network.prefixlen:
            raise ValueError(f"must not be {network}: everybody could say which network they are in")
        found.append(str(network if network.num_addresses > 1 else network.network_address))
    return ",".join(found)


MAX_SRT_PORTS = 16  # each is a program that listens


def ports_of(value: str) -> range:
    """`9000`, or `9000-9003` with both ends. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", value, re.ASCII)
    if found is None:
        raise ValueError("must be a port or a range of ports")
    first = int(found[1])
    ports = range(first, int(found[2] or first) + 1)
    if not 1024 <= first <= ports.stop - 1 <= 65535:
        raise ValueError("must be ports from 1024 to 65535, the smaller one first")
    if len(ports) > MAX_SRT_PORTS:
        raise ValueError(f"must be at most {MAX_SRT_PORTS} ports")
    return ports


def _ports(value: str) -> str:
    ports_of(value)
    return value


def _passphrase(value: SecretStr) -> SecretStr:
    if re.fullmatch(r"[A-Za-z0-9_-]{10,64}", value.get_secret_value(), re.ASCII) is None:
        raise ValueError("must be 10 to 64 letters, digits, - and _")  # it goes into addresses as it is
    return value


Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Descriptions are written for the operator who got the value wrong: they end the error message."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    data_dir: Path = Field(
        default_factory=_default_data_dir, description="folder for the database, keys and log"
    )
    database_url: Annotated[str, _scheme("postgresql", "postgres")] | None = Field(
        None,
        repr=False,
        description="postgresql://user:password@host/database; not set: the embedded Postgres",
    )
    redis_url: Annotated[str, _scheme("redis", "rediss", "unix")] | None = Field(
        None, repr=False, description="redis://host:6379/0; not set: the embedded Valkey"
    )
    rtmp_host: str = Field("0.0.0.0", min_length=1, description="address RTMP listens on")  # noqa: S104
    rtmp_port: Port = Field(1935, description="port for OBS, 1 to 65535")
    rtmps_port: Port | None = Field(None, description="port for OBS over TLS, 1 to 65535; not set: none")
    rtmps_cert: Path | None = Field(None, description="certificate chain of the RTMPS port, a PEM file")
    rtmps_key: Path | None = Field(None, description="private key of that certificate, a PEM file")
    srt_ports: Annotated[str, AfterValidator(_ports)] | None = Field(
        None, description="UDP ports for OBS over SRT, one encoder each: 9000 or 9000-9003; not set: none"
    )
    srt_passphrase: Annotated[SecretStr, AfterValidator(_passphrase)] | None = Field(
        None,
        description="passphrase of all SRT ports, 10 to 64 letters, digits, - and _; not set: not encrypted",
    )
    http_host: str = Field("0.0.0.0", min_length=1, description="address HTTP listens on")  # noqa: S104
    http_port: Port = Field(8000, description="port for pages, API and media, 1 to 65535")
    public_url: Annotated[str, _scheme("http", "https")] | None = Field(
        None, description="what viewers and friends reach this hub by, such as https://live.example.org"
    )
    trusted_proxies: Annotated[str, AfterValidator(_proxies)] = Field(
        "127.0.0.1,::1",
        description="addresses and networks, commas between, of the proxies whose X-Forwarded-For is believed",
    )
    crew_name: str = Field(
        "crew", min_length=1, max_length=80, description="name of the crew, 1 to 80 characters"
    )
    unit: str = Field(
        "EUR",
        pattern=r"^[A-Z][A-Z0-9]{1,11}$",
        description="unit of account: 2 to 12 capitals or digits, such as EUR",
    )
    epoch_length_s: int = Field(3600, ge=1, le=604_800, description="settlement window, 1 second to 7 days")
    publish_grace_s: int = Field(
        15, ge=0, le=300, description="seconds a creator may take to reconnect, 0 to 300"
    )
    segments: Literal["ts", "fmp4"] = Field(
        "ts", description="ts: MPEG-TS, for every player; fmp4: fragmented MP4"
    )
    low_latency_viewers: int = Field(
        0,
        ge=0,
        le=10_000,
        description="viewers who may watch a second behind, all carried by the hub; needs fmp4",
    )
    thumbnail_s: int = Field(
        30, ge=0, le=3600, description="seconds between pictures of a stream, at most 3600; 0: none"
    )
    record_days: int = Field(
        0, ge=0, le=3650, description="days that recordings of broadcasts are kept; 0: nothing is recorded"
    )
    checkpoint_interval_s: int = Field(
        10, ge=1, le=60, description="seconds between log checkpoints, 1 to 60"
    )
    probe_proxy: Annotated[str, _scheme("http", "https")] | None = Field(
        None, repr=False, description="HTTP proxy for spot checks of nodes, such as http://10.0.0.2:3128"
    )
    witnesses: Annotated[str, AfterValidator(_witnesses)] | None = Field(
        None,
        description="verifier key and URL of each witness of the log: name+hash+key@https://..., commas between",
    )
    evm_rpc_url: Annotated[SecretStr, _secret_scheme("http", "https")] | None = Field(
        None, repr=False, description="JSON-RPC of a node of the chain that payouts are made on: https://..."
    )
    evm_chain_id: int | None = Field(None, ge=1, lt=1 << 53, description="number of that chain (EIP-155)")
    evm_token: str | None = Field(
        None,
        pattern=r"^0x[0-9a-fA-F]{40}$",
        description="ERC-20 contract, with checksum; not set: the chain's coin",
    )
    evm_decimals: int = Field(18, ge=0, le=30, description="decimals of the coin or token, 0 to 30")
    evm_unit: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9]{1,11}$",
        description="unit of account that one whole coin or token stands for",
    )
    evm_key_file: Path | None = Field(
        None, description="key of the account that pays: hexadecimal, or a keystore"
    )
    evm_passphrase_file: Path | None = Field(None, description="file with the keystore's passphrase")
    evm_confirmations: int = Field(
        12, ge=1, le=10_000, description="blocks, its own included, until a payment is final, 1 to 10000"
    )
    evm_fee_cap_gwei: int = Field(
        100, ge=1, le=1_000_000, description="most that a unit of gas may cost, in gwei, 1 to 1000000"
    )
    log_json: bool = Field(False, description="true: log lines as JSON; false: for people")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error"
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.rtmp_port == self.http_port:
            raise ValueError(f"{PREFIX}RTMP_PORT and {PREFIX}HTTP_PORT cannot share port {self.rtmp_port}")
        if self.rtmps_port is not None and self.rtmps_port in (self.rtmp_port, self.http_port):
            raise ValueError(f"{PREFIX}RTMPS_PORT needs a port of its own, not {self.rtmps_port}")
        return self

    @model_validator(mode="after")
    def _rtmps_is_whole(self) -> Self:
        parts = (self.rtmps_port, self.rtmps_cert, self.rtmps_key)
        if any(part is not None for part in parts) and None in parts:
            names = ", ".join(f"{PREFIX}RTMPS_{name}" for name in ("PORT", "CERT", "KEY"))
            raise ValueError(f"RTMPS needs all three of {names}")
        return self

    @model_validator(mode="after")
    def _low_latency_has_parts(self) -> Self:
        if self.low_latency_viewers and self.segments != "fmp4":
            raise ValueError(f"{PREFIX}LOW_LATENCY_VIEWERS needs {PREFIX}SEGMENTS=fmp4")
        return self

    def rtmps_context(self) -> ssl.SSLContext | None:
        """None: no RTMPS. Raises SettingsError when the files cannot be used."""
        if self.rtmps_port is None or self.rtmps_cert is None or self.rtmps_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.rtmps_cert, self.rtmps_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"the certificate {self.rtmps_cert} and the key {self.rtmps_key} cannot be used for RTMPS: {error}"
            ) from error
        return context

    @property
    def runtime_path(self) -> Path:
        """Written by the supervisor: where the servers of the running hub are."""
        return self.data_dir / "runtime.json"

    @property
    def base_url(self) -> str:
        """`public_url`, or a guess that is right inside the local network. Without a trailing slash."""
        return self.public_url or f"http://{self.public_host}:{self.http_port}"

    @property
    def public_host(self) -> str:
        """The host name or address others reach this machine by."""
        if self.public_url:
            return urlsplit(self.public_url).hostname or "localhost"
        return _own_address() if self.http_host in ("0.0.0.0", "::") else self.http_host  # noqa: S104

    @property
    def rtmp_server(self) -> str:
        """What a creator types into OBS as the server."""
        port = "" if self.rtmp_port == 1935 else f":{self.rtmp_port}"
        return f"rtmp://{self.public_host}{port}/live"

    def resolved_database_url(self) -> str:
        """The external database, or the embedded one of the running hub. Raises HubNotRunning."""
        return self.database_url or self._of_running_hub("database_url", "DATABASE_URL")

    def resolved_redis_url(self) -> str:
        """The external Redis, or the embedded Valkey of the running hub. Raises HubNotRunning."""
        return self.redis_url or self._of_running_hub("redis_url", "REDIS_URL")

    def _of_running_hub(self, key: str, variable: str) -> str:
        try:
            runtime = json.loads(self.runtime_path.read_bytes())
            os.kill(int(runtime["pid"]), 0)
            return str(runtime[key])
        except PermissionError as error:
            raise HubNotRunning(
                f"the hub in {self.data_dir} belongs to another user: run this command as the user who started it"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HubNotRunning(
                f"no hub is running on {self.data_dir}: start it with 'streamrp2p up', or set {PREFIX}{variable}"
            ) from error

    def prepare_data_dir(self) -> None:
        """Create the data directory, closed to other accounts. Root's lets the embedded servers' account walk through
        to its own folder, and list nothing."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)


def load_settings() -> Settings:
    """Settings from the environment. Raises SettingsError that names every wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors(include_url=False)]
        count = "1 setting is" if len(lines) == 1 else f"{len(lines)} settings are"
        raise SettingsError("\n".join([f"{count} wrong:", *lines])) from None


def unknown_variables() -> list[str]:
    """A line for each variable that looks like a misspelt setting, or was one."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    lines = []
    if os.environ.get("FORWARDED_ALLOW_IPS"):
        lines.append(f"FORWARDED_ALLOW_IPS is not read: name your proxies in {PREFIX}TRUSTED_PROXIES")
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if near:
                lines.append(f"{name} is not a setting; did you mean {near[0]}?")
    return lines


def _explain(problem: dict[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return f"  {message}"
    field = str(problem["loc"][0])
    variable = PREFIX + field.upper()
    secret = field in ("evm_rpc_url", "srt_passphrase")  # the path of an address is often the password
    given = "***" if secret else _USERINFO.sub("***@", os.environ.get(variable, ""))[:200]
    return f"  {variable}={given}: {message} (expected: {Settings.model_fields[field].description})"


def _own_address() -> str:
    """This machine's address in its network; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737
            return str(probe.getsockname()[0])
        except OSError:
            return "localhost"
