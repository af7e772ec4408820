"""What students hand in, right and wrong: for each exercise an answer, and edits that make a known mistake of it.

The answers are written as a student would, apart from the project's own functions, to which grading holds them.
"""

from textwrap import indent
from typing import NamedTuple

from learn.exercises.start import BLANK, starter


class Slip(NamedTuple):
    """An edit of the right answer and what grading must say to it.

    old, new: the piece of the answer that changes; output: whose mark goes; hint: words of its hint
    """

    exercise: str
    old: str
    new: str
    output: str
    hint: str


ANSWERS = {
    "relu": "return dy * (y > 0)",
    "linear": """
drows = dy.reshape(-1, dy.shape[-1])
dx = dy @ weight
dweight = drows.T @ rows
dbias = drows.sum(axis=0)
return dx, dweight, dbias
""",
    "embedding": """
dweight = np.zeros(shape)
np.add.at(dweight, tokens, dy)
return dweight
""",
    "position": """
dtable = np.zeros(shape)
dtable[start : start + T] = dy.sum(axis=0)
return dy, dtable
""",
    "residual": """
dx = dy + dy @ weight
dweight = (dy.reshape(len(rows), -1).T @ rows)
return dx, dweight, dy.sum(axis=(0, 1))
""",
    "softmax": "return y * (dy - (dy * y).sum(axis=-1, keepdims=True))",
    "cross-entropy": """
N, V = targets.size, probabilities.shape[-1]
dlogits = probabilities.reshape(N, V).copy()
dlogits[np.arange(N), targets.reshape(-1)] -= 1
return (dlogits * dloss / N).reshape(probabilities.shape)
""",
    "gelu": """
du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
first = 0.5 * (1 + tanh)
second = x / 2 * (1 - tanh**2) * du
return dy * (first + second)
""",
    "layer-norm": """
dnormal = dy * weight
mean = dnormal.mean(axis=-1, keepdims=True)
deviation = normal * (dnormal * normal).mean(axis=-1, keepdims=True)
dx = inverse_deviation * (dnormal - mean - deviation)
return dx, (dy * normal).sum(axis=(0, 1)), dy.sum(axis=(0, 1))
""",
    "rms-norm": """
dnormal = dy * weight
through = normal * (dnormal * normal).mean(axis=-1, keepdims=True)
return (dnormal - through) * inverse_rms, (dy * normal).sum(axis=(0, 1))
""",
    "split-heads": "return dy.transpose(1, 3, 0, 2, 4).reshape(B, T, -1)",
    "merge-heads": "B, H, T, D = shape\nreturn dy.reshape(B, T, H, D).swapaxes(1, 2)",
    "scores": """
scale = 1 / np.sqrt(query.shape[-1])
dscores = softmax_backward(dy, softmax_cache)
dscores = dscores * scale
return dscores @ key, dscores.swapaxes(-1, -2) @ query
""",
    "tied-output": """
dhidden, output, _ = linear_backward(dy, output_cache)
dx, dmix, _ = linear_backward(dhidden, mix_cache)
tokens, shape = lookup_cache
lookup = np.zeros(shape)
np.add.at(lookup, tokens, dx)
return lookup + output, dmix
""",
    "adam": """
m = beta1 * m + (1 - beta1) * gradient
v = beta2 * v + (1 - beta2) * gradient**2
first, second = m / (1 - beta1**step), v / (1 - beta2**step)
decay = learning_rate * weight_decay * weight
return weight - decay - learning_rate * first / (np.sqrt(second) + eps), m, v
""",
    "attention": """
B, H, T, D = query.shape
dmerged, doutput_weight, doutput_bias = linear_backward(dy, output_cache)
dheads = dmerged.reshape(B, T, H, D).swapaxes(1, 2)
dprobabilities = dheads @ value.swapaxes(-1, -2)
dvalue = probabilities.swapaxes(-1, -2) @ dheads
dscores = softmax_backward(dprobabilities, softmax_cache)
dscores = dscores / np.sqrt(D)
dquery = dscores @ key
dkey = dscores.swapaxes(-1, -2) @ query
dqkv = np.stack([dquery, dkey, dvalue]).transpose(1, 3, 0, 2, 4).reshape(B, T, -1)
dx, dqkv_weight, dqkv_bias = linear_backward(dqkv, qkv_cache)
return dx, {
    "query_key_value.weight": dqkv_weight,
    "query_key_value.bias": dqkv_bias,
    "output.weight": doutput_weight,
    "output.bias": doutput_bias,
}
""",
    "attention-in-blocks": """
T, D = query.shape
y, log_totals = np.empty((T, D)), np.empty(T)
for start in range(0, T, rows):
    stop = min(start + rows, T)
    m, total, gathered = -np.inf, 0, 0
    for at in range(0, stop, columns):
        keys = np.arange(at, min(at + columns, stop))
        scores = query[start:stop] @ key[keys].T / np.sqrt(D)
        scores[np.arange(start, stop)[:, None] < keys] = -np.inf
        new = np.maximum(m, scores.max(axis=1, keepdims=True))
        weights, kept = np.exp(scores - new), np.exp(m - new)
        total = total * kept + weights.sum(axis=1, keepdims=True)
        gathered = gathered * kept + weights @ value[keys]
        m = new
    y[start:stop] = gathered / total
    log_totals[start:stop] = (m + np.log(total))[:, 0]
return y, (query, key, value, y, log_totals, rows, columns)
---
T, D = query.shape
dquery, dkey, dvalue = np.zeros((3, T, D))
delta = (dy * y).sum(axis=1, keepdims=True)
for start in range(0, T, rows):
    stop = min(start + rows, T)
    dhead = dy[start:stop]
    for at in range(0, stop, columns):
        keys = np.arange(at, min(at + columns, stop))
        scores = query[start:stop] @ key[keys].T / np.sqrt(D)
        scores[np.arange(start, stop)[:, None] < keys] = -np.inf
        p = np.exp(scores - log_totals[start:stop, None])
        dp = dhead @ value[keys].T
        dscores = p * (dp - delta[start:stop]) / np.sqrt(D)
        dquery[start:stop] += dscores @ key[keys]
        dkey[keys] += dscores.T @ query[start:stop]
        dvalue[keys] += p.T @ dhead
return dquery, dkey, dvalue
""",
    "block": """
gradients = {}
dactive, gradients["feed_forward.down.weight"], gradients["feed_forward.down.bias"] = linear_backward(dy, down_cache)
dhidden = gelu_tanh_backward(dactive, gelu_cache)
dnormed, gradients["feed_forward.up.weight"], gradients["feed_forward.up.bias"] = linear_backward(dhidden, up_cache)
dmiddle, gradients["norm_2.weight"], gradients["norm_2.bias"] = layer_norm_backward(dnormed, norm_2_cache)
dmiddle = dmiddle + dy
dnormed, attention_gradients = attention.attention_backward(dmiddle, attention_cache)
dx, gradients["norm_1.weight"], gradients["norm_1.bias"] = layer_norm_backward(dnormed, norm_1_cache)
dx = dx + dmiddle
return dx, gradients | attention_gradients
""",
    "dropout": "return dy * kept / (1 - rate)",
    "soft-cap": "return dy * (1 - tanh**2)",
    "rotary": """
first, second = np.split(dy, 2, axis=-1)
return np.concatenate([first * cosine + second * sine, second * cosine - first * sine], axis=-1)
""",
    "qk-norm": """
first, second = np.split(dy, 2, axis=-1)
dnormed = np.concatenate([first * cosine + second * sine, second * cosine - first * sine], axis=-1)
dnormal = dnormed * weight
through = normal * (dnormal * normal).mean(axis=-1, keepdims=True)
return (dnormal - through) * inverse_rms, (dnormed * normal).sum(axis=(0, 1, 2))
""",
    "swiglu": """
dgated, ddown, _ = linear_backward(dy, down_cache)
dactive, db = dgated * b, dgated * a * sigmoid
da = dactive * (sigmoid + a * sigmoid * (1 - sigmoid))
dx_gate, dgate, _ = linear_backward(da, gate_cache)
dx_up, dup, _ = linear_backward(db, up_cache)
return dx_gate + dx_up, dgate, dup, ddown
""",
    "grouped-queries": """
B, H, T, D = query.shape
dprobabilities = dy @ values.swapaxes(-1, -2)
dvalues = probabilities.swapaxes(-1, -2) @ dy
dscores = softmax_backward(dprobabilities, softmax_cache) / np.sqrt(D)
dquery = dscores @ keys
dkeys = dscores.swapaxes(-1, -2) @ query
dkey = dkeys.reshape(B, -1, group, T, D).sum(axis=2)
dvalue = dvalues.reshape(B, -1, group, T, D).sum(axis=2)
return dquery, dkey, dvalue
""",
    "gradient-clipping": """
norm = np.sqrt((first**2).sum() + (second**2).sum())
factor = min(1, max_norm / norm)
return first * factor, second * factor, norm
""",
    "accumulation": """
total = 0
for mean, count in zip(gradients, tokens):
    total = total + count * mean
return total / tokens.sum()
""",
    "key-value-cache": """
P, T, D = past_key.shape[2], query.shape[2], query.shape[3]
angle = (P + np.arange(T))[:, None] * theta ** (-np.arange(0, D, 2) / D)
cosine, sine = np.cos(angle), np.sin(angle)
turned = []
for x in (query, key):
    first, second = np.split(x, 2, axis=-1)
    turned.append(np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1))
query, key = turned
keys, values = np.concatenate([past_key, key], axis=2), np.concatenate([past_value, value], axis=2)
scores = query @ keys.swapaxes(-1, -2) / np.sqrt(D)
scores = scores + np.triu(np.full((T, P + T), -np.inf), k=P + 1)
weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
return weights / weights.sum(axis=-1, keepdims=True) @ values, keys, values
""",
    "modern-block": """
gate_cache, silu_cache, active, up, up_cache, down_cache = feed_forward_caches
gradients, own = {}, "feed_forward."
dgated, gradients[own + "down.weight"], _ = linear_backward(dy, down_cache)
dgate = silu_backward(dgated * up, silu_cache)
dnormed, gradients[own + "gate.weight"], _ = linear_backward(dgate, gate_cache)
dnormed_up, gradients[own + "up.weight"], _ = linear_backward(dgated * active, up_cache)
dnormed = dnormed + dnormed_up
dmiddle, gradients["norm_2.weight"] = rms_norm_backward(dnormed, norm_2_cache)
dmiddle = dmiddle + dy
dnormed, attention_gradients = attention.attention_backward(dmiddle, attention_cache)
dx, gradients["norm_1.weight"] = rms_norm_backward(dnormed, norm_1_cache)
dx = dx + dmiddle
return dx, gradients | {name: each for name, each in attention_gradients.items() if each is not None}
""",
}

