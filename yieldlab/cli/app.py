"""The whole tree of commands: importing this module registers every one, in the order in which help lists them."""

from __future__ import annotations

# isort: off
from yieldlab.cli import project as project
from yieldlab.cli import demo as demo
from yieldlab.cli import backtest as backtest
from yieldlab.cli import data as data
from yieldlab.cli import collect as collect
from yieldlab.cli import backfill as backfill
from yieldlab.cli import series as series
from yieldlab.cli import exchange as exchange
from yieldlab.cli import honesty as honesty
from yieldlab.cli import strategies as strategies
from yieldlab.cli import sweep as sweep
from yieldlab.cli import models as models
from yieldlab.cli import evaluation as evaluation
from yieldlab.cli import runs as runs
from yieldlab.cli.groups import app as app
