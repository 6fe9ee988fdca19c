"""Which laws of the contract an algorithm is excused from, and why: rows by the algorithm's name, or by that and the
value of one of its options."""

from typing import Any

# One task and the neutral coefficient give that model back. These hyper-parameters are neutral beside the usual
# ones (density 1, scaling 1, no steps) …
NEUTRAL: dict[str, dict[str, Any]] = {
    "concrete": {"evaluation_mask": "expectation"},  # σ(0) / mean σ(0) = 1; a drawn or an empty mask is not
    "consensus": {"agreement": 1},  # one task agrees with itself alone
    "lines": {"beta": 0.0},  # no growth with depth
}
# … and for these the paper's formula gives another model.
NOT_NEUTRAL: dict[str, str] = {
    "lorahub": "the coefficients start at 0",
    "iso_c": "a single task vector gets a flat spectrum too",
    "iso_cts": "a single task vector gets a flat spectrum too",
    "doge": "a task vector becomes as long as η in every layer, and loses its small coordinates",
}
# The order of tasks matters by definition.
ORDER_OF_TASKS: dict[str, str] = {
    "greedy_task_arithmetic": "task vectors are added in the order of the tasks, rescaled after each",
    "lorahub": "the search tries one coefficient after the other",
    "knots dare": "draws are seeded with the bytes of coordinates, which rounding of the basis changes",
    "core_space dare": "draws are seeded with the bytes of coordinates, which rounding of the bases changes",
}
# The order of layers matters by definition.
ORDER_OF_LAYERS: dict[str, str] = {}
# The same numbers in another dtype are other bytes, of which the draws are made.
CONTENT: dict[str, str] = {
    "dare": "draws are seeded with the bytes of the task vector",
    "della": "draws are seeded with the bytes of the task vector",
    "knots dare": "draws are seeded with the bytes of coordinates",
    "core_space dare": "draws are seeded with the bytes of coordinates",
}
# Every kind of device has draws of its own.
DRAWS = CONTENT | {"concrete": "the noise of its masks"}
# The host waits for every evaluation of a loss.
SEARCHES: dict[str, str] = {
    "greedy_task_arithmetic": "it chooses the scaling of the least loss after every task",
    "lorahub": "it chooses the next coefficients by the loss of the last",
}
# How many models (at least, at most) an algorithm merges, where that is not one or more.
TASKS: dict[str, tuple[int, int]] = {
    "slerp": (2, 2),
    "consensus": (2, 4),  # by default two must agree
}
# `scaling` is not a factor of the whole merged task vector.
NOT_A_FACTOR: dict[str, str] = {
    "cart": "it multiplies what is added to the mean of the models",
    "doge": "the loss depends on it",
    "svc": "calibration compares the scaled update with the tasks",
}
# Hyper-parameters that the tests set for an algorithm whatever its defaults (a budget, what follows a transform).
SHORT: dict[str, dict[str, Any]] = {}
