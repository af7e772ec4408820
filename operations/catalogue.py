"""Every operation of the model, in dataflow order."""

from operations.attend_in_blocks import ATTEND_IN_BLOCKS
from operations.cross_entropy import CROSS_ENTROPY
from operations.dropout import DROPOUT
from operations.embedding import EMBEDDING
from operations.gate import GATE
from operations.gelu_tanh import GELU_TANH
from operations.layer_norm import LAYER_NORM
from operations.linear import LINEAR
from operations.low_rank import LOW_RANK
from operations.masked_softmax import MASKED_SOFTMAX
from operations.merge_heads import MERGE_HEADS
from operations.position import POSITION
from operations.relu import RELU
from operations.residual import RESIDUAL
from operations.rms_norm import RMS_NORM
from operations.rms_norm_plus_one import RMS_NORM_PLUS_ONE
from operations.rotate import ROTATE
from operations.scale import SCALE
from operations.scores import SCORES
from operations.silu import SILU
from operations.sinusoidal_positions import SINUSOIDAL_POSITIONS
from operations.soft_cap import SOFT_CAP
from operations.split_heads import SPLIT_HEADS
from operations.weighted_sum import WEIGHTED_SUM

_ALL = (
    SINUSOIDAL_POSITIONS, EMBEDDING, SCALE, POSITION, DROPOUT, LAYER_NORM, RMS_NORM, RMS_NORM_PLUS_ONE, LINEAR,
    LOW_RANK, SPLIT_HEADS, ROTATE, SCORES, SOFT_CAP, MASKED_SOFTMAX, WEIGHTED_SUM, MERGE_HEADS, RESIDUAL, RELU,
    GELU_TANH, SILU, GATE, CROSS_ENTROPY,
)  # fmt: skip
OPERATIONS = {operation.name: operation for operation in _ALL}
# What an untraced pass runs in the place of several of them, so that no dataflow holds it.
UNTRACED = {operation.name: operation for operation in (ATTEND_IN_BLOCKS,)}
