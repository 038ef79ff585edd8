"""RTMPS on a real hub: the port belongs to the supervisor, as the others do."""

import asyncio
import ssl
import subprocess
from pathlib import Path

from house import House
from relay_rig import Encoder

from hub.demo.cast import free_ports


def test_an_encoder_over_tls_that_comes_while_the_origin_starts_again_waits_and_is_taken(
    folder: Path,
) -> None:
    key, cert, (port,) = folder / "key.pem", folder / "cert.pem", free_ports(1)
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
        f" -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    settings = {"RTMPS_PORT": str(port), "RTMPS_CERT": str(cert), "RTMPS_KEY": str(key)}
    house = House(folder, extra={f"STREAMRP2P_{name}": value for name, value in settings.items()})
    trusted = ssl.create_default_context(cafile=cert)

    async def publish() -> Encoder:
        """One try to connect, which must succeed; the answer may take as long as a start."""
        encoder = await Encoder.connect(port, house.keys["main"], tls=trusted)
        assert await encoder.answered(b"NetStream.Publish.Start")
        return encoder

    async def scenario() -> None:
        await (await publish()).kill()
        assert house.kill("origin")
        await (await publish()).kill()

    try:
        house.open()
        asyncio.run(scenario())
    finally:
        house.close()
