"""Reading bit fields and Exp-Golomb codes (ITU-T H.264, section 9.1)."""

from relay.media.errors import BadMedia


class BitReader:
    """Raises BadMedia when the bits run out."""

    __slots__ = ("_data", "_left")

    def __init__(self, data: bytes) -> None:
        self._data = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise BadMedia("a codec header is cut short")
        return (self._data >> self._left) & ((1 << count) - 1)

    def golomb(self) -> int:
        """ue(v)"""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise BadMedia("a codec header has an impossible number")
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        """se(v)"""
        code = self.golomb()
        return (code + 1) // 2 if code & 1 else -(code // 2)
