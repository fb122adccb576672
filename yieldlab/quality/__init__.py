"""How sound is the data, and what does a market do about what is not?

`check` counts what is wrong and changes nothing; `clean_spikes` is the one place where an observation may give way.
"""

from __future__ import annotations

from yieldlab.quality._check import Report, Thresholds, check
from yieldlab.quality._clean import HOW, Cleaned, clean_spikes
from yieldlab.quality._robust import MAD_TO_SIGMA, SPIKE_WINDOW

__all__ = ["HOW", "MAD_TO_SIGMA", "SPIKE_WINDOW", "Cleaned", "Report", "Thresholds", "check", "clean_spikes"]
