"""What people get wrong when they port the model, each made in a copy of the reference or in what it dumps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from parity.faults import Fault


class Port(NamedTuple):
    """A program with a mistake.

    explanation: name of the mistake that a check has to find
    fault: a line of the reference that is wrong; None where the program is right and its dump is not
    tensor, change: what of the dump is changed, and how
    pack: the golden pack that shows it; dtype: what the program computes in
    """

    explanation: str
    fault: Fault | None
    tensor: str = ""
    change: Callable | None = None
    pack: str = "gpt2-tied"
    dtype: str = "float32"


def _code(place: str, old: str, new: str, explanation: str, pack: str = "gpt2-tied") -> Port:
    return Port(explanation, Fault(explanation, f"numpy_llm.{place}", old, new), pack=pack)


def _exact(*arguments) -> Port:
    """A mistake too small for float32 to show."""
    return _code(*arguments)._replace(dtype="float64")


def _dump(tensor: str, change: Callable, explanation: str) -> Port:
    return Port(explanation, None, tensor, change)


# fmt: off
_NORM, _BACK_NORM, _LINEAR = "layers.layer_norm_forward", "layers.layer_norm_backward", "layers.linear_forward"
_BACK_LINEAR, _GELU = "layers.linear_backward", "layers.gelu_forward"
_LOSS, _BACK_LOSS = "layers.cross_entropy_forward", "layers.cross_entropy_backward"
_ATTENTION, _BACK_ATTENTION = "attention.attention_forward", "attention.attention_backward"
_SINUSOIDS, _STEP = "layers.sinusoidal_positions", "adam.Adam._update_piece"
_SINUSOIDAL, _UNTIED = "relu-sinusoidal", "untied-no-bias"
_SQUARE = "weight.shape[0] == weight.shape[1]"
_SPLIT = "qkv.reshape(B, T, 3, config.n_head, config.head_size).transpose(2, 0, 3, 1, 4)"
_MERGE = "heads.swapaxes(1, 2).reshape(B, T, C)"
_MASK = "np.triu(np.full((T, S), -np.inf, np.float32), k=1 + S - T)"
_SUM = "np.add.reduceat(dy.reshape(-1, shape[1])[order], starts, axis=0)"
_JOINED = "linear_backward(dqkv.reshape(B, T, -1), qkv_cache)"
_LOSS_CALL = "loss, loss_cache = cross_entropy_forward(logits, targets)"
_ERF = "np.vectorize(__import__('math').erf)(x * 0.5**0.5)"

FORWARD = [
    _code("layers.embedding_forward", "return weight[tokens]", "return weight[tokens] * weight.shape[1] ** 0.5",
          "embedding_scaled"),
    _code("layers.embedding_forward", "return weight[tokens]", "return weight[tokens - 1]", "embedding_from_one"),
    _code(_SINUSOIDS, "axis=-1", "axis=1", "sinusoids_in_halves", _SINUSOIDAL),
    _code(_SINUSOIDS, "[np.sin(angle), np.cos(angle)]", "[np.cos(angle), np.sin(angle)]", "sinusoids_swapped",
          _SINUSOIDAL),
    _code(_SINUSOIDS, "10000", "1000", "sinusoids_wavelengths", _SINUSOIDAL),
    _code(_SINUSOIDS, "(np.arange(0, d_model, 2) / d_model)", "(np.arange(0, d_model, 2) / (d_model - 2))",
          "sinusoids_wavelengths", _SINUSOIDAL),
    _code("layers.position_forward", "x + table[start :", "x + np.roll(table, -1, axis=0)[start :",
          "position_from_one"),
    _code("layers.position_forward", "x + table[start : start + T]", "x", "position_missing"),
    _code(_NORM, "1 / np.sqrt(_mean_channels(normal, normal) + eps)",
          "1 / (np.sqrt(_mean_channels(normal, normal)) + eps)", "norm_eps_outside", _UNTIED),
    _code(_NORM, " + eps)", " + 1e-6)", "norm_eps_other", _SINUSOIDAL),
    _code(_NORM, "_mean_channels(normal, normal)", "_mean_channels(normal, normal) * x.shape[-1] / (x.shape[-1] - 1)",
          "norm_unbiased"),
    _code(_NORM, "np.sqrt(", "(", "norm_without_root"),
    _code(_NORM, "x - _mean_channels(x)", "x.copy()", "norm_without_mean"),
    _code(_NORM, "normal = x - _mean_channels(x)",
          "_mean_channels = lambda a, b=1: (a * b).mean(axis=1, keepdims=True); normal = x - _mean_channels(x)",
          "norm_over_time"),
    _code(_NORM, "normal * weight", "normal.copy()", "norm_without_weight"),
    _code(_NORM, "y += bias", "pass", "bias_missing"),
    _code(_NORM, "normal * weight", "normal * (1 + weight)", "norm_weight_plus_one"),
    _code("layers.position_forward", "table[start : start + T]", "table[start : start + T][::-1]", "position_reversed"),
    _code("layers.position_forward", "table[start : start + T]", "table[: len(x), None]", "position_by_batch"),
    _code(_ATTENTION, _SPLIT, "qkv.reshape(B, T, config.head_size, 3, config.n_head).transpose(3, 0, 4, 1, 2)",
          "qkv_interleaved"),
    _code(_ATTENTION, _SPLIT, f"{_SPLIT}[:, :, ::-1]", "heads_order"),
    _code(_ATTENTION, "kept @ value", "kept @ value[:, ::-1]", "values_order"),
    _exact("layers", "_GELU_SLOPE = (2 / np.pi) ** 0.5", "_GELU_SLOPE = 0.7978", "gelu_root_digits"),
    _exact("layers", "_GELU_SLOPE = (2 / np.pi) ** 0.5", "_GELU_SLOPE = 0.79788", "gelu_root_digits"),
    _code(_LINEAR, "y += bias", "pass", "bias_missing"),
    _code(_LINEAR, "rows @ weight.T", f"rows @ (weight if {_SQUARE} else weight.T)", "weight_transposed"),
    _code(_LINEAR, "rows @ weight.T", "rows @ weight.reshape(weight.T.shape)", "qkv_transposed"),
    _code(_ATTENTION, "query, key, value = qkv", "key, query, value = qkv", "qkv_order"),
    _code(_ATTENTION, _SPLIT, "qkv.reshape(B, T, config.n_head, 3, config.head_size).transpose(3, 0, 2, 1, 4)",
          "qkv_interleaved"),
    _code(_ATTENTION, _SPLIT, "qkv.reshape(B, T, 3, config.head_size, config.n_head).transpose(2, 0, 4, 1, 3)",
          "heads_interleaved"),
    _code(_ATTENTION, _SPLIT,
          "qkv.reshape(B, T, 3, C).transpose(2, 0, 1, 3).reshape(3, B, config.n_head, T, config.head_size)",
          "heads_split_without_swap"),
    _code(_ATTENTION, "config.head_size**-0.5", "1.0", "scale_missing"),
    _code(_ATTENTION, "config.head_size**-0.5", "config.d_model**-0.5", "scale_other"),
    _code(_ATTENTION, "query @ key.swapaxes(-1, -2)", "key @ query.swapaxes(-1, -2)", "scores_swapped"),
    _code(_ATTENTION, '.scores", scores)', '.scores", np.where(causal_mask(T, T) < 0, -1e9, scores))', "scores_masked"),
    _code(_ATTENTION, "scores += causal_mask(", "causal_mask(", "mask_missing"),
    _code("attention.causal_mask", "k=1 + S - T", "k=2 + S - T", "mask_off_by_one"),
    _code("attention.causal_mask", _MASK, "np.triu(np.full((T, S), -1e9, np.float32), k=0)", "mask_off_by_one"),
    _code("attention.causal_mask", _MASK, "np.tril(np.full((T, S), -np.inf, np.float32), k=-1)", "mask_reversed"),
    _code(_ATTENTION, "scores += causal_mask(T, key.shape[2])", "scores *= causal_mask(T, T) == 0", "mask_of_zero"),
    _code(_ATTENTION, "probabilities, softmax_cache = softmax_forward(scores)",
          "probabilities = softmax_cache = softmax_forward(query @ key.swapaxes(-1, -2) * scale)[0] * np.tri(T, T)",
          "mask_after_softmax"),
    _code("attention.softmax_forward", "y.sum(axis=-1", "y.sum(axis=-2", "softmax_wrong_axis"),
    _code("attention.softmax_forward", "y /= y.sum(axis=-1, keepdims=True)", "pass", "softmax_without_sum"),
    _code(_ATTENTION, "softmax_forward(scores)", "softmax_forward(scores * scale)", "softmax_scaled_again"),
    _code(_ATTENTION, "kept @ value", "kept.swapaxes(-1, -2) @ value", "heads_transposed"),
    _code(_ATTENTION, _MERGE, "heads.reshape(B, T, C)", "merge_without_swap"),
    _code(_ATTENTION, _MERGE, "heads.transpose(0, 2, 3, 1).reshape(B, T, C)", "merge_interleaved"),
    _code("model.block_forward", "y = x + branch", "y = branch", "residual_missing"),
    _code("model.block_forward", "y = x + branch", "y = normed + branch", "residual_of_norm"),
    _code(_GELU, "np.tanh(_GELU_SLOPE * x * (1 + _GELU_CUBIC * x_squared))", _ERF, "gelu_erf"),
    _code(_GELU, "return half_x * (1 + tanh)", "return x / (1 + np.exp(-1.702 * x))", "gelu_sigmoid"),
    _code("layers", "_GELU_CUBIC = 0.044715", "_GELU_CUBIC = 0.44715", "gelu_constants"),
    _code("model", '"gelu_tanh": (gelu_forward, gelu_backward)', '"gelu_tanh": (relu_forward, relu_backward)',
          "activation_other"),
    _code("layers.relu_forward", "np.maximum(x, 0)", "np.maximum(x, 0.01 * x)", "activation_other", _SINUSOIDAL),
    _code(_LOSS, "losses.mean()", "losses.sum()", "loss_sum"),
    _code(_LOSS, "losses.mean()", "losses.sum() / targets.shape[0]", "loss_half_mean"),
    _code(_LOSS, "losses.mean()", "losses.mean() / np.log(2)", "loss_in_bits"),
    _code("model.GPT.forward", "cross_entropy_forward(logits, targets)", "cross_entropy_forward(logits, tokens)",
          "loss_unshifted"),
    _code("model.GPT.forward", _LOSS_CALL,
          f"{_LOSS_CALL}; loss = cross_entropy_forward(logits[:, :-1], targets[:, 1:])[0]", "loss_shifted_twice"),
    _code("model.GPT.forward", _LOSS_CALL,
          f"{_LOSS_CALL}; loss = cross_entropy_forward(logits[:, -1:], targets[:, -1:])[0]", "loss_of_last"),
]

BACKWARD = [
    _code(_BACK_LOSS, "dloss / columns.size", "dloss", "dloss_of_sum"),
    _code(_BACK_LOSS, "dloss / columns.size", "dloss / probabilities.shape[1]", "dloss_half_mean"),
    _code(_BACK_LOSS, "-= scale", "-= 0", "dloss_without_target"),
    _code(_BACK_LOSS, "-= scale", "-= dloss", "dloss_target_undivided"),
    _code(_BACK_LOSS, "np.arange(columns.size), columns]",
          "np.arange(columns.size), np.roll(columns.reshape(len(dlogits), -1), 1, axis=1).ravel()]", "dloss_shifted"),
    _code(_BACK_LINEAR, "drows @ weight", "drows @ weight.reshape(weight.T.shape).T", "dlinear_transposed"),
    _code(_BACK_LINEAR, "drows @ weight", f"drows @ (weight.T if {_SQUARE} else weight)", "doutput_transposed"),
    _code(_BACK_LINEAR, "drows.T @ rows", "(rows.T @ drows).reshape(weight.shape)", "dweight_transposed"),
    _code(_BACK_LINEAR, "drows.T @ rows", "drows[-dy.shape[1] :].T @ rows[-dy.shape[1] :]", "dweight_of_last"),
    _code(_BACK_LINEAR, "_sum_rows(drows)", "drows.mean(axis=0)", "dbias_mean"),
    _code(_BACK_NORM, "dx -= _mean_channels(dx)", "pass", "dnorm_without_mean"),
    _code(_BACK_NORM, "dx -= through_deviation", "pass", "dnorm_without_variance"),
    _code(_BACK_NORM, "dx *= inverse_deviation", "dx = dy * weight * inverse_deviation", "dnorm_without_both"),
    _code(_BACK_NORM, "dx -= through_deviation", "dx += through_deviation", "dnorm_variance_sign"),
    _code(_BACK_NORM, "dx = dy * weight", "dx = dy.copy()", "dnorm_without_weight"),
    _code(_BACK_NORM, "dx *= inverse_deviation", "pass", "dnorm_without_deviation"),
    _code(_BACK_NORM, "dx *= inverse_deviation",
          "dx = (dy - _mean_channels(dy) - normal * _mean_channels(dy, normal)) * inverse_deviation * weight",
          "dnorm_weight_last"),
    _code(_BACK_NORM, "dx -= through_deviation", "dx -= through_deviation * C / (C - 1)", "dnorm_unbiased"),
    _code("model.block_backward", "dx += dstream", "dx += dy", "dresidual_other"),
    _code("model.block_backward", "dx += dstream", "dx += dnormed", "dresidual_other"),
    _code("model.block_backward", "dx += dy", "pass", "dresidual_missing"),
    _code("model.block_backward", "dx += dy", "dx = dy.copy()", "dbranch_missing"),
    _code(_BACK_NORM, ", normal.reshape(-1, C)", ", (normal / inverse_deviation).reshape(-1, C)",
          "dnorm_weight_unnormalised"),
    _code(_GELU, "(1 - tanh * tanh)", "0", "dgelu_without_slope"),
    _code(_GELU, "3 * _GELU_CUBIC", "_GELU_CUBIC", "dgelu_without_three"),
    _code(_GELU, "0.5 * (1 + tanh) + half_x * (1 - tanh * tanh) * du",
          f"0.5 * (1 + {_ERF}) + x * np.exp(-x_squared / 2) / (2 * np.pi) ** 0.5", "dgelu_erf"),
    _code("layers.gelu_backward", "dy * cache", "dy.copy()", "dactivation_other"),
    _code("layers.relu_backward", "dy * (cache > 0)", "dy * cache", "dactivation_other", _SINUSOIDAL),
    _code(_GELU, "(1 - tanh * tanh)", "(1 - tanh)", "dgelu_unsquared"),
    _code("attention.softmax_backward", 'np.einsum("...s,...s->...", dy, y)[..., None]', "0", "dsoftmax_diagonal"),
    _code("attention.softmax_backward", 'np.einsum("...s,...s->...", dy, y)[..., None]',
          "(dy * y).sum(axis=-2, keepdims=True)", "dsoftmax_axis"),
    _code("attention.softmax_backward", 'np.einsum("...s,...s->...", dy, y)[..., None]',
          "dy.sum(axis=-1, keepdims=True)", "dsoftmax_plain_sum"),
    _code(_BACK_ATTENTION, '.scores", dscores)', '.scores", dscores * scale)', "dsoftmax_scaled"),
    _code("attention.softmax_backward", "dx *= y", "pass", "dsoftmax_without_p"),
    _code(_BACK_ATTENTION, "dscores *= scale", "pass", "dscores_without_scale"),
    _code(_BACK_ATTENTION, "dscores.swapaxes(-1, -2), query", "dscores, query", "dscores_transposed"),
    _code(_BACK_ATTENTION, "np.matmul(dscores, key,", "np.matmul(dscores, query,", "dscores_other_factor"),
    _code(_BACK_ATTENTION, "kept.swapaxes(-1, -2), dheads", "kept, dheads", "dvalue_transposed"),
    _code(_BACK_ATTENTION, "dquery, dkey, dvalue = dqkv", "dkey, dquery, dvalue = dqkv", "djoin_order"),
    _code(_BACK_ATTENTION, "linear_backward(dqkv", "linear_backward((dqkv * np.eye(3)[0, :, None, None])",
          "djoin_part"),
    _code(_BACK_ATTENTION, _JOINED,
          "linear_backward(np.concatenate([d.reshape(B, T, -1) for d in (dquery, dkey, dvalue)], axis=-1), qkv_cache)",
          "djoin_without_swap"),
    _code(_BACK_ATTENTION, "linear_backward(dy, output_cache)",
          "linear_backward(dy, ((kept @ value).reshape(B * T, -1), *output_cache[1:]))", "doutput_weight_merge"),
    _code(_BACK_LINEAR, "drows.T @ rows", f"(rows.T @ drows if {_SQUARE} else drows.T @ rows)",
          "doutput_weight_transposed"),
    _code("layers.embedding_backward", _SUM, "dy.reshape(-1, shape[1])[order][starts]", "dtable_overwritten"),
    _code("layers.embedding_backward", _SUM, "dy.reshape(-1, shape[1])[order][starts]", "dtable_overwritten", _UNTIED),
    _code("layers.embedding_backward", _SUM, f"{_SUM} / np.diff(starts, append=len(order))[:, None]", "dtable_mean"),
    _code("model.GPT.backward", "_add(gradients, {self.output_name: doutput}, turn)", "pass", "dtied_once"),
    _code("model.GPT.backward", "return gradients",
          'gradients["token_embedding.weight"][...] /= 2; return gradients', "dtied_mean"),
    _code("layers.position_backward", "sum(axis=0)", "mean(axis=0)", "dposition_mean"),
    _code("layers.position_backward", "dy.sum(axis=0)", "dy[-1]", "dposition_of_last"),
]

ADAMW = [
    _code("adam.clip_gradients", "norm > max_norm", "False", "clip_missing"),
    _code("adam.clip_gradients", "norm > max_norm", "True", "clip_always"),
    _exact("adam.clip_gradients", "max_norm / norm", "min(1, max_norm / (norm + 1e-6))", "clip_eps"),
    _code(_STEP, "np.sqrt(v)",
          "np.sqrt(np.maximum(v, self.__dict__.setdefault('top', 0 * self.v)[piece], out=self.top[piece]))", "amsgrad"),
    _code("adam.clip_gradients", "gradients.flat *= max_norm / norm",
          "[np.multiply(g, min(1, max_norm / np.linalg.norm(g)), out=g) for g in gradients.values()]", "clip_each"),
    _code("adam.clip_gradients", "gradients.flat *= max_norm / norm",
          "np.clip(gradients.flat, -max_norm, max_norm, out=gradients.flat)", "clip_values", _SINUSOIDAL),
    _code("adam.AdamW", "decoupled = True", "decoupled = False", "decay_coupled"),
    _code(_STEP, "v *= self.beta2", "v *= self.beta1", "betas_swapped"),
    _code(_STEP, "(1 - self.beta1) * g", "g", "betas_swapped"),
    _code(_STEP, "(g * g)", "np.abs(g)", "square_missing"),
    _code(_STEP, "m *= self.beta1", "m *= 0", "moment_forgotten"),
    _code(_STEP, "m += (1 - self.beta1) * g", "m += (1 - self.beta1) * g; m /= 1 - self.beta1**self.step",
          "moment_corrected"),
    _code("adam.gradient_norm", "flat = gradients.flat",
          "return float(sum(np.linalg.norm(g) for g in gradients.values()))", "norm_of_norms"),
    _code("adam.gradient_norm", "float(np.sqrt(", "float((", "norm_squared"),
    _code("adam.clip_gradients", "return norm", "return min(norm, max_norm)", "norm_after_clipping"),
    _code("adam.Adam.update", "size, 0.0)", "size, self.weight_decay)", "decay_on_vectors"),
    _code(_STEP, "weight *= 1 - learning_rate * decay", "pass", "decay_missing"),
    _code(_STEP, "1 - learning_rate * decay", "1 - decay", "decay_without_rate"),
    _code(_STEP, "weight -= denominator", "weight -= denominator * (1 - learning_rate * decay)", "decay_after_step"),
    _code(_STEP, "denominator += self.eps", "denominator = np.sqrt(denominator**2 + self.eps)", "eps_inside"),
    _code(_STEP, "np.sqrt(v)", "np.sqrt(v + self.eps)", "eps_inside"),
    _code(_STEP, "+= self.eps", "+= self.eps / (1 - self.beta2**self.step) ** 0.5", "eps_before_correction"),
    _code(_STEP, "+= self.eps", "+= 1e-8", "eps_other"),
    _code(_STEP, " / (1 - self.beta1**self.step)", "", "correction_missing"),
    _code(_STEP, "self.beta1**self.step", "self.beta1**(self.step + 1)", "correction_off_by_one"),
    _code(_STEP, "weight -= denominator", "weight += denominator", "step_uphill"),
    _code(_STEP, "np.sqrt(v)", "v.copy()", "square_without_root"),
    _code(_STEP, "weight -= denominator",
          "m, v = (m - (1 - self.beta1) * g) / self.beta1, abs(v - (1 - self.beta2) * g * g) / self.beta2; "
          "denominator = np.sqrt(v / (1 - self.beta2**self.step)) + self.eps; "
          "weight -= learning_rate / (1 - self.beta1**self.step) * m / denominator", "moments_stale"),
    _code("adam.Adam.update", "self.step += 1",
          "self.step += 1; learning_rate = 0.02 * min((self.step + 1) / 3, 3 / (self.step + 1))", "rate_shifted"),
]

_HEADS, _WEIGHT = "gradient.blocks.0.attention.heads", "blocks.0.attention.query_key_value.weight"
ANYWHERE = [
    _dump("gradient.logits", lambda x: -x, "sign"),
    _dump("gradient.final_norm", np.zeros_like, "zeros"),
    _dump("gradient.final_norm.weight", lambda x: 2 * x, "twice"),
    _dump("gradient.final_norm.bias", lambda x: x / 2, "half"),
    _dump(_HEADS, lambda x: x * 3, "factor_batch"),
    _dump(_HEADS, lambda x: x / 5, "factor_time"),
    _dump(_HEADS, lambda x: x * 15, "factor_tokens"),
    _dump(_HEADS, lambda x: x * 3**0.5, "factor_root_head"),
    _dump(_HEADS, lambda x: x * 0.7, "constant_factor"),
    _dump(_WEIGHT, np.transpose, "transposed"),
    _dump(_WEIGHT, lambda x: x.T.reshape(x.shape), "column_major"),
    _dump("blocks.0.norm_1", lambda x: x.swapaxes(0, 1), "time_first"),
    _dump("blocks.0.attention.heads", lambda x: x.swapaxes(1, 2), "heads_last"),
    _dump("final_norm", lambda x: np.roll(x, 1, axis=1), "shifted"),
    _dump("final_norm", lambda x: x.reshape(15, 6), "flattened"),
]
# fmt: on

WRONG_PORTS = FORWARD + BACKWARD + ADAMW + ANYWHERE
