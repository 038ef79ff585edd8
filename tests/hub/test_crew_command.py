"""`streamrp2p crew`, `friend` and `token`: nodes are stopped and let in again, lost links and tokens replaced."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from typer.testing import CliRunner

from api.directory import Directory, NodeProfile, Role
from api.liveness import Liveness, Pulse
from api.newcomers import invite_friend
from api.valkey import connect
from hub.cli import app
from hub.clock import now_us
from hub.keystore import KeyStore, KeyStoreError, SigningKeys
from hub.rotation import take_up
from ledger.aggregates.node import Node, NodeStatus
from ledger.application import Ledger, NotFound
from ledger.judged import Judged
from ledger.services import crew
from ledger.services.nodes import join_node
from ledger.store.database import connect_pool, create_sql_engine
from projections.runner import Runner


class Founded:
    def __init__(self, ledger: Ledger, database_url: str, directory: Directory, valkey_url: str) -> None:
        self.ledger, self.directory = ledger, directory
        self.liveness = Liveness(connect(valkey_url))
        self._engine = create_sql_engine(database_url)
        self._runner = Runner(ledger, self._engine)
        self._runner.prepare()

    def node_of(self, friend: str, name: str) -> UUID:
        new = invite_friend(self.ledger, self.directory, friend, at_us=now_us())
        node, _ = join_node(
            self.ledger,
            code=new.code,
            public_key=uuid4().bytes * 2,
            prefix_commitment=b"p" * 16,
            at_us=now_us(),
        )
        self.directory.save_profile(NodeProfile(node.id, name, None), at_us=now_us())
        self._runner.catch_up()
        return node.id

    def project(self) -> None:
        self._runner.catch_up()

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture
def hub(
    ledger: Ledger, database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Founded]:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=1)
    monkeypatch.setenv("STREAMRP2P_DATABASE_URL", database_url)
    monkeypatch.setenv("STREAMRP2P_REDIS_URL", valkey_url)
    monkeypatch.setenv("STREAMRP2P_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("STREAMRP2P_PUBLIC_URL", "https://live.example.org")
    with connect_pool(database_url) as pool:
        founded = Founded(ledger, database_url, Directory(pool), valkey_url)
        yield founded
        founded.close()


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def typed(*arguments: str) -> str:
    done = asked(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_node_is_suspended_let_in_again_and_retired_each_with_a_reason(hub: Founded) -> None:
    nid = hub.node_of("Berta", "attic")
    hub.liveness.beat(Pulse(nid, "http://203.0.113.7:9000", 0, 0, now_us()))
    told = typed("crew", "suspend", "attic", "--reason", "odd bytes")
    assert told == "attic: suspended: odd bytes\n"
    assert hub.liveness.alive(now_us=now_us()) == {}
    assert hub.ledger.load(Node, nid).status is NodeStatus.SUSPENDED
    again = json.loads(typed("crew", "suspend", str(nid), "--reason", "again", "--json"))
    assert again == {"node_id": str(nid), "status": "suspended", "reason": "odd bytes"}
    hub.project()
    (row,) = json.loads(typed("crew", "nodes", "--json"))["nodes"]
    shown = (row["name"], row["friend"], row["state"], row["state_reason"])
    assert shown == ("attic", "Berta", "suspended", "odd bytes")
    assert typed("crew", "reinstate", "attic", "--reason", "new disk") == "attic: active\n"
    hub.project()
    (row,) = json.loads(typed("crew", "nodes", "--json"))["nodes"]
    assert (row["state"], row["state_reason"]) == ("joined", "")
    assert typed("crew", "retire", "attic", "--reason", "sold") == "attic: retired: sold\n"
    refused = asked("crew", "reinstate", "attic", "--reason", "bought back")
    assert (refused.exit_code, "the node is retired" in refused.output) == (1, True)


def test_the_operator_is_told_what_was_refused_of_a_nodes_receipts_and_by_which_caps(
    hub: Founded, monkeypatch: pytest.MonkeyPatch
) -> None:
    nid = hub.node_of("Berta", "attic")
    node = hub.ledger.load(Node, nid)
    judged = (Judged("late"), Judged("capped", cap="same_network"), Judged("capped", cap="own_account"))
    node.refuse_receipts(
        batch_header=bytes(147), indices=(0, 1, 2), receipts=bytes(615), judged=judged, at_us=now_us()
    )
    hub.ledger.save(node)
    hub.project()
    (row,) = json.loads(typed("crew", "nodes", "--json"))["nodes"]
    assert row["verdicts"] == {"late": 1, "capped": 2}
    assert row["caps"] == {"same_network": 1, "own_account": 1}
    monkeypatch.setenv("COLUMNS", "250")
    assert "2 capped, 1 late (1 own_account, 1 same_network)" in typed("crew", "nodes")


def test_a_node_is_named_so_that_only_one_can_be_meant(hub: Founded) -> None:
    both = {str(hub.node_of("Berta", "attic")), str(hub.node_of("Cleo", "attic"))}
    refused = asked("crew", "suspend", "attic", "--reason", "odd bytes")
    assert refused.exit_code == 2
    assert "2 nodes have that name" in refused.output
    for unknown in ("cellar", str(uuid4())):
        assert isinstance(asked("crew", "retire", unknown, "--reason", "gone").exception, NotFound)
    assert asked("crew", "suspend", both.pop(), "--reason", "").exit_code == 2
    assert asked("crew", "suspend", both.pop(), "--reason", "ä" * 3).exit_code == 2
    assert {row["state"] for row in json.loads(typed("crew", "nodes", "--json"))["nodes"]} == {"joined"}


def test_a_friend_who_lost_the_link_gets_a_new_one_and_the_old_opens_nothing(hub: Founded) -> None:
    old = invite_friend(hub.ledger, hub.directory, "Berta", at_us=now_us())
    made = json.loads(typed("friend", "token", "Berta", "--json"))
    assert made["friend_id"] == str(old.friend_id)
    assert made["friend_url"] == f"https://live.example.org/friend#{made['friend_token']}"
    found = hub.directory.token(made["friend_token"], now_us=now_us())
    assert found is not None
    assert (found.role, found.subject_id) == (Role.FRIEND, old.friend_id)
    assert hub.directory.token(old.token, now_us=now_us()) is None
    assert "shown once" in typed("friend", "token", str(old.friend_id))


def test_a_name_that_two_friends_have_is_refused_and_both_are_listed(hub: Founded) -> None:
    creator = uuid4()  # of the same name, and no friend
    hub.directory.name_person(creator, "Berta")
    hub.directory.create_token(Role.CREATOR, creator, "main", at_us=now_us())
    nid = hub.node_of("Berta", "attic")
    typed("friend", "token", "Berta")
    other = invite_friend(hub.ledger, hub.directory, "Berta", at_us=now_us())
    refused = asked("friend", "token", "Berta")
    assert (refused.exit_code, "2 friends have that name" in refused.output) == (2, True)
    assert isinstance(asked("friend", "token", "Cleo").exception, NotFound)
    assert asked("friend", "token", str(creator)).exit_code == 2
    friends = json.loads(typed("friend", "list", "--json"))["friends"]
    assert [one["name"] for one in friends] == ["Berta", "Berta"]
    nodes = {one["friend_id"]: one["nodes"] for one in friends}
    assert nodes.pop(str(other.friend_id)) == []
    assert list(nodes.values()) == [[{"node_id": str(nid), "name": "attic", "state": "joined"}]]
    assert "attic (joined)" in typed("friend", "list")


def test_one_operators_token_is_revoked_and_the_others_stay(hub: Founded) -> None:
    laptop, phone = typed("token", "create", "--label", "laptop").strip(), typed("token", "create").strip()
    typed("token", "create")
    listed = json.loads(typed("token", "list", "--json"))["tokens"]
    assert [one["label"] for one in listed] == ["laptop", "operator", "operator"]
    assert laptop not in typed("token", "list")
    assert asked("token", "revoke").exit_code == 2
    assert asked("token", "revoke", "laptop", "--all").exit_code == 2
    refused = asked("token", "revoke", "operator")
    assert (refused.exit_code, "2 tokens have that label" in refused.output) == (2, True)
    assert typed("token", "revoke", "laptop") == f"{listed[0]['name']} revoked\n"
    assert hub.directory.token(laptop, now_us=now_us()) is None
    assert hub.directory.token(phone, now_us=now_us()) is not None
    assert isinstance(asked("token", "revoke", "laptop").exception, NotFound)
    typed("token", "revoke", listed[1]["name"])
    assert "1 revoked" in typed("token", "revoke", "--all")
    assert json.loads(typed("token", "list", "--json")) == {"tokens": []}


def test_a_key_is_made_named_in_the_log_and_waits_for_the_next_start(hub: Founded, tmp_path: Path) -> None:
    nowhere = asked("crew", "key", "rotate", "ticket")
    assert isinstance(nowhere.exception, KeyStoreError)
    KeyStore.open(tmp_path / "keys")
    take_up(hub.ledger, tmp_path / "keys", at_us=now_us())

    def states() -> list[tuple[str, str]]:
        keys = json.loads(typed("crew", "key", "list", "--json"))["keys"]
        return [(one["purpose"], one["state"]) for one in keys]

    assert states() == [("ticket", "signs"), ("log", "signs")]
    made = json.loads(typed("crew", "key", "rotate", "ticket", "--json"))
    assert states() == [("ticket", "signs"), ("ticket", "signs from the next start on"), ("log", "signs")]
    told = typed("crew", "key", "rotate", "log")
    assert "live.example.org/crew+" in told
    assert asked("crew", "key", "rotate", "network").exit_code == 2
    take_up(hub.ledger, tmp_path / "keys", at_us=now_us())
    assert states() == [
        ("ticket", "retired"),
        ("ticket", "signs"),
        ("log", "signs beside the new one, and is retired soon"),
        ("log", "signs"),
    ]
    assert SigningKeys(tmp_path / "keys", "ticket").current().key_id.hex() == made["key_id"]
    refused = asked("crew", "key", "rotate", "log")
    assert (refused.exit_code, "not retired yet" in refused.output) == (1, True)
    assert asked("crew", "key", "rotate", "ticket").exit_code == 0
