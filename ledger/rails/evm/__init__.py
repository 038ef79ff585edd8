"""The rail to an Ethereum-like chain: its coin, or an ERC-20 token. `rail.py` says how nobody is paid twice.

Needs the extra `evm`; this package's modules are imported only when such a payout is made.
"""
