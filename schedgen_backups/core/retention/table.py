"""The table of what retention keeps and removes, with the reasons, as Markdown: the same in the log, in the UI and on the terminal."""

from __future__ import annotations

from schedgen_backups.core.retention.retention import RetentionPlan


def make_retention_table(plan: RetentionPlan) -> str:
    """A line per recovery point, oldest first."""
    lines = ["| recovery point | state | decision | because |", "| --- | --- | --- | --- |"]
    for decision in plan.decisions:
        point = decision.candidate
        because = "; ".join(decision.reasons).replace("|", "\\|")
        lines.append(f"| {point.point_id} | {point.state.value} | {'keep' if decision.is_kept else 'remove'} | {because} |")
    return "\n".join(lines)
