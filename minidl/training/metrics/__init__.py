"""Metrics: numbers gathered over batches, which stay on the device until they are asked for."""

from minidl.training.metrics.base import (
    Mean,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
)
from minidl.training.metrics.calibration import ExpectedCalibrationError, Reliability
from minidl.training.metrics.classification import (
    AUC,
    BinaryAccuracy,
    CategoricalAccuracy,
    ConfusionMatrix,
    F1Score,
    Precision,
    Recall,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
)
from minidl.training.metrics.text import (
    ExactMatch,
    RougeL,
    TokenF1,
    longest_common_subsequence,
    rouge_l,
    token_f1,
)

__all__ = [
    "AUC", "BinaryAccuracy", "CategoricalAccuracy", "ConfusionMatrix", "ExactMatch",
    "ExpectedCalibrationError", "F1Score", "Mean", "MeanAbsoluteError", "MeanSquaredError",
    "Metric", "Precision", "Recall", "Reliability", "RougeL", "SparseCategoricalAccuracy",
    "SparseTopKCategoricalAccuracy", "TokenF1", "longest_common_subsequence", "rouge_l", "token_f1",
]  # fmt: skip