# fmt: off
SLIPS = [
    Slip("relu", "y > 0", "dy > 0", "dx", "the gate is open where x was positive"),
    Slip("relu", "dy * (y > 0)", "(y > 0) * 1.0", "dx", "this is the slope alone"),
    Slip("relu", "(y > 0)", "y", "dx", "is 1 where x > 0, not x"),
    Slip("relu", "y > 0", "y == 0", "dx", "upside down"),
    Slip("relu", "dy * (y > 0)", "dy", "dx", "nothing comes back"),
    Slip("relu", "return dy", "return -dy", "dx", "the sign is wrong"),
    Slip("relu", "dy * (y > 0)", "dy * 0", "dx", "all zeros"),
    Slip("relu", "dy * (y > 0)", "(dy * (y > 0)).astype(np.float32)", "dx", "float32"),
    Slip("relu", "dy * (y > 0)", "(dy * (y > 0)).sum(axis=-1)", "dx", "a gradient has the shape of"),
    Slip("linear", "dy.reshape(-1, dy.shape[-1])", "np.tanh(dy.reshape(-1, dy.shape[-1]))", "dweight", "largest error"),
    Slip("linear", "drows.T @ rows", "rows.T @ drows", "dweight", "transposed, otherwise right"),
    Slip("linear", "drows.T @ rows", "drows.T @ rows / len(rows)", "dweight", "factor of 1/(B·T)"),
    Slip("linear", "drows.sum(axis=0)", "drows.mean(axis=0)", "dbias", "factor of 1/(B·T)"),
    Slip("linear", "drows.sum(axis=0)", "dy.mean(axis=0).sum(axis=0)", "dbias", "factor of 1/B: a mean and a sum"),
    Slip("linear", "drows.sum(axis=0)", "dy.sum(axis=0)", "dbias", "not summed over the leading axis; summed, it"),
    Slip("linear", "drows.sum(axis=0)", "dy", "dbias", "not summed over the leading 2 axes"),
    Slip("linear", "sum(axis=0)", "sum(axis=0, keepdims=True)", "dbias", "an axis of length 1 too many"),
    Slip("linear", "drows.T @ rows", "dy[0].T @ rows[: dy.shape[1]]", "dweight", "only the first or the last sequence"),
    Slip("linear", "drows.sum(axis=0)", "np.ones(drows.shape[1])", "dbias", "multiply by dy"),
    Slip("linear", "dx = dy @ weight", "dx = rows @ (weight.T @ weight)", "dx", "a reshape at the end is missing"),
    Slip("embedding", "np.add.at(dweight, tokens, dy)", "dweight[tokens] = dy", "dweight", "overwrites"),
    Slip("embedding", "np.add.at(dweight, tokens, dy)", "dweight[tokens] += dy", "dweight", "np.add.at"),
    Slip("embedding", "np.add.at(dweight, tokens, dy)", "for b in range(len(tokens)):\n    dweight[tokens[b]] += dy[b]",
         "dweight", "within its sequence counts once"),
    Slip("embedding", "np.zeros(shape)", "np.ones(shape)", "dweight", "every number is off by 1, all"),
    Slip("embedding", "return dweight",
         "return dweight / np.maximum(np.bincount(tokens.ravel(), minlength=len(dweight)), 1)[:, None]",
         "dweight", "take the sum"),
    Slip("position", "dtable[start : start + T]", "dtable[:T]", "dtable", "begin at row 0"),
    Slip("position", "dtable[start : start + T]", "dtable[start + 1 : start + 1 + T]", "dtable", "shifted by 1 along"),
    Slip("position", "return dy,", "return np.ones_like(dy),", "dx", "a factor dy is missing"),
    Slip("position", "dy.sum(axis=0)", "dy.mean(axis=0)", "dtable", "factor of 1/B"),
    Slip("position", "dtable[start : start + T] = dy.sum(axis=0)",
         "for each in dy:\n    dtable[start : start + T] = each", "dtable", "only the last sequence"),
    Slip("position", "return dy, dtable", "return dy, dtable[start : start + T]", "dtable", "a gradient has the shape"),
    Slip("residual", "dy + dy @ weight", "dy @ weight", "dx", "the shortcut, x itself, is missing"),
    Slip("residual", "dy + dy @ weight", "dy", "dx", "the path through the branch is missing"),
    Slip("residual", "dy + dy @ weight", "dy - dy @ weight", "dx", "the path through the branch has the wrong sign"),
    Slip("residual", "dy + dy @ weight", "2 * dy + dy @ weight", "dx", "x itself, counts 2 times instead of once"),
    Slip("residual", "dy + dy @ weight", "dy + dy @ weight.T", "dx", "weight is transposed on the way back"),
    Slip("residual", "@ rows)", "@ rows).T", "dweight", "transposed, all else is right"),
    Slip("softmax", "dy - (dy * y).sum(axis=-1, keepdims=True)", "dy * (1 - y)", "dx", "its own probability alone"),
    Slip("softmax", "(dy * y).sum(axis=-1, keepdims=True)", "(dy * y).sum()", "dx", "each row has its own sum"),
    Slip("softmax", "axis=-1", "axis=0", "dx", "softmax runs along the last one"),
    Slip("softmax", "return y *", "return", "dx", "a factor y is missing"),
    Slip("softmax", "return y *", "return y * y *", "dx", "a factor y is too much"),
    Slip("softmax", "(dy * y).sum", "dy.sum", "dx", "weighted by its y[i]"),
    Slip("softmax", "dy - (dy * y).sum(axis=-1, keepdims=True)", "dy", "dx", "the path through the sum is missing"),
    Slip("softmax", "dy - (dy", "dy + (dy", "dx", "the path through the sum has the wrong sign"),
    Slip("cross-entropy", "* dloss / N", "* dloss", "dlogits", "factor of B·T"),
    Slip("cross-entropy", "* dloss / N", "/ N", "dlogits", "factor of 1/dloss"),
    Slip("cross-entropy", "* dloss / N", "* dloss / targets.shape[0]", "dlogits", "factor of T"),
    Slip("cross-entropy", "-= 1", "-= 0", "dlogits", "the path through logits[target], is missing"),
    Slip("cross-entropy", "-= 1", "+= 1", "dlogits", "the path through logits[target], has the wrong sign"),
    Slip("cross-entropy", "[np.arange(N), targets.reshape(-1)]", "[:, targets.reshape(-1)]", "dlogits",
         "at its own target alone"),
    Slip("cross-entropy", "return (dlogits * dloss / N)", "onehot = probabilities.reshape(N, V) - dlogits\n"
         "return (probabilities.reshape(N, V) * dloss / N - onehot)", "dlogits", "they scale the whole"),
    Slip("cross-entropy", "* dloss / N", "* dloss / V", "dlogits", "factor of B·T/V"),
    Slip("cross-entropy", "dloss / N", "dloss / 7", "dlogits", "a wrong size, or one written as a number"),
    Slip("gelu", "3 * 0.044715", "0.044715", "dx", "the 3 of the cube"),
    Slip("gelu", " * du", "", "dx", "du/dx is missing"),
    Slip("gelu", " * (1 + 3 * 0.044715 * x**2)", "", "dx", "lacks the cubic term"),
    Slip("gelu", "1 - tanh**2", "1 - tanh", "dx", "with a square"),
    Slip("gelu", "first + second", "first", "dx", "the path through tanh(u) is missing"),
    Slip("gelu", "first + second", "second", "dx", "the path through the factor x/2 is missing"),
    Slip("gelu", "x / 2 *", "x *", "dx", "the path through tanh(u) counts 2 times instead of once"),
    Slip("gelu", "dy * (first + second)", "first + second", "dx", "a factor dy is missing"),
    Slip("gelu", "return dy * (first + second)",
         "from math import erf\ncdf = np.vectorize(erf)(x / 2**0.5) / 2 + 0.5\n"
         "return dy * (cdf + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))", "dx", "exact GELU with erf"),
    Slip("gelu", "np.sqrt(2 / np.pi)", "0.7978846", "dx", "float32"),
    Slip("layer-norm", "dnormal - mean - deviation", "dnormal - deviation", "dx",
         "right shape; your error is constant along the last axis: the path through the mean is missing"),
    Slip("layer-norm", "dnormal - mean - deviation", "dnormal - mean", "dx", "path through the deviation is missing"),
    Slip("layer-norm", "dnormal - mean - deviation", "dnormal", "dx",
         "the path through the mean is missing and the path through the deviation is missing"),
    Slip("layer-norm", "dnormal - mean", "dnormal + mean", "dx", "the path through the mean has the wrong sign"),
    Slip("layer-norm", "inverse_deviation * (", "(", "dx", "the factor inverse_deviation is left out"),
    Slip("layer-norm", "dnormal = dy * weight", "dnormal = dy", "dx", "weight is left out"),
    Slip("layer-norm", "dnormal = dy * weight", "dnormal, inverse_deviation = dy, inverse_deviation * weight", "dx",
         "weight is multiplied last"),
    Slip("layer-norm", "(dnormal - mean", "(dy - mean", "dx", "the value itself takes dy where dnormal is meant"),
    Slip("layer-norm", "dnormal.mean", "dy.mean", "dx", "the path through the mean takes dy where dnormal"),
    Slip("layer-norm", "(dnormal * normal)", "(dy * normal)", "dx", "the path through the deviation takes dy where"),
    Slip("layer-norm", "dnormal - mean - deviation",
         "dnormal - dy.mean(axis=-1, keepdims=True) - normal * (dy * normal).mean(axis=-1, keepdims=True)", "dx",
         "the path through the mean and the path through the deviation take dy where"),
    Slip("layer-norm", "(dnormal - mean", "(dy - dy.mean(axis=-1, keepdims=True)", "dx",
         "the value itself and the path through the mean take dy where"),
    Slip("layer-norm", "dnormal - mean - deviation",
         "dy - mean - normal * (dy * normal).mean(axis=-1, keepdims=True)", "dx",
         "the value itself and the path through the deviation take dy where"),
    Slip("layer-norm", "dnormal.mean(axis=-1, keepdims=True)", "dnormal.sum(axis=-1, keepdims=True)", "dx",
         "the path through the mean counts C times instead of once"),
    Slip("layer-norm", ".mean(axis=-1", ".sum(axis=-1", "dx", "a sum over the channels"),
    Slip("layer-norm", ".mean(axis=-1, keepdims=True)", ".mean()", "dx", "or the whole array"),
    Slip("layer-norm", "axis=-1", "axis=0", "dx", "your means run over the batch"),
    Slip("layer-norm", "inverse_deviation * (", "inverse_deviation**2 * (", "dx", "counts twice"),
    Slip("layer-norm", "normal * (dnormal * normal)", "(dnormal * normal)", "dx", "is multiplied by normal once more"),
    Slip("layer-norm", ", dy.sum", ", dnormal.sum", "dbias", "a factor weight is too much"),
    Slip("layer-norm", "return dx, (dy * normal).sum(axis=(0, 1)), dy.sum(axis=(0, 1))",
         "return dx, dy.sum(axis=(0, 1)), (dy * normal).sum(axis=(0, 1))", "dweight", "this is dbias, not dweight"),
    Slip("layer-norm", "(dy * normal).sum", "(dy * (normal / inverse_deviation)).sum", "dweight",
         "divided by the deviation too"),
    Slip("layer-norm", "(dy * normal).sum(axis=(0, 1))", "dy * normal", "dweight", "not summed over the leading 2"),
    Slip("rms-norm", "dnormal = dy * weight", "dnormal = dy", "dx", "weight is left out"),
    Slip("rms-norm", "dnormal - through", "dnormal", "dx", "the path through the root mean square is missing"),
    Slip("rms-norm", "through = normal * (dnormal", "through = (dnormal", "dx", "is multiplied by normal once more"),
    Slip("split-heads", "dy.transpose(1, 3, 0, 2, 4).reshape", "dy.reshape", "dqkv", "without transposing back"),
    Slip("split-heads", "1, 3, 0, 2, 4", "1, 3, 2, 0, 4", "dqkv", "query, key and value are the outer axis"),
    Slip("split-heads", "1, 3, 0, 2, 4", "2, 0, 3, 1, 4", "dqkv", "needs its inverse"),
    Slip("split-heads", "1, 3, 0, 2, 4", "1, 3, 0, 4, 2", "dqkv", "right numbers in the wrong places"),
    Slip("merge-heads", "reshape(B, T, H, D).swapaxes(1, 2)", "reshape(B, H, T, D)", "dheads", "cuts the tokens"),
    Slip("merge-heads", "reshape(B, T, H, D).swapaxes(1, 2)", "reshape(B, T, D, H).transpose(0, 3, 1, 2)", "dheads",
         "they are (H, D)"),
    Slip("merge-heads", ".swapaxes(1, 2)", "", "dheads", "the axes are in another order"),
    Slip("scores", "dscores * scale", "dscores", "dquery", "the factor 1/√D is left out"),
    Slip("scores", "dscores * scale", "dscores * scale**2", "dkey", "the factor 1/√D counts twice"),
    Slip("scores", "softmax_backward(dy, softmax_cache)", "dy", "dquery", "the softmax is skipped"),
    Slip("scores", "softmax_backward(dy, softmax_cache)", "dy * (softmax_cache.y > 0)", "dkey",
         "the softmax is skipped"),
    Slip("scores", "softmax_backward(dy, softmax_cache)", "dy * softmax_cache.y * (1 - softmax_cache.y)",
         "dquery", "its own probability alone"),
    Slip("scores", "dscores.swapaxes(-1, -2) @ query", "dscores @ query", "dkey", "dkey needs dscoresᵀ"),
    Slip("scores", "dscores @ key", "dscores @ query", "dquery", "yours takes the tensor itself"),
    Slip("scores", "swapaxes(-1, -2) @ query", "swapaxes(-1, -2) @ key", "dkey", "yours takes the tensor itself"),
    Slip("tied-output", "lookup + output", "output", "dweight", "the use of weight as the embedding is missing"),
    Slip("tied-output", "lookup + output", "lookup", "dweight", "the use of weight at the output is missing"),
    Slip("tied-output", "np.add.at(lookup, tokens, dx)", "lookup[tokens] += dx", "dweight",
         "occurs again overwrites"),
    Slip("tied-output", "tokens, dx", "tokens, dhidden", "dweight", "between the lookup and hidden stands mix"),
    Slip("tied-output", "output, dmix", "output, dmix.T", "dmix", "transposed, all else is right"),
    Slip("adam", "(np.sqrt(second) + eps)", "np.sqrt(second + eps)", "weight", "eps stands inside the root"),
    Slip("adam", "m / (1 - beta1**step), v / (1 - beta2**step)", "m, v", "weight", "the bias correction is missing"),
    Slip("adam", "m / (1 - beta1**step)", "m", "weight", "m's bias is not corrected"),
    Slip("adam", "v / (1 - beta2**step)", "v", "weight", "v's bias is not corrected"),
    Slip("adam", "learning_rate * weight_decay", "weight_decay", "weight", "the decay lacks the learning rate"),
    Slip("adam", "* weight\n", "* (weight - learning_rate * first / (np.sqrt(second) + eps))\n", "weight",
         "the decay takes the weight after Adam's step"),
    Slip("adam", "* gradient**2", "* np.tanh(gradient**2)", "weight",
         "v comes before it and is wrong too: mend that first"),
    Slip("adam", "**step", "**(step - 1)", "weight", "one step late"),
    Slip("adam", "**step", "**(step + 1)", "weight", "one step early"),
    Slip("adam", "m = beta1 * m", "gradient = gradient + weight_decay * weight\nm = beta1 * m", "m",
         "the decay is added to the gradient"),
    Slip("adam", "weight - decay -", "weight -", "weight", "the weight decay is missing"),
    Slip("adam", "np.sqrt(second)", "second", "weight", "the root is missing"),
    Slip("adam", "decay - learning_rate", "decay + learning_rate", "weight", "Adam's step has the wrong sign"),
    Slip("adam", "+ (1 - beta1) * gradient", "", "m", "(1 - beta) · gradient is missing"),
    Slip("adam", "* gradient**2", "* np.tanh(gradient**2)", "v", "the largest error"),
    Slip("adam", "* gradient**2", "* gradient", "v", "a running mean of its square"),
    Slip("attention", "dscores = dscores / np.sqrt(D)", "pass", "dx", "the factor 1/√D is left out"),
    Slip("attention", "/ np.sqrt(D)", "/ D", "dx", "the factor 1/√D counts twice"),
    Slip("attention", "/ np.sqrt(D)", "/ D", "dquery_key_value.bias", "the factor 1/√D counts twice"),
    Slip("attention", "/ np.sqrt(D)", "/ np.sqrt(D) * 2", "dquery_key_value.bias",
         "right shape; the path through query counts 2 times instead of once"),
    Slip("attention", "softmax_backward(dprobabilities, softmax_cache)", "dprobabilities", "dx", "softmax is skipped"),
    Slip("attention", "softmax_backward(dprobabilities, softmax_cache)", "dprobabilities * (probabilities > 0)",
         "dquery_key_value.weight", "the softmax is skipped"),
    Slip("attention", "[dquery, dkey, dvalue]", "[dquery, dkey, dvalue * 0]", "dx", "path through value is missing"),
    Slip("attention", "[dquery, dkey, dvalue]", "[dquery, -dkey, dvalue]", "dx",
         "the path through key has the wrong sign"),
    Slip("attention", "dscores.swapaxes(-1, -2) @ query", "dscores @ query", "dx", "dkey needs dscoresᵀ"),
    Slip("attention", "probabilities.swapaxes(-1, -2) @ dheads", "probabilities @ dheads", "dx",
         "dvalue needs probabilitiesᵀ"),
    Slip("attention", "[dquery, dkey, dvalue]", "[dkey, dquery, dvalue]", "dquery_key_value.bias", "in another order"),
    Slip("attention", "1, 3, 0, 2, 4", "1, 3, 2, 0, 4", "dx", "come as (H, 3, D)"),
    Slip("attention", "reshape(B, T, H, D).swapaxes(1, 2)", "reshape(B, H, T, D)", "dquery_key_value.bias",
         "is reshaped straight to (B, H, T, D)"),
    Slip("attention", ".transpose(1, 3, 0, 2, 4)", "", "dx", "dqkv is reshaped without transposing back"),
    Slip("attention", "np.stack([dquery, dkey, dvalue]).transpose(1, 3, 0, 2, 4).reshape(B, T, -1)",
         "np.concatenate([each.reshape(B, T, -1) for each in (dquery, dkey, dvalue)], axis=-1)",
         "dquery_key_value.weight", "is reshaped straight to (B, T, C)"),
    Slip("attention", "softmax_backward(dprobabilities, softmax_cache)",
         "dprobabilities * probabilities * (1 - probabilities)", "dx", "its own probability alone"),
    Slip("attention", "dscores @ key", "dscores @ query", "dx", "yours takes the tensor itself"),
    Slip("attention", "swapaxes(-1, -2) @ query", "swapaxes(-1, -2) @ key", "dquery_key_value.weight",
         "yours takes the tensor itself"),
    Slip("attention", "dquery = dscores @ key\ndkey = dscores.swapaxes(-1, -2) @ query",
         "dquery = dscores @ query\ndkey = dscores.swapaxes(-1, -2) @ key", "dx", "yours takes the tensor itself"),
    Slip("attention", "dheads = dmerged", "dmerged = np.tanh(dmerged)\ndheads = dmerged", "dquery_key_value.bias",
         "doutput.weight comes before it and is right: the fault lies between them"),
    Slip("attention", '    "output.bias": doutput_bias,\n', "", "doutput.bias", "has no 'output.bias'"),
    Slip("attention-in-blocks", "gathered * kept", "gathered", "y", "what the values were summed to is still in units"),
    Slip("attention-in-blocks", "total * kept", "total", "y", "the total so far is still in units of exp(m)"),
    Slip("attention-in-blocks", "total * kept", "total", "dvalue", "y comes before it and is wrong too"),
    Slip("attention-in-blocks", "np.exp(scores - new), np.exp(m - new)", "np.exp(scores - new), 1", "y",
         "neither total nor sum is rescaled"),
    Slip("attention-in-blocks", "scores[np.arange(start, stop)[:, None] < keys] = -np.inf\n        new", "new", "y",
         "the block on the diagonal is not masked"),
    Slip("attention-in-blocks", "m = new", "m = new + 1", "y", "the largest error is at"),
    Slip("attention-in-blocks", "(m + np.log(total))", "np.log(total)", "dvalue", "the log-sum-exp lacks the maximum"),
    Slip("attention-in-blocks", "scores - log_totals[start:stop, None]", "scores", "dquery",
         "the probabilities are not divided by the total"),
    Slip("attention-in-blocks", "dp - delta[start:stop]", "dp", "dquery", "delta is left out: a score takes part"),
    Slip("attention-in-blocks", "delta[start:stop]", "(dp * p).sum(axis=1, keepdims=True)", "dkey",
         "delta is summed over one block of keys alone"),
    Slip("attention-in-blocks", ") / np.sqrt(D)\n        dquery", ")\n        dquery", "dquery",
         "the scale is left out"),
    Slip("attention-in-blocks", "dkey[keys] +=", "dkey[keys] =", "dkey", "a block's part overwrites the earlier ones"),
    Slip("attention-in-blocks", "dvalue[keys] +=", "dvalue[keys] =", "dvalue", "a block's part overwrites"),
    Slip("attention-in-blocks", "dquery[start:stop] +=", "dquery[start:stop] =", "dquery", "a block's part overwrites"),
    Slip("block", "dmiddle = dmiddle + dy", "pass", "dx", "the shortcut around the feed-forward branch is missing"),
    Slip("block", "dx = dx + dmiddle", "pass", "dx", "the shortcut around attention is missing"),
    Slip("block", "attention_backward(dmiddle,", "attention_backward(dy,", "dnorm_1.weight", "attention gets dy"),
    Slip("block", "dx = dx + dmiddle", "dx = dx + dy", "dx", "the first shortcut carries dy"),
    Slip("block", "gelu_tanh_backward(dactive, gelu_cache)", "dactive", "dnorm_2.bias", "GELU is skipped"),
    Slip("block", "dnormed, norm_2_cache", "dnormed, norm_1_cache", "dx", "dnorm_2.weight comes before it and is"),
    Slip("block", " + d", " + 0 * d", "dx", "both shortcuts are missing"),
    Slip("block", "dmiddle + dy\n", "dmiddle\n", "dattention.output.weight", "around the feed-forward branch"),
    # Named in every exercise where they can be made: wrong axes, = for +=, skipped projections, kinks
    Slip("linear", "dweight = drows.T @ rows",
         "x = rows.reshape(*dy.shape[:2], -1)\nfor b in range(len(dy)):\n    dweight = dy[b].T @ x[b]",
         "dweight", "in a loop, += and not ="),
    Slip("linear", "dbias = drows.sum(axis=0)", "for b in range(len(dy)):\n    dbias = dy[b].sum(axis=0)", "dbias",
         "in a loop, += and not ="),
    Slip("residual", "dy + dy @ weight", "dy + dy", "dx", "weight is skipped"),
    Slip("residual", "dy.sum(axis=(0, 1))", "dy.sum(axis=1).mean(axis=0)", "dbias", "1/B: a mean and a sum"),
    Slip("softmax", "axis=-1", "axis=1", "dx", "softmax runs along the last one"),
    Slip("softmax", "(dy * y).sum(axis=-1, keepdims=True)", "(dy * y).mean(axis=-1, keepdims=True)", "dx",
         "it is the sum of dy · y"),
    Slip("layer-norm", ".mean(axis=-1, keepdims=True)", ".mean(axis=1, keepdims=True)", "dx", "your means run over"),
    Slip("layer-norm", "(dnormal * normal).mean(axis=-1, keepdims=True)",
         "(dnormal * normal).sum(axis=-1, keepdims=True) / (dy.shape[-1] - 1)", "dx", "divided by C - 1"),
    Slip("layer-norm", "(dy * normal).sum(axis=(0, 1))", "(dy * normal)[-1].sum(axis=0)", "dweight",
         "in a loop, += and not ="),
    Slip("rms-norm", ".mean(axis=-1, keepdims=True)", ".mean(axis=1, keepdims=True)", "dx", "your means run over"),
    Slip("rms-norm", "(dnormal * normal).mean(axis=-1, keepdims=True)",
         "(dnormal * normal).sum(axis=-1, keepdims=True) / (dy.shape[-1] - 1)", "dx", "divided by C - 1"),
    Slip("rms-norm", "(dy * normal).sum", "(dy * normal / inverse_rms).sum", "dweight", "by the normalised x"),
    Slip("rms-norm", "(dy * normal).sum(axis=(0, 1))", "(dy * normal)[0].sum(axis=0)", "dweight", "+= and not ="),
    Slip("adam", "return weight - decay - learning_rate * first / (np.sqrt(second) + eps), m, v",
         "return weight - decay - learning_rate * first / (np.sqrt(second) + eps), first, second", "m",
         "divided by 1 - beta^t in place"),
    Slip("adam", "return weight - decay - learning_rate * first / (np.sqrt(second) + eps), m, v",
         "return weight - decay - learning_rate * first / (np.sqrt(second) + eps), first, second", "v",
         "divided by 1 - beta^t in place"),
    Slip("adam", "m = beta1 * m + (1 - beta1) * gradient", "m = beta1 * m + gradient", "m", "1 - beta is missing"),
    Slip("adam", "decay = learning_rate", "decay = (1 - beta1)", "weight", "the decayed weight"),
    Slip("attention", "dmerged, doutput", "dmerged, (_, doutput", "dx", "output projection is skipped"),
    Slip("dropout", "kept / (1 - rate)", "kept", "dx", "are not scaled up by 1 / (1 - rate)"),
    Slip("dropout", "dy * kept / (1 - rate)", "dy", "dx", "the mask is not applied"),
    Slip("dropout", "/ (1 - rate)", "/ (1 - rate) ** 2", "dx", "counts twice"),
    Slip("dropout", "/ (1 - rate)", "* (1 - rate)", "dx", "and so does the backward pass"),
    Slip("dropout", "kept /", "(1 - kept) /", "dx", "what was dropped gets the gradient"),
    Slip("dropout", "(1 - rate)", "rate", "dx", "factor of 1.5"),
    Slip("soft-cap", "1 - tanh**2", "1 - tanh", "dx", "with a square"),
    Slip("soft-cap", "(1 - tanh**2)", "(1 - tanh**2) * 3.7", "dx", "the factors cap and 1 / cap cancel"),
    Slip("soft-cap", "(1 - tanh**2)", "(1 - tanh**2) / 3.7", "dx", "the factors cap and 1 / cap cancel"),
    Slip("soft-cap", "dy * (1 - tanh**2)", "dy", "dx", "the soft cap is missing on the way back"),
    Slip("soft-cap", "1 - tanh**2", "1 - (3.7 * tanh) ** 2", "dx", "1 - y² where"),
    Slip("soft-cap", "dy * (1 - tanh**2)", "1 - tanh**2", "dx", "a factor dy is missing"),
    Slip("rotary", "first * cosine + second * sine, second * cosine - first * sine",
         "first * cosine - second * sine, second * cosine + first * sine", "dx", "turned the same way as forward"),
    Slip("rotary", "np.split(dy, 2, axis=-1)", "dy[..., ::2], dy[..., 1::2]", "dx", "largest error"),
    Slip("rotary", "return np.concatenate([first * cosine + second * sine, second * cosine - first * sine], axis=-1)",
         "return dy", "dx", "not turned on the way back"),
    Slip("rotary", "return np.concatenate([first * cosine + second * sine, second * cosine - first * sine], axis=-1)",
         "first, second = dy[..., ::2], dy[..., 1::2]\ndx = np.empty(dy.shape)\n"
         "dx[..., ::2], dx[..., 1::2] = first * cosine + second * sine, second * cosine - first * sine\nreturn dx",
         "dx", "the pairs are channels 2i and 2i+1 on the way back"),
    Slip("qk-norm", "first * cosine + second * sine, second * cosine - first * sine",
         "first * cosine - second * sine, second * cosine + first * sine", "dx", "turned the same way as forward"),
    Slip("qk-norm", "dnormal = dnormed * weight", "dnormed = dy\ndnormal = dnormed * weight", "dweight",
         "not turned on the way back"),
    Slip("qk-norm", "dnormal = dnormed * weight", "dnormal = dnormed", "dx", "weight is left out"),
    Slip("qk-norm", "dnormal - through", "dnormal", "dx", "the path through the root mean square is missing"),
    Slip("qk-norm", "(dnormed * normal)", "(dnormed * normal / inverse_rms)", "dweight", "by the normalised x"),
    Slip("qk-norm", ".sum(axis=(0, 1, 2))", ".sum(axis=(0, 1))", "dweight", "not summed over the leading axis"),
    Slip("qk-norm", "mean(axis=-1", "mean(axis=2", "dx", "your means run over"),
    Slip("swiglu", "dx_gate + dx_up", "dx_gate", "dx", "the path through up is missing"),
    Slip("swiglu", "dx_gate + dx_up", "dx_up", "dx", "the path through gate is missing"),
    Slip("swiglu", "dgated * b, dgated * a * sigmoid", "dgated * a * sigmoid, dgated * b", "dup", "the factor itself"),
    Slip("swiglu", "dgated * a * sigmoid", "dgated * a", "dup", "largest error"),
    Slip("swiglu", " + a * sigmoid * (1 - sigmoid)", "", "dgate", "the path through the sigmoid is missing"),
    Slip("swiglu", "dactive * (sigmoid + a * sigmoid * (1 - sigmoid))", "dactive", "dgate", "derivative is missing"),
    Slip("swiglu", "dgate, dup,", "dup, dgate,", "dgate", "this is dup, not dgate"),
    Slip("grouped-queries", "dkeys.reshape(B, -1, group, T, D).sum(axis=2)",
         "dkeys.reshape(B, group, -1, T, D).sum(axis=1)", "dkey", "the gradients of a group's query heads are not"),
    Slip("grouped-queries", "dvalues.reshape(B, -1, group, T, D).sum(axis=2)",
         "dvalues.reshape(B, -1, group, T, D).mean(axis=2)", "dvalue", "1/2"),
    Slip("grouped-queries", "dkey = dkeys.reshape(B, -1, group, T, D).sum(axis=2)",
         "for h in range(group):\n    dkey = dkeys.reshape(B, -1, group, T, D)[:, :, h]", "dkey", "are not summed"),
    Slip("grouped-queries", "dkeys.reshape(B, -1, group, T, D).sum(axis=2)", "dkeys", "dkey", "shape"),
    Slip("grouped-queries", " / np.sqrt(D)\ndquery", "\ndquery", "dquery", "the factor 1/√D is left out"),
    Slip("grouped-queries", "softmax_backward(dprobabilities, softmax_cache)", "dprobabilities", "dkey",
         "the softmax is skipped"),
    Slip("gradient-clipping", "min(1, max_norm / norm)", "max_norm / norm", "first", "always divided by its norm"),
    Slip("gradient-clipping", "min(1, max_norm / norm)", "1", "first", "not clipped"),
    Slip("gradient-clipping", "return first * factor, second * factor",
         "first, second = (g * min(1, max_norm / np.sqrt((g**2).sum())) for g in (first, second))\n"
         "return first, second", "second", "by its own norm"),
    Slip("gradient-clipping", "return first * factor, second * factor",
         "first, second = (np.clip(g, -max_norm, max_norm) for g in (first, second))\nreturn first, second",
         "second", "clipped to ±max_norm"),
    Slip("gradient-clipping", "factor, norm", "factor, min(norm, max_norm)", "norm", "the norm after clipping"),
    Slip("gradient-clipping", "np.sqrt((first**2).sum() + (second**2).sum())",
         "np.sqrt((first**2).sum()) + np.sqrt((second**2).sum())", "norm", "tensor by tensor and added up"),
    Slip("accumulation", "total + count * mean", "count * mean", "gradient", "in a loop, += and not ="),
    Slip("accumulation", "return total / tokens.sum()", "return gradients.mean(axis=0)", "gradient", "counts alike"),
    Slip("accumulation", "count * mean", "mean", "gradient", "largest error"),
    Slip("accumulation", " / tokens.sum()", "", "gradient", "not divided by the count of all tokens"),
    Slip("accumulation", " / tokens.sum()", " / len(tokens)", "gradient", "by the number of micro-batches"),
    Slip("key-value-cache", "(P + np.arange(T))[:, None]", "np.arange(T)[:, None]", "heads", "as if they began the text"),
    Slip("key-value-cache", "(P + np.arange(T))[:, None]", "(P + 1 + np.arange(T))[:, None]", "keys", "off by one"),
    Slip("key-value-cache", "k=P + 1", "k=1", "heads", "the mask counts from the first new token"),
    Slip("key-value-cache", "k=P + 1", "k=P", "heads", "hides each token from itself"),
    Slip("key-value-cache", "[past_key, key]", "[key, past_key]", "keys", "stand before the past ones"),
    Slip("key-value-cache", "@ values, keys, values", "@ values, key, value", "keys", "shape"),
    Slip("key-value-cache", " / np.sqrt(D)", "", "heads", "not divided by √D"),
    Slip("modern-block", "dmiddle = dmiddle + dy", "pass", "dx", "around the feed-forward branch is missing"),
    Slip("modern-block", "dx = dx + dmiddle", "pass", "dx", "the shortcut around attention is missing"),
    Slip("modern-block", "attention_backward(dmiddle,", "attention_backward(dy,", "dx", "attention gets dy"),
    Slip("modern-block", "dx = dx + dmiddle", "dx = dx + dy", "dx", "the first shortcut carries dy"),
    Slip("modern-block", "silu_backward(dgated * up, silu_cache)", "dgated * up", "dnorm_2.weight", "SiLU is skipped"),
    Slip("modern-block", "dnormed = dnormed + dnormed_up", "pass", "dnorm_2.weight", "the path through up is missing"),
    Slip("modern-block", "dnormed = dnormed + dnormed_up", "dnormed = dnormed_up", "dx", "the path through gate is"),
]
# fmt: on


def filled_in(exercise, seed, answer=None):
    """The text of a student's file: the starter with an answer in its blank, or several, between lines of ---."""
    bodies = (ANSWERS[exercise.name] if answer is None else answer).strip().split("\n---\n")
    text = starter(exercise, seed)
    assert text.count(BLANK) == len(bodies)
    for body in bodies:
        text = text.replace(BLANK, indent(f"{body}\n", "    "), 1)
    return text
