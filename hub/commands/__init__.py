"""One module for each command of `streamrp2p`, imported only when it is called (see hub/cli.py)."""
