"""`streamrp2p doctor` on a real hub sees whether the proxy before it says who asks, and whether it is believed."""

import json
from pathlib import Path

import httpx2
from house import House

from hub.demo.cast import run_command


def test_the_doctor_sees_a_proxy_that_says_nothing_and_one_that_is_not_named(folder: Path) -> None:
    house = House(folder, extra={"STREAMRP2P_TRUSTED_PROXIES": "10.0.0.3"})

    def proxies(public_url: str) -> dict[str, str]:
        environment = {**house.environment, "STREAMRP2P_PUBLIC_URL": public_url}
        said = run_command("doctor", "--json", environment=environment, ok=(0, 1))
        (found,) = (f for f in json.loads(said)["findings"] if f["check"] == "proxies")
        return found

    try:
        house.open()
        assert proxies(house.base)["state"] == "ok"
        silent = proxies("https://localhost:1")
        assert silent["state"] == "warn"
        assert "no request yet" in silent["said"]
        httpx2.get(f"{house.base}/api/health", headers={"X-Forwarded-For": "192.0.2.7"}).raise_for_status()
        unnamed = proxies(house.base)
        assert unnamed["state"] == "warn"
        assert "from elsewhere, 1 times" in unnamed["said"]
        assert "STREAMRP2P_TRUSTED_PROXIES" in unnamed["advice"]
        log = (folder / "hub.log").read_text()
        assert "X-Forwarded-For is not believed" in log
    finally:
        house.close()
