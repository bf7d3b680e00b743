"""An asset of the shop's own that depends on the backup."""

import dagster as dg

RECOVERY_POINT = dg.AssetKey(["shop", "recovery_point"])


@dg.asset(deps=[RECOVERY_POINT], automation_condition=dg.AutomationCondition.eager())
def status_page(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """State the newest recovery point, which exists only if its checks have passed."""
    event = context.instance.get_latest_materialization_event(RECOVERY_POINT)
    if event is None or event.asset_materialization is None:
        raise dg.Failure("no recovery point exists")
    point = event.asset_materialization.metadata
    return dg.MaterializeResult(metadata={name: point[name] for name in ("recovery_point", "snapshot_at")})
