"""The last steps: a tied output, a whole block, and the update that trains them."""

from types import SimpleNamespace

from contract.weights import Weights, WeightSpec
from learn.exercises.elementary import draw_tokens
from learn.exercises.exercise import Exercise, Mistake, Trial
from learn.exercises.heads import config_for
from numpy_llm import layers
from numpy_llm.adam import AdamW
from numpy_llm.attention import attention_backward
from numpy_llm.feed_forward import feed_forward_backward
from numpy_llm.model import block_backward, block_forward
from numpy_llm.norms import norm_backward
from operations.adamw import MISTAKES
from operations.catalogue import OPERATIONS

# Tied output


def _tied_output_forward(tokens, weight, mix):
    x, embedding_cache = layers.embedding_forward(tokens, weight)
    hidden, mix_cache = layers.linear_forward(x, mix, None)
    logits, output_cache = layers.linear_forward(hidden, weight, None)
    return logits, (embedding_cache, mix_cache, output_cache)


def _tied_parts(dy, cache):
    """returns: dmix, and dweight of the lookup and of the output"""
    embedding_cache, mix_cache, output_cache = cache
    dhidden, doutput, _ = layers.linear_backward(dy, output_cache)
    dx, dmix, _ = layers.linear_backward(dhidden, mix_cache)
    return dmix, layers.embedding_backward(dx, embedding_cache), doutput


def _tied_output_backward(dy, cache):
    dmix, lookup, output = _tied_parts(dy, cache)
    return {"dweight": lookup + output, "dmix": dmix}


def _tied_terms(trial: Trial):
    _, cache = _tied_output_forward(**trial.inputs)
    _, lookup, output = _tied_parts(trial.dy, cache)
    return {
        "dweight": {"the use of weight as the embedding": lookup, "the use of weight at the output": output}
    }


def _draw_tied_output(random, sizes):
    C, V = sizes["C"], sizes["V"]
    return {
        "tokens": draw_tokens(random, sizes),
        "weight": random.normal(size=(V, C)),
        "mix": random.normal(size=(C, C)),
    }


def _lookup_before_mix(trial: Trial):
    _, (embedding_cache, _, output_cache) = _tied_output_forward(**trial.inputs)
    dhidden, output, _ = layers.linear_backward(trial.dy, output_cache)
    return {"dweight": layers.embedding_backward(dhidden, embedding_cache) + output}


TIED_OUTPUT = Exercise(
    "tied-output",
    "one matrix used twice: embedding and output",
    _draw_tied_output,
    _tied_output_forward,
    _tied_output_backward,
    hints=(
        "weight is used at the beginning and at the end. How many gradients does that give?",
        "Go back from logits: the output's use of weight first, then mix, then the lookup. Add the two for weight.",
    ),
    terms=_tied_terms,
    mistakes=(
        Mistake(
            _lookup_before_mix,
            "the embedding's part gets dhidden; between the lookup and hidden stands mix: dx = dhidden mix",
        ),
    ),
    operations=(OPERATIONS["embedding"],),
)


# A whole block


def _block_forward(x, weights, n_head):
    weights = {f"block.{name}": value for name, value in weights.items()}
    return block_forward(x, weights, "block", config_for(x, n_head))


def _block_backward(dy, cache):
    dx, gradients = block_backward(dy, cache)
    return {"dx": dx} | _unprefixed(gradients)


def _unprefixed(gradients):
    return {"d" + name.removeprefix("block."): gradient for name, gradient in gradients.items()}


def _draw_block(random, sizes):
    B, T, C, F = (sizes[letter] for letter in "BTCF")
    shapes = {
        "norm_1.weight": (C,),
        "norm_1.bias": (C,),
        "attention.query_key_value.weight": (3 * C, C),
        "attention.query_key_value.bias": (3 * C,),
        "attention.output.weight": (C, C),
        "attention.output.bias": (C,),
        "norm_2.weight": (C,),
        "norm_2.bias": (C,),
        "feed_forward.up.weight": (F, C),
        "feed_forward.up.bias": (F,),
        "feed_forward.down.weight": (C, F),
        "feed_forward.down.bias": (C,),
    }
    weights = {
        name: random.normal(float(name.startswith("norm") and name.endswith("weight")), 0.4, size=shape)
        for name, shape in shapes.items()
    }
    return {"x": random.normal(size=(B, T, C)), "weights": weights, "n_head": sizes["H"]}


