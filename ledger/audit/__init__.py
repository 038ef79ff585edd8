"""Audit: the whole ledger replayed from its published files, trusting nobody.

Invariant: a report without a problem means that every check of docs/auditors.md was made and held. Needs no database
and nothing of the hub: a friend's plain install can audit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

from ledger.audit.replay import Replay
from ledger.audit.report import AuditFailure, Counts, NothingThere, Problem, Report
from ledger.audit.stream import Entries
from ledger.checkpoint import Checkpoint
from ledger.note import MAX_NOTE_BYTES, Note, NoteError, VerifierKey
from ledger.tlog.cosignature import WitnessKey
from ledger.tlog.source import Source, SourceUnavailable, open_source

__all__ = [
    "AuditFailure",
    "Counts",
    "NothingThere",
    "Problem",
    "Progress",
    "Report",
    "SourceUnavailable",
    "audit",
]

Progress = Callable[[int, int], None]
"""(events done, events in all)"""

FETCHING: Final = 2  # threads that read files ahead
_MAX_VKEY_BYTES: Final = 1_024


def audit(
    source: str | Path,
    *,
    since: str | None = None,
    vkey: str | None = None,
    witnesses: Sequence[str] = (),
    jobs: int = 1,
    verify_signatures: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Check everything that was published at `source`, a folder or a URL.

    `since` is the checkpoint (signed note) that the auditor kept from last time, `vkey` the log's verifier key that the
    auditor trusts; without it the key published beside the log is taken, which proves only that the log agrees with
    itself. Each of `witnesses` (verifier keys) must have cosigned the checkpoint. `jobs` threads verify signatures;
    `verify_signatures` is False only to measure what the rest costs: such a report says nothing of who signed.
    Raises NothingThere, SourceUnavailable, and NoteError when `since` or
    `vkey` or a witness's key themselves cannot be read.
    """
    with (
        open_source(source) as files,
        ThreadPoolExecutor(FETCHING) as fetching,
        ThreadPoolExecutor(max(1, jobs)) as pool,
        closing(Replay(pool, verify_signatures=verify_signatures)) as replay,
    ):
        report = Report(files.name)
        pinned = VerifierKey.parse(vkey.strip()) if vkey is not None else None
        asked = [WitnessKey.parse(text.strip()) for text in witnesses]
        try:
            checkpoint, key = _head(files, pinned, report)
            _cosigned(asked, report)
            kept = _kept(since, checkpoint) if since is not None else None
            try:
                _replay_all(Entries(files, checkpoint, kept, fetching), replay, checkpoint, progress)
            except AuditFailure as failure:
                raise _earliest(replay, failure) from failure
            replay.finish()
            _check_log_keys(replay, checkpoint, key, since)
        except AuditFailure as failure:
            report.problem = Problem(failure.reason, failure.position, failure.file)
        else:
            report.consistent_with = kept.size if kept is not None else None
    replay.counts.signatures = replay.signatures.count + 1
    report.counts = replay.counts
    report.paid_micro = replay.books.paid_micro
    report.balances = {a: m for a, m in sorted(replay.books.balances.items()) if m}
    return report


def _head(files: Source, pinned: VerifierKey | None, report: Report) -> tuple[Checkpoint, VerifierKey]:
    """The signed checkpoint and the key that it is held against."""
    note = files.read("checkpoint", MAX_NOTE_BYTES)
    if note is None:
        raise NothingThere(f"there is no checkpoint at {files.name}")
    published = files.read("vkey", _MAX_VKEY_BYTES)
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


def _replay_all(entries: Entries, replay: Replay, checkpoint: Checkpoint, progress: Progress | None) -> None:
    for start, bundle in entries:
        for position, data in enumerate(bundle, start):
            replay.apply(position, data)
        if progress is not None:
            progress(start + len(bundle), checkpoint.size)


def _earliest(replay: Replay, failure: AuditFailure) -> AuditFailure:
    """Signatures are verified behind the replay: one that does not hold may come before what stopped it."""
    try:
        replay.signatures.finish()
    except AuditFailure as earlier:
        if failure.position is None or (earlier.position or 0) < failure.position:
            return earlier
    return failure


def _check_log_keys(replay: Replay, checkpoint: Checkpoint, key: VerifierKey, since: str | None) -> None:
    """The log names the keys of its checkpoints, so that a change of key is in the log for all to see."""
    named = replay.crew.log_keys()
    if checkpoint.size and key.public_key not in named:
        raise AuditFailure("the key that signs the checkpoint is not in the log", file="checkpoint")
    if since is not None:
        try:
            Checkpoint.open(since.encode(), key, *(VerifierKey(checkpoint.origin, k) for k in named))
        except NoteError as e:
            raise AuditFailure(f"the checkpoint you kept was not signed by this log: {e}") from e
