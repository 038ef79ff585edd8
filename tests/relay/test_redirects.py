"""Segments for players in other people's pages: at the hub by name, at the node by redirect, once."""

import asyncio
import uuid

from hypothesis import given
from hypothesis import strategies as st
from relay_rig import is_header, publishing, rig
from test_watching import ticket

from relay.origin.redirects import Redirects
from relay.ports import Assignment


def test_a_page_is_led_to_the_node_once_and_then_served_by_the_hub(source):
    async def scenario():
        async with rig(hub_every=3) as r:
            encoder = await publishing(r)
            await encoder.send([t for t in source if is_header(t) or t[1] < 6500])
            await r.until(lambda: len(r.authority.published) == 6)
            rendition = r.authority.grants[0].rendition_id
            signed = ticket(1, 9, rendition)
            r.steering.assigned = Assignment("https://node.example", signed)
            browser = {"origin": "https://fans.example"}
            master = (await r.http.get(r.url("/live/main.m3u8"), headers=browser)).text
            path = master.splitlines()[-1]
            assert path.endswith("/index.m3u8?via=hub")
            listed = (await r.http.get(r.url(path), headers=browser)).text
            uris = [line for line in listed.splitlines() if not line.startswith("#")]
            assert uris == [path.replace("index.m3u8", f"{i}.ts") for i in range(6)]
            answers = [await r.http.get(r.url(uri), headers=browser) for uri in uris]
            assert [a.status_code for a in answers] == [
                200,
                302,
                302,
                200,
                302,
                302,
            ]  # 0: no ticket, 3: sampled
            to = f"https://node.example/segments/{rendition}/1.ts?t={signed.encode_url()}"
            assert answers[1].headers["location"] == to
            assert answers[1].headers["access-control-allow-origin"] == "*"
            assert r.steering.fetches == [0, 3]
            again = await r.http.get(r.url(uris[1]), headers=browser)
            assert again.content == r.authority.published[1][1]
            assert r.steering.fetches == [0, 3, 1]
            own = (await r.http.get(r.url("/live/main.m3u8?direct"), headers=browser)).text
            vlc = (await r.http.get(r.url("/live/main.m3u8"))).text
            assert "via=hub" not in own + vlc
            assert "node.example" in (await r.http.get(r.url(vlc.splitlines()[-1]))).text

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=100))
def test_no_session_is_sent_away_twice_for_a_segment(requests):
    redirects, seen = Redirects(), set()
    for session, sequence in requests:
        assert redirects.first(uuid.UUID(int=session), sequence) == ((session, sequence) not in seen)
        seen.add((session, sequence))