def _block_with(
    *, first_shortcut=1, second_shortcut=1, stream_for_branch=True, dy_for_stream=False, through_gelu=True
):
    """A block whose shortcuts count as often as said, where dy stands for the gradient between the branches, or
    where GELU is passed by.
    """

    def wrong(trial: Trial):
        _, cache = _block_forward(**trial.inputs)
        feed_forward_cache = cache.feed_forward
        if not through_gelu:
            feed_forward_cache = feed_forward_cache._replace(activation_backward=lambda dy, cache: dy)
        dnormed, feed_forward = feed_forward_backward(trial.dy, feed_forward_cache)
        dbranch, norm_2 = norm_backward(dnormed, cache.norm_2)
        dstream = dbranch + second_shortcut * trial.dy
        dnormed, attention = attention_backward(dstream if stream_for_branch else trial.dy, cache.attention)
        dx, norm_1 = norm_backward(dnormed, cache.norm_1)
        shortcut = trial.dy if dy_for_stream else dstream
        return {"dx": dx + first_shortcut * shortcut} | _unprefixed(
            norm_1 | attention | norm_2 | feed_forward
        )

    return wrong


BLOCK = Exercise(
    "block",
    "a whole transformer block: two branches on one stream",
    _draw_block,
    _block_forward,
    _block_backward,
    hints=(
        "Two residual connections: each time the stream forks, what comes back from branch and shortcut is added.",
        "Second branch first: dy through down, GELU, up and norm_2, plus dy itself, is the gradient between the "
        "two branches.",
        "That sum, not dy, goes through attention and norm_1; and it is added once more for the first shortcut.",
    ),
    mistakes=(
        Mistake(
            _block_with(second_shortcut=0),
            "the shortcut around the feed-forward branch is missing: dx = norm_2's dx plus dy, before you go on",
        ),
        Mistake(
            _block_with(first_shortcut=0),
            "the shortcut around attention is missing: add the gradient between the branches to norm_1's dx",
        ),
        Mistake(
            _block_with(stream_for_branch=False),
            "attention gets dy; its output went into the stream before the feed-forward branch read it, so it gets "
            "the gradient between the branches",
        ),
        Mistake(
            _block_with(dy_for_stream=True),
            "the first shortcut carries dy; what arrives there is the gradient between the branches, dy plus norm_2's "
            "dx",
        ),
        Mistake(
            _block_with(first_shortcut=0, second_shortcut=0),
            "both shortcuts are missing: y = x + branch, so dy goes into the branch and straight on",
        ),
        Mistake(
            _block_with(through_gelu=False),
            "GELU is skipped on the way back: up gets dhidden, not dactive",
        ),
    ),
    withheld=("block_backward",),
    chained=True,
)


# Adam


def _adam_forward(weight, gradient, m, v, step, learning_rate, beta1, beta2, eps, weight_decay):
    weights = Weights({"w": WeightSpec(weight.shape, "zeros")}, weight.flatten())
    optimizer = AdamW(weights, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    optimizer.m[...], optimizer.v[...], optimizer.step = m.flat, v.flat, step - 1
    optimizer.update(Weights({"w": WeightSpec(weight.shape, "zeros")}, gradient.flatten()), learning_rate)
    moments = (optimizer.m.reshape(weight.shape), optimizer.v.reshape(weight.shape))
    return dict(zip(("weight", "m", "v"), (weights["w"], *moments), strict=True))


def _draw_adam(random, sizes):
    shape = sizes["F"], sizes["C"]
    return {
        "weight": random.normal(size=shape),
        "gradient": random.normal(size=shape),
        "m": random.normal(size=shape) * 0.1,
        "v": random.uniform(0.1, 0.4, size=shape),
        "step": int(sizes["T"]),
        "learning_rate": 0.1,
        "beta1": 0.9,
        "beta2": 0.97,
        "eps": 0.05,
        "weight_decay": 0.15,
    }


def _adam_terms(trial: Trial):
    i, new = SimpleNamespace(**trial.inputs), ADAM.solve(trial)
    decay = -i.learning_rate * i.weight_decay * i.weight
    gradient_part = "(1 - beta) · gradient"
    # Weight and decay are multiples of one another, so they stand as one term.
    return {
        "weight": {"the decayed weight": i.weight + decay, "Adam's step": new["weight"] - i.weight - decay},
        "m": {"the old m": i.beta1 * i.m, gradient_part: (1 - i.beta1) * i.gradient},
        "v": {"the old v": i.beta2 * i.v, f"{gradient_part}²": (1 - i.beta2) * i.gradient**2},
    }


ADAM = Exercise(
    "adam",
    "one step of Adam, with decoupled weight decay",
    _draw_adam,
    _adam_forward,
    None,
    hints=(
        "m and v are running means: of the gradient, and of its square.",
        "Both start at 0 and are too small at first; dividing by 1 - beta^step undoes exactly that.",
        "eps is added to the root, not under it. The decay acts on the old weight and never enters m or v.",
    ),
    terms=_adam_terms,
    step_mistakes=MISTAKES,
    withheld=("Adam", "AdamW"),
    chained=True,
)
