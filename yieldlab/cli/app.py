"""The whole tree of commands: importing this module registers every one."""

from __future__ import annotations

# isort: off  # help lists the commands in this order
from yieldlab.cli import project as project
from yieldlab.cli.groups import app as app
