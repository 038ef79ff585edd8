"""The node's counters for Prometheus (text exposition format 0.0.4). Pure."""

from typing import Any, Final

METRICS_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


def metrics_text(status: dict[str, Any]) -> str:
    """From what `NodePage` shows. A gauge that is not known just now is left out."""
    traffic, cache, receipts, hub = (status[k] for k in ("traffic", "cache", "receipts", "hub"))
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, value: float | None, labels: str = "") -> None:
        if value is None:
            return
        full = f"streamrp2p_node_{name}"
        if f"# TYPE {full} {kind}" not in lines:
            lines.extend((f"# HELP {full} {about}", f"# TYPE {full} {kind}"))
        lines.append(f"{full}{labels} {value}")

    metric("viewers", "gauge", "Viewers helped now.", status["viewers"])
    metric("uploaded_bytes_total", "counter", "Bytes of segments sent to viewers.", traffic["uploaded_bytes"])
    metric("segments_total", "counter", "Segments sent to viewers.", traffic["segments"])
    metric("refused_total", "counter", "Requests refused.", traffic["refused"])
    metric("pulled_bytes_total", "counter", "Bytes of segments pulled from the hub.", cache["pulled_bytes"])
    metric("corrupt_total", "counter", "Pulled segments whose bytes did not match.", cache["corrupt"])
    metric("cache_bytes", "gauge", "Bytes of segments in memory.", cache["bytes"])
    metric("receipts_waiting", "gauge", "Receipts on disk without an answer.", receipts["waiting"])
    metric("spool_bytes", "gauge", "Size of the receipts' file.", receipts["spool_bytes"])
    metric("credited_bytes_total", "counter", "Bytes the hub credited.", receipts["credited_bytes"])
    for verdict, count in sorted(receipts["verdicts"].items()):
        metric("verdicts_total", "counter", "Answers of the hub.", count, f'{{verdict="{verdict}"}}')
    metric("hub_answered_seconds", "gauge", "Since the hub last answered.", hub["heartbeat_ago_s"])
    return "\n".join(lines) + "\n"
