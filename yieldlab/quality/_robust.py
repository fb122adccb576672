"""How far is far? The few numbers by which checks and cleaning tell a spike from a move."""

from __future__ import annotations

#: Observations whose median a yield is compared with: around it in a check, up to it where the future is unknown.
SPIKE_WINDOW = 31
#: Robust deviations from that median from which on a yield is a spike.
SPIKE_DEVIATIONS = 12.0
#: Makes the median absolute deviation of normal numbers their standard deviation.
MAD_TO_SIGMA = 1.4826
