"""The faults that the suite must find: every known mistake, each gradient off by a hundredth, and wrong plumbing."""

from functools import partial

from operations import adamw
from operations.catalogue import OPERATIONS
from operations.operation import Mistake, Operation, made
from parity.faults import Fault, Made

_MODEL, _ADAM, _GENERATE = "numpy_llm.model", "numpy_llm.adam", "numpy_llm.generate"

# Which proof must see a mistake, so that each of them is known to see some; "tensors" where none is named.
_CHECKS = {
    "differences": (
        "dtable_overwritten", "dlinear_transposed", "dnorm_without_mean", "dnorm_without_variance", "drelu_missing",
        "dgelu_without_three", "dgelu_without_slope", "ddropout_without_mask", "dloss_of_sum", "dsoftmax_without_sum",
        "dscores_without_scale", "dmerge_without_swap", "dscores_transposed",
    ),
    "transformers": (
        "dweight_transposed", "norm_eps_outside", "norm_unbiased", "gelu_erf", "gelu_constants", "loss_shifted_twice",
        "mask_off_by_one", "scale_missing", "qkv_order", "merge_without_swap",
    ),
    "cache": ("position_of_window", "mask_without_cached"),
    "accumulation": ("dloss_ignored",),
}  # fmt: skip
_CHECK_OF = {name: check for check, names in _CHECKS.items() for name in names}
# No gradient is taken of tokens that a cache stands before; what the norm is given is plumbing, see below.
_ELSEWHERE = {"dposition_from_zero", "residual_of_norm"}


def _faults_of(operation: Operation) -> list[Made]:
    """Each known mistake of an operation, and each of its gradients off by a hundredth."""
    mistakes = [each for each in operation.mistakes if each.name not in _ELSEWHERE]
    if operation.backward is not None:
        mistakes += [_hundredth(operation, argument) for argument in operation.gradients]
    return [_of_mistake(operation, mistake) for mistake in mistakes]


def _of_mistake(operation: Operation, mistake: Mistake) -> Made:
    others = {"scale": 0.6} if "scale" in (getattr(mistake.compute, "__kwdefaults__", None) or {}) else {}
    title, check = f"{operation.name}: {mistake.name}", _CHECK_OF.get(mistake.name, "tensors")
    return Made(title, partial(made, operation, mistake, **others), check)


def _hundredth(operation: Operation, argument: str) -> Mistake:
    def compute(*arguments):
        gradient = operation.differentiate(arguments[:-1], arguments[-1])[argument]
        return None if gradient is None else {argument: gradient * 1.01}

    return Mistake(f"d{argument} times 1.01", "", "", True, compute)


OPERATION_FAULTS = [fault for operation in OPERATIONS.values() for fault in _faults_of(operation)]
STEP_FAULTS = [
    Made(f"adamw: {mistake.name}", partial(adamw.made_in_step, mistake), "adamw")
    for mistake in adamw.MISTAKES
]

# fmt: off
RESIDUAL_OF_NORM = Fault("residual: branch added to the normed copy", f"{_MODEL}.block_forward",
                         "residual_forward(x, branch)", "residual_forward(normed, branch)")
USE_OF_OTHER = Fault("residual: another gradient for the stream's", f"{_MODEL}.block_backward",
                     "residual_backward(dx, cache.residual_1)", "dy, dx", "differences")
USE_MISSING = Fault("tied: the output's gradient lost", f"{_MODEL}.GPT.backward",
                    "_add(gradients, {self.output_name: doutput}, turn)",
                    "_add(gradients, {} if self.config.tie_embeddings else {self.output_name: doutput}, turn)",
                    "differences")
USES_AVERAGED = Fault("tied: the mean of both gradients", f"{_MODEL}.GPT.backward", "return gradients",
                      'gradients["token_embedding.weight"][...] /= 1 + self.config.tie_embeddings; return gradients')
