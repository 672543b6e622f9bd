"""Every metric there is: its name without `exeat_`, its type, its labels, and what it says.

No label is a host, an address, a lease, an episode or a job: those are the ledger's, and without end.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from exeat.ledger.tally import MACHINE, PEOPLE

Type = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """`bounds` are of a histogram: upper bounds in seconds, without the last, which has none."""

    type: Type
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()


def _counter(help_: str, *labels: str) -> Metric:
    return Metric("counter", labels, help_)


def _gauge(help_: str, *labels: str) -> Metric:
    return Metric("gauge", labels, help_)


def _times(help_: str, *labels: str, bounds: tuple[float, ...] = MACHINE) -> Metric:
    return Metric("histogram", labels, help_, bounds)


METRICS: Final[dict[str, Metric]] = {
    # the proxy
    "decisions_total": _counter("Flows by what was decided of them.", "project", "verdict", "reason"),
    "bytes_total": _counter("Payload bytes passed, out or in.", "project", "direction"),
    "connections_active": _gauge("Flows that live now.", "project"),
    "decision_duration_seconds": _times("How long the policy core took for one decision."),
    "connect_duration_seconds": _times("How long a connection to a destination took to make.", "result"),
    "hold_duration_seconds": _times("How long a flow waited for a person.", "result"),
    "bypass_attempts_total": _counter("Attempts to go around the gateway.", "project", "kind"),
    "budget_used_ratio": _gauge("Used part of the budget's nearest limit.", "project", "budget"),
    # the guard
    "dns_queries_total": _counter("Lookups of clients, answered.", "project", "rcode", "verdict"),
    "dns_anomalies_total": _counter("Lookups that do not look like lookups.", "project", "kind"),
    "dns_duration_seconds": _times("How long an answer took that was not remembered."),
    # leases and who decides
    "leases": _gauge("Leases and requests by state.", "project", "state"),
    "lease_requests_total": _counter("Requests asked for, and what came of them.", "project", "outcome"),
    "lease_oldest_pending_seconds": _gauge("Age of the oldest unanswered request.", "project"),
    "lease_approval_duration_seconds": _times(
        "How long a request waited until it was granted.", "project", bounds=PEOPLE
    ),
    "cost_usd_estimate_total": _counter("Estimated cost of traffic, in US dollars.", "project"),
    # the ledger
    "ledger_entries_total": _counter("Records on the ledger."),
    "ledger_append_duration_seconds": _times("How long a group of records took to be durable."),
    "ledger_fsync_lag_seconds": _gauge("Longest wait for durability lately."),
    "ledger_writable": _gauge("1 while the ledger can record, else 0: then nothing opens."),
    "ledger_bytes": _gauge("Bytes of the ledger's segments on this disk."),
    "ledger_disk_free_bytes": _gauge("Bytes free on the ledger's disk."),
    "ledger_disk_bytes": _gauge("Size of the ledger's disk in bytes."),
    "ledger_verify_ok": _gauge("1 if the last check of the whole ledger found nothing wrong."),
    "ledger_last_verified_timestamp_seconds": _gauge("When the whole ledger was last checked."),
    "ledger_drifts_total": _counter("Flows whose bytes were not those of the kernel."),
    # what is in force
    "enforcement_in_sync": _gauge("1 while this part enforces what control has published.", "part"),
    "policy_version_info": _gauge("The policy in force, by the start of its digest.", "project", "digest"),
    "policy_reloads_total": _counter("Changes of policies, made or refused.", "project", "result"),
    "nft_apply_duration_seconds": _times("How long a change of the host's table took."),
    "posture_info": _gauge("The posture in force.", "project", "posture"),
    "kill_switch": _gauge("1 while the kill switch is on; project * is everything.", "project"),
    # jobs and the node
    "jobs": _gauge("Jobs by state.", "project", "state"),
    "job_exits_total": _counter("Jobs that ended, by how.", "project", "reason"),
    "node_last_seen_timestamp_seconds": _gauge("When every part of the node was last heard.", "node"),
    "process_up": _gauge("1 while this process of the node is there.", "process"),
    "auth_failures_total": _counter("Logins and passwords that were refused.", "method"),
    "sse_clients": _gauge("Browsers and others that watch events now."),
    "build_info": _gauge("The version that runs.", "version"),
}
