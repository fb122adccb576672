"""How sound is the data, and what does a market do about what is not?

`check` counts what is wrong and `revisions` what was changed after the fact; both change nothing. `clean_spikes` is the
one place where an observation may give way.
"""

from __future__ import annotations

from yieldlab.quality._check import COLUMNS, COUNTED, LIMITS, Report, check
from yieldlab.quality._clean import HOW, Cleaned, clean_spikes
from yieldlab.quality._flags import FLAGS, SHIFT_WINDOW
from yieldlab.quality._revisions import CHANGES, Revisions, revisions
from yieldlab.quality._robust import MAD_TO_SIGMA, SPIKE_WINDOW
from yieldlab.quality._silence import CROWD_POOLS, CROWD_SHARE, CROWDS, OUTAGES, Doubt, doubtful_deaths
from yieldlab.quality._thresholds import Thresholds

__all__ = [
    "CHANGES",
    "COLUMNS",
    "COUNTED",
    "CROWDS",
    "CROWD_POOLS",
    "CROWD_SHARE",
    "FLAGS",
    "HOW",
    "LIMITS",
    "MAD_TO_SIGMA",
    "OUTAGES",
    "SHIFT_WINDOW",
    "SPIKE_WINDOW",
    "Cleaned",
    "Doubt",
    "Report",
    "Revisions",
    "Thresholds",
    "check",
    "clean_spikes",
    "doubtful_deaths",
    "revisions",
]
