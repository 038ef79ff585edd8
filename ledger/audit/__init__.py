"""Audit: the whole ledger replayed from its published files, trusting nobody.

Invariant: a report without a problem means that every check of docs/auditors.md was made and held. Needs no database
and nothing of the hub: a friend's plain install can audit.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger.audit.helpers import Helpers
from ledger.audit.replay import Replay
from ledger.audit.report import AuditFailure, Counts, NothingThere, Open, Problem, Report
from ledger.audit.resume import Resume
from ledger.audit.store import Store, StoreBusy
from ledger.audit.stream import Log
from ledger.checkpoint import Checkpoint
from ledger.note import MAX_NOTE_BYTES, Note, NoteError, VerifierKey
from ledger.tlog.cosignature import WitnessKey
from ledger.tlog.source import Source, SourceUnavailable, open_source, printable
from ledger.tlog.tiles import WIDTH

__all__ = [
    "AuditFailure",
    "Counts",
    "NothingThere",
    "Open",
    "Problem",
    "Progress",
    "Report",
    "SourceUnavailable",
    "StoreBusy",
    "audit",
]

Progress = Callable[[int, int], None]
"""(events done, events in all)"""

SAVE_EVERY_S: Final = 15.0
_MAX_VKEY_BYTES: Final = 1_024


def audit(
    source: str | Path,
    *,
    since: str | None = None,
    vkey: str | None = None,
    witnesses: Sequence[str] = (),
    jobs: int = 1,
    state: Path | None = None,
    fresh: bool = False,
    save_every_s: float = SAVE_EVERY_S,
    verify_signatures: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Check everything that was published at `source`, a folder or a URL.

    `since` is the checkpoint (signed note) that the auditor kept from last time, `vkey` the log's verifier key that the
    auditor trusts; without it the key published beside the log is taken, which proves only that the log agrees with
    itself. Each of `witnesses` (verifier keys) must have cosigned the checkpoint. `jobs` processes help; a log of a few
    hundred events needs none. With `state`, a file of the auditor's own, what was replayed is saved there from time to
    time, and an audit that was interrupted goes on from there with the next call; with `since`, also one that came to
    its end, so that only what is new is read. Not when it is to be `fresh`; and nobody is accused on the strength of
    it: what fails is replayed from the beginning. `verify_signatures` is False only to measure what the rest costs:
    such a report says nothing of who signed, nor that batches have the receipts that their nodes signed for, and
    nothing of it is saved.
    Raises NothingThere, SourceUnavailable, StoreBusy, and NoteError when `since` or `vkey` or a witness's key
    themselves cannot be read.
    """
    with open_source(source) as files, closing(Helpers(jobs)) as helpers:
        report = Report(files.name)
        pinned = VerifierKey.parse(vkey.strip()) if vkey is not None else None
        asked = [WitnessKey.parse(text.strip()) for text in witnesses]
        try:
            checkpoint, key = _head(files, pinned, report)
            _cosigned(asked, report)
            kept = _kept(since, checkpoint) if since is not None else None
        except AuditFailure as failure:
            report.problem = _problem(failure)
            return report
        run = _Run(files, helpers, checkpoint, key, since, kept, save_every_s, progress)
        keep = state if verify_signatures else None
        only_new = since is not None
        saved = (
            Resume(keep, checkpoint.origin, checkpoint.size, only_new=only_new) if keep is not None else None
        )
        for anew in dict.fromkeys((fresh, True)):
            with closing(saved.open(fresh=anew) if saved is not None else Store()) as store:
                begun = saved.begun if saved is not None else None
                replay = Replay(
                    store,
                    helpers,
                    saved=begun.replay if begun is not None else None,
                    verify_signatures=verify_signatures,
                )
                report.resumed_from = begun.edge.size if begun is not None else 0
                broken = run.replay(replay, saved)
                report.open = replay.open_ends() if broken is None else Open()
                if saved is not None:
                    saved.finish()
            if broken is None or begun is None:
                break
    _fill(report, replay, kept if broken is None else None)
    if broken is not None:
        report.problem = _problem(broken)
    return report


def _problem(failure: AuditFailure) -> Problem:
    """Some of the reason may be the hub's own words."""
    return Problem(printable(failure.reason), failure.position, failure.file)


@dataclass(frozen=True, slots=True)
class _Run:
    """One log as of one checkpoint, and what it is held against."""

    files: Source
    helpers: Helpers
    checkpoint: Checkpoint
    key: VerifierKey
    since: str | None
    kept: Checkpoint | None
    save_every_s: float
    progress: Progress | None

    def replay(self, replay: Replay, saved: Resume | None) -> AuditFailure | None:
        """The first thing that does not hold."""
        try:
            try:
                self._replay_all(replay, saved)
            except AuditFailure as failure:
                raise _earliest(replay, failure) from failure
            replay.finish()
            _check_log_keys(replay, self.checkpoint, self.key, self.since)
        except AuditFailure as failure:
            return failure
        return None

    def _replay_all(self, replay: Replay, saved: Resume | None) -> None:
        edge = saved.begun.edge if saved is not None and saved.begun is not None else None
        log = Log(self.files, self.checkpoint, self.kept, self.helpers, edge)
        due_s = time.monotonic() + self.save_every_s
        size = self.checkpoint.size
        with closing(iter(log)) as bundles:
            for bundle in bundles:
                replay.apply_all(bundle)
                replay.trim()
                end = bundle.start + len(bundle.entries)
                last = size - end < WIDTH  # from here the next audit goes on, when the log has grown
                if saved is not None and len(bundle.entries) == WIDTH and (last or time.monotonic() >= due_s):
                    saved.save(log.edge(), replay)
                    due_s = time.monotonic() + self.save_every_s
                if self.progress is not None:
                    self.progress(end, size)


