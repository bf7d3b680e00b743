"""Everything in the folder `defs`: the shop's own assets, and the backup."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of this project."""
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    # A backup is one process. Its jobs have their own executor; "Materialize" in the UI takes this one.
    return dg.Definitions.merge(found, dg.Definitions(executor=dg.in_process_executor))