PLUMBING_FAULTS = [
    RESIDUAL_OF_NORM, USE_OF_OTHER, USE_MISSING, USES_AVERAGED,
    Fault("tied: the embedding's gradient lost", f"{_MODEL}.GPT.backward",
          '_add(gradients, {"token_embedding.weight"',
          'self.config.tie_embeddings or _add(gradients, {"token_embedding.weight"', "transformers"),
    Fault("embedding: another place's mask", f"{_MODEL}.GPT.stream_forward",
          'dropout, "embedding_dropout", trace)', 'dropout, "blocks.0.dropout_1", trace)'),
    Fault("embedding: positions' gradient lost", f"{_MODEL}.GPT.backward",
          '_add(gradients, {"position_embedding.weight": dpositions}, turn)', "pass", "transformers"),
    Fault("gradients overwritten, not added", f"{_MODEL}._add", "total += gradient", "total[...] = gradient",
          "accumulation"),
    Fault("decay decoupled in Adam", f"{_ADAM}.Adam", "decoupled = False", "decoupled = True", "adam"),
    Fault("sign of the decay in Adam", f"{_ADAM}.update_piece", "g + decay * weight", "g - decay * weight", "adam"),
]

DECODING_FAULTS = [
    Fault("cache: one position short", f"{_GENERATE}.next_token_logits",
          "+= len(tokens)", "+= len(tokens) - 1", "generation"),
    Fault("cache: keys for values", f"{_GENERATE}.KeyValueCache.extend",
          "values[:, :, self.length : stop] = value", "values[:, :, self.length : stop] = key", "generation"),
    Fault("cache: position of the new token lost", f"{_MODEL}.GPT.stream_forward",
          "kv_cache.length if kv_cache is not None else 0", "0", "generation"),
    Fault("window one token short", "contract.decoding._decode",
          "tokens[-context_length:]", "tokens[1 - context_length :]", "generation"),
    Fault("logits of the first token", f"{_GENERATE}.next_token_logits", "x[0, -1]", "x[0, 0]", "generation"),
    Fault("draw of another position", "contract.decoding._decode",
          "position=len(tokens)", "position=len(tokens) - 1", "generation"),
    Fault("draw of another sequence", f"{_GENERATE}.generate", "seed, sequence)", "seed, 0)", "generation"),
    Fault("top-k forgotten", f"{_GENERATE}.generate", "temperature, top_k,", "temperature, None,", "generation"),
]

TWIN_FAULTS = [
    Fault("twin: fused attention not causal", "torch_llm.attention.Attention.forward",
          "is_causal=T > 1", "is_causal=False"),
    Fault("twin: mask sees one token of the future", "torch_llm.attention.causal_mask", "1 + S - T", "2 + S - T"),
    Fault("twin: 1/√D forgotten where written out", "torch_llm.attention.attend",
          "config.head_size**-0.5", "1.0"),
    Fault("twin: values half cut from the graph", "torch_llm.attention.weighted_sum",
          "probabilities @ value", "probabilities @ ((value + value.detach()) / 2)"),
    Fault("twin: erf for tanh", "torch_llm.feed_forward.gelu_tanh", '"tanh"', '"none"'),
    Fault("twin: norm_eps ignored", "torch_llm.norms.layer_norm",
          ".shape, weight, bias, eps)", ".shape, weight, bias)"),
    Fault("twin: dropout of PyTorch's own draws", "torch_llm.layers.dropout",
          "x * _dropout_mask_like(x, rate, key, site)", "F.dropout(x, rate)"),
    Fault("twin: decay of biases and norms", "torch_llm.adam.Adam.__init__",
          '"weight_decay": 0.0', '"weight_decay": weight_decay', "adamw"),
    Fault("twin: clipped by norm + 1e-6", "torch_llm.adam.clip_gradients",
          "max_norm / norm", "max_norm / (norm + 1e-6)", "adam"),
    Fault("twin: cache: one position short", "torch_llm.generate.next_token_logits",
          "+= len(tokens)", "+= len(tokens) - 1", "generation"),
]
# fmt: on

FAULTS = OPERATION_FAULTS + STEP_FAULTS + PLUMBING_FAULTS + DECODING_FAULTS + TWIN_FAULTS
