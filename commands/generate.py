"""Generate text with a trained model: continue prompts, answer a message, hold a conversation."""

import sys
from pathlib import Path
from typing import Annotated

from typer.core import TyperCommand

from commands.options import BackendOption, DeviceOption, RunArgument, ThreadsOption, check_seed, option
from contract.errors import ConfigError

CONTINUATION, REPLY = 100, 1024  # tokens at most, unless asked otherwise


class OptionalChatText(TyperCommand):
    """`--chat` may stand without its text."""

    def parse_args(self, context, args):
        for place, word in enumerate(args):
            if word == "--chat" and (place + 1 == len(args) or args[place + 1].startswith("--")):
                args[place] = "--chat="
        return super().parse_args(context, args)


def generate(
    run: RunArgument,
    prompt: Annotated[
        list[str] | None,
        option("Text to continue, of several one after another. [default: begin as the model does]"),
    ] = None,
    prompts: Annotated[Path | None, option("UTF-8 file with a prompt in each line.")] = None,
    chat: Annotated[
        str | None,
        option("Message to reply to, by the model's own chat template; without TEXT a conversation."),
    ] = None,
    system: Annotated[str | None, option("With --chat: what the model is told first.")] = None,
    max_new_tokens: Annotated[
        int | None, option(f"Tokens at most. [default: {CONTINUATION}, with --chat {REPLY:,}]")
    ] = None,
    stop: Annotated[list[str] | None, option("Text to stop before; may be given several times.")] = None,
    ignore_eos: Annotated[bool, option("Go on after the model's end tokens.", "--ignore-eos")] = False,
    special: Annotated[
        bool, option("Read special tokens, such as <|im_end|>, in prompts.", "--special")
    ] = False,
    temperature: Annotated[float, option("Divides the logits; 0 is greedy.")] = 0.8,
    top_k: Annotated[int | None, option("Sample from the k most likely tokens. [default: all]")] = None,
    top_p: Annotated[
        float | None, option("Sample from the most likely tokens that sum to p. [default: all]")
    ] = None,
    repetition_penalty: Annotated[
        float, option("Above 1 makes tokens that have occurred less likely.")
    ] = 1.0,
    seed: Annotated[int, option("Seed of the sampling.")] = 0,
    num_samples: Annotated[int, option("Texts to generate of each prompt, up to 64 at once.")] = 1,
    backend: BackendOption = "numpy",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
):
    """Generate text with a trained model, printed token by token.

    Without a prompt the text begins as the model's texts do, or with a new line.
    It ends after --max-new-tokens, at the model's end token, or before a --stop.
    """
    from harness.training.generation import ends
    from harness.training.runs import open_model

    for name, value in (("max-new-tokens", max_new_tokens), ("num-samples", num_samples)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    check_seed(seed)
    given = _prompts(prompt, prompts)
    _check_chat(chat, system, given, num_samples, special)
    model, checkpoint = open_model(run, backend=backend, device=device, threads=threads)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    settings["repetition_penalty"] = repetition_penalty
    settings |= {"stop": [] if ignore_eos else ends(checkpoint.tokenizer), "stop_texts": stop or []}
    if chat is not None:
        _chat(model, checkpoint, chat, system, max_new_tokens or REPLY, settings)
        return
    for each in given or [None]:
        _continue(model, checkpoint, each, special, max_new_tokens or CONTINUATION, num_samples, settings)


def _prompts(prompt: list[str] | None, file: Path | None) -> list[str]:
    if file is None:
        return prompt or []
    if prompt:
        raise ConfigError("--prompt does not go with --prompts; put it into the file")
    from contract.errors import readable

    with readable(file, "give a UTF-8 file with a prompt in each line"):
        lines = file.read_text(encoding="utf-8").splitlines()
    if not any(lines):
        raise ConfigError(f"{file} holds no prompt; write one in each line")
    return [line for line in lines if line]


def _check_chat(chat: str | None, system: str | None, prompts: list[str], num_samples: int, special: bool):
    """Raise ConfigError for options that do not go together."""
    if chat is None:
        if system is not None:
            raise ConfigError("--system is of a conversation; give --chat too")
        return
    if prompts:
        raise ConfigError("--chat does not go with a prompt; put the text into the message")
    if num_samples > 1:
        raise ConfigError("--num-samples does not go with --chat; ask several times with other seeds")
    if special:
        raise ConfigError("--special is of prompts; a conversation has its special tokens from the template")


def _continue(model, checkpoint, prompt, special, max_new_tokens, num_samples, settings):
    """Write the texts that continue one prompt."""
    from commands.samples import write_samples
    from harness.training.generation import encode_prompt, generate_texts, samples_at_once

    tokens = encode_prompt(checkpoint.tokenizer, prompt, special=special)
    _tell_of_length(checkpoint, tokens)
    dtype = next(iter(checkpoint.weights.values())).dtype
    at_once = samples_at_once(checkpoint.config, len(tokens) + max_new_tokens, dtype)
    for first in range(0, num_samples, at_once):
        numbers = range(first, min(first + at_once, num_samples))
        texts = generate_texts(
            model, checkpoint.tokenizer, tokens, max_new_tokens, len(numbers), **settings, sequence=first
        )
        write_samples(prompt or "", texts, numbers, num_samples)


def _chat(model, checkpoint, text, system, max_new_tokens, settings):
    """Reply to one message, or for an empty one to every line of stdin until it ends."""
    from commands.console import say, write

    messages = [{"role": "system", "content": system}] if system is not None else []
    if text:
        _reply(model, checkpoint, messages, text, max_new_tokens, settings)
        return
    if sys.stdin.isatty():
        say("write a message and press Enter; an empty line ends the conversation")
    while line := _read_line():
        _reply(model, checkpoint, messages, line, max_new_tokens, settings)
        write("\n" if sys.stdin.isatty() else "")


def _read_line() -> str:
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _reply(model, checkpoint, messages, text, max_new_tokens, settings):
    """Write the reply to a message; both join `messages`."""
    from commands.console import write
    from data.chat import chat_tokens
    from harness.training.generation import generate_text

    messages.append({"role": "user", "content": text})
    plain = checkpoint.training.get("conversations", False)
    tokens = chat_tokens(checkpoint.tokenizer, messages, plain=plain)
    _tell_of_length(checkpoint, tokens)
    reply = ""
    for piece in generate_text(model, checkpoint.tokenizer, tokens, max_new_tokens, **settings):
        piece = piece if reply else piece.lstrip(" ")  # of the reply's first word
        write(piece)
        reply += piece
    write("\n")
    messages.append({"role": "assistant", "content": reply})


def _tell_of_length(checkpoint, tokens: list[int]):
    from commands.console import say

    context_length = checkpoint.config.context_length
    if len(tokens) > context_length:
        say(f"the prompt has {len(tokens)} tokens; the model sees only the last {context_length} of them")