def _fill(report: Report, replay: Replay, kept: Checkpoint | None) -> None:
    replay.counts.signatures = replay.signatures.count + 1  # the checkpoint's
    report.counts = replay.counts
    report.consistent_with = kept.size if kept is not None else None
    report.paid_micro = replay.books.paid_micro
    report.balances = {a: m for a, m in sorted(replay.books.balances.items()) if m}


def _head(files: Source, pinned: VerifierKey | None, report: Report) -> tuple[Checkpoint, VerifierKey]:
    """The signed checkpoint and the key that it is held against."""
    # The key first: while the log's key changes, a checkpoint is signed by the one before and the next.
    published = files.read("vkey", _MAX_VKEY_BYTES)
    note = files.read("checkpoint", MAX_NOTE_BYTES)
    if note is None:
        raise NothingThere(
            f"there is no checkpoint at {files.name}; a hub publishes at its address with /log"
        )
    try:
        beside = VerifierKey.parse(published.decode().removesuffix("\n")) if published is not None else None
    except (NoteError, UnicodeDecodeError) as e:
        raise AuditFailure(f"the verifier key cannot be read: {e}", file="vkey") from e
    if beside is not None and published != f"{beside}\n".encode():
        raise AuditFailure("the verifier key is not written as it should be", file="vkey")
    if pinned is not None and beside is not None and beside != pinned:
        raise AuditFailure(f"the log shows another key than the one you trust: {beside}", file="vkey")
    key = pinned or beside
    if key is None:
        raise AuditFailure("there is no verifier key beside the log and none was given", file="vkey")
    try:
        checkpoint = Checkpoint.open(note, key)
    except NoteError as e:
        raise AuditFailure(str(e), file="checkpoint") from e
    report.origin, report.size, report.root = checkpoint.origin, checkpoint.size, checkpoint.root.hex()
    report.checkpoint, report.vkey, report.pinned = note.decode(), str(key), pinned is not None
    if checkpoint.origin != key.name:
        raise AuditFailure("the checkpoint's origin is not its key's name", file="checkpoint")
    return checkpoint, key


def _cosigned(witnesses: list[WitnessKey], report: Report) -> None:
    """Every witness that the auditor asks for saw this checkpoint, and that it continues those before."""
    note = Note.parse(report.checkpoint.encode())
    for witness in witnesses:
        try:
            at_s = witness.cosigned_s(note)
        except NoteError as e:
            raise AuditFailure(str(e), file="checkpoint") from e
        if at_s is None:
            raise AuditFailure(
                f"the witness {witness.name} has not cosigned the checkpoint", file="checkpoint"
            )
        report.cosigned_s[witness.name] = at_s


def _kept(since: str, checkpoint: Checkpoint) -> Checkpoint:
    """The auditor's own last checkpoint. The published log must continue it."""
    kept = Checkpoint.parse_text(Note.parse(since.encode()).text)
    if kept.origin != checkpoint.origin:
        raise NoteError(f"the checkpoint you kept is of another log: {kept.origin}")
    if kept.size > checkpoint.size:
        raise AuditFailure(
            f"the log is shorter than the checkpoint you kept: {checkpoint.size} events, not {kept.size}",
            file="checkpoint",
        )
    if kept.size == checkpoint.size and kept.root != checkpoint.root:
        raise AuditFailure("the log was rewritten: same size, another root than you kept", file="checkpoint")
    return kept


def _earliest(replay: Replay, failure: AuditFailure) -> AuditFailure:
    """Signatures are verified behind the replay: one that does not hold may come before what stopped it."""
    try:
        replay.signatures.finish()
    except AuditFailure as earlier:
        if earlier.comes_before(failure):
            return earlier
    return failure


def _check_log_keys(replay: Replay, checkpoint: Checkpoint, key: VerifierKey, since: str | None) -> None:
    """The log names the keys of its checkpoints, so that a change of key is in the log for all to see."""
    named = replay.crew.log_keys()
    if checkpoint.size and key.public_key not in named:
        raise AuditFailure("the key that signs the checkpoint is not in the log", file="checkpoint")
    if checkpoint.size and named[key.public_key]:
        raise AuditFailure("the key that signs the checkpoint was retired", file="checkpoint")
    if since is not None:
        try:
            Checkpoint.open(since.encode(), key, *(VerifierKey(checkpoint.origin, k) for k in named))
        except NoteError as e:
            raise AuditFailure(f"the checkpoint you kept was not signed by this log: {e}") from e
