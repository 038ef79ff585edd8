"""A minimal ERC-20 token in EVM assembly, and the assembler for it: no compiler is needed.

Slot `a` of the storage holds what address `a` owns; slot 0 is 1 once somebody called `pause()`. Kinds:

- "standard": `transfer` returns true, logs Transfer, reverts without enough; while paused it reverts
- "silent": the same, but returns nothing, as USDT does
- "refusing": without enough, or while paused, returns false and moves nothing
- "mute": returns true, moves nothing and logs nothing
- "greedy": keeps a unit of what is moved, and logs what arrived
"""

from typing import Final

TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
PAUSE: Final = "0x8456cb59"  # selector of pause()

# Yellow paper, appendix H.2.
_OPCODES: Final = {
    "STOP": 0x00, "ADD": 0x01, "SUB": 0x03, "LT": 0x10, "EQ": 0x14, "SHR": 0x1C, "CALLER": 0x33,
    "CALLVALUE": 0x34, "CALLDATALOAD": 0x35, "CODECOPY": 0x39, "MSTORE": 0x52, "SLOAD": 0x54, "SSTORE": 0x55,
    "JUMP": 0x56, "JUMPI": 0x57, "DUP1": 0x80, "DUP2": 0x81, "SWAP1": 0x90, "LOG3": 0xA3, "RETURN": 0xF3,
    "REVERT": 0xFD,
}  # fmt: skip
_JUMPDEST, _PUSH1 = 0x5B, 0x60


def assemble(source: str) -> bytes:
    """Words: an opcode; a number (pushed); `:name` a place to jump to; `@name` pushes where that is (two bytes)."""
    places: dict[str, int] = {}
    code = b""
    for _ in range(2):  # the second time all places are known
        code = b""
        for word in source.split():
            if word[0] == ":":
                places[word[1:]] = len(code)
                code += bytes([_JUMPDEST])
            elif word[0] == "@":
                code += bytes([_PUSH1 + 1]) + places.get(word[1:], 0).to_bytes(2)
            elif word[0].isdigit():
                value = int(word, 0)
                size = max(1, (value.bit_length() + 7) // 8)
                code += bytes([_PUSH1 + size - 1]) + value.to_bytes(size)
            else:
                code += bytes([_OPCODES[word]])
    return code


def token_code(kind: str, *, supply: int, decimals: int) -> bytes:
    """What a transaction that makes the contract carries; its sender owns the whole supply."""
    runtime = assemble(_runtime(kind, decimals))
    length = len(assemble(_constructor(supply, len(runtime), 0)))
    for _ in range(2):  # its own length may make one of its numbers longer
        length = len(assemble(_constructor(supply, len(runtime), length)))
    return assemble(_constructor(supply, len(runtime), length)) + runtime


def _constructor(supply: int, size: int, offset: int) -> str:
    return f"{supply} CALLER SSTORE {size} {offset} 0 CODECOPY {size} 0 RETURN"


def _runtime(kind: str, decimals: int) -> str:
    returns = {flag: f"{flag} 0 MSTORE 32 0 RETURN" for flag in (0, 1)}
    fail = returns[0] if kind == "refusing" else "0 0 REVERT"
    done = "STOP" if kind == "silent" else returns[1]
    move = f"""
        36 CALLDATALOAD CALLER SLOAD      // balance amount
        DUP2 DUP2 LT @fail JUMPI
        DUP2 SWAP1 SUB CALLER SSTORE      // amount
        {"1 SWAP1 SUB" if kind == "greedy" else ""}
        DUP1 4 CALLDATALOAD SLOAD ADD 4 CALLDATALOAD SSTORE
        0 MSTORE
        4 CALLDATALOAD CALLER {TRANSFER} 32 0 LOG3
    """
    source = f"""
        0 CALLDATALOAD 224 SHR
        DUP1 0xa9059cbb EQ @transfer JUMPI
        DUP1 0x70a08231 EQ @balance JUMPI
        DUP1 0x313ce567 EQ @decimals JUMPI
        DUP1 {PAUSE} EQ @pause JUMPI
        0 0 REVERT
        :transfer
        0 SLOAD @fail JUMPI
        {"" if kind == "mute" else move}
        {done}
        :balance 4 CALLDATALOAD SLOAD 0 MSTORE 32 0 RETURN
        :decimals {decimals} 0 MSTORE 32 0 RETURN
        :pause 1 0 SSTORE STOP
        :fail {fail}
    """
    return "\n".join(line.split("//")[0] for line in source.splitlines())
