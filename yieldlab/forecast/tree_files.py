"""Whether bytes are trees in XGBoost's JSON, asked before XGBoost sees them: it may end the process over others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from yieldlab.errors import DataError

#: What a tree has one of per node.
_PER_NODE = (
    "left_children right_children parents split_indices split_conditions split_type default_left base_weights "
    "loss_changes sum_hessian"
).split()


def check_trees(name: str, content: bytes | None, objective: str, inputs: Sequence[str]) -> None:
    """Raise DataError unless `content` is a booster of this objective that reads `inputs`, with whole trees."""
    try:
        learner = json.loads(content or b"")["learner"]
        model = learner["gradient_booster"]["model"]
        classes = max(1, int(learner["learner_model_param"]["num_class"]))
        told = (learner["objective"]["name"], learner["feature_names"])
        width = int(learner["learner_model_param"]["num_feature"])
        whole = _whole(model, classes, width)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"the trees of model {name!r} cannot be read: they are not XGBoost's JSON") from error
    if told != (objective, list(inputs)) or width != len(inputs):
        raise DataError(f"the trees of model {name!r} are not those of its card: they read or tell something else")
    if not whole:
        raise DataError(f"the trees of model {name!r} are damaged")


def _whole(model: Mapping[str, Any], classes: int, width: int) -> bool:
    trees, rounds = model["trees"], model["iteration_indptr"]
    counted = int(model["gbtree_model_param"]["num_trees"]) == len(trees) == len(model["tree_info"]) == rounds[-1]
    ordered = rounds[0] == 0 and all(before < after for before, after in pairwise(rounds))
    groups = all(0 <= group < classes for group in model["tree_info"])
    return bool(counted and ordered and groups and all(_whole_tree(tree, width) for tree in trees))


def _whole_tree(tree: Mapping[str, Any], width: int) -> bool:
    """Every node has all its numbers, later nodes as children or none, and a feature that exists."""
    nodes = int(tree["tree_param"]["num_nodes"])
    columns = {name: np.array(tree[name], dtype=np.float64) for name in _PER_NODE}
    if nodes < 1 or any(column.shape != (nodes,) for column in columns.values()) or tree["categories"]:
        return False
    place = np.arange(nodes)
    left, right, feature = (columns[name] for name in ("left_children", "right_children", "split_indices"))
    leaf = left == -1
    inner = (left > place) & (right > place) & (left < nodes) & (right < nodes)
    return bool((np.where(leaf, right == -1, inner) & (feature >= 0) & (feature < width)).all())
