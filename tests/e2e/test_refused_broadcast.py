"""A ledger that says no to a broadcast, and an encoder that comes back into it."""

import asyncio
from collections.abc import Sequence

from relay_rig import Tag, publishing, rig

from ledger.events import Segment
from relay.ports import BroadcastGrant


def test_the_encoder_that_comes_back_is_seen_again(source: list[Tag]) -> None:
    async def scenario() -> None:
        async with rig() as r:
            authority = r.authority
            publish = authority.publish_segments

            async def refuse_the_third(
                grant: BroadcastGrant, segments: Sequence[Segment], media: Sequence[bytes]
            ) -> None:
                if segments[-1].sequence >= 2:
                    authority.publish_segments = publish  # once
                    raise ValueError("this is not a matter of waiting")
                await publish(grant, segments, media)

            authority.publish_segments = refuse_the_third
            encoder = await publishing(r)
            for start in range(0, 6000, 1000):
                await encoder.send([tag for tag in source if start <= tag[1] < start + 1000])
                await asyncio.sleep(0.05)
            assert await encoder.answered(b"start again")
            await encoder.kill()
            authority.interrupted = True  # the ledger goes by the last event it has
            before = len(authority.published)
            encoder = await publishing(r)
            await encoder.send([tag for tag in source if tag[1] < 6000])
            await r.until(lambda: len(authority.published) > before + 2)
            text = (await r.http.get(r.url(await r.media_playlist()))).text
            assert text.count("#EXTINF") > before
            assert "#EXT-X-ENDLIST" not in text
            await encoder.kill()

    asyncio.run(scenario())
