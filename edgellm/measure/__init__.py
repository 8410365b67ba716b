"""How fast a model runs, where its time goes, and what this machine can do at most."""

from __future__ import annotations

from edgellm.measure.bench import measure
from edgellm.measure.limits import Limits, measure_limits
from edgellm.measure.profile import Profile, profile

__all__ = ["Limits", "Profile", "measure", "measure_limits", "profile"]
