"""pytest plugin: hypothesis uses the same examples each time and does not shrink failures."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile(
    "mutation", parent=settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("mutation")
