"""Published models, and what tests do to them."""

import json

import pytest
from safetensors.numpy import load_file, save_file

from contract.errors import UserError
from harness.exchange.huggingface_import import import_folder

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit_json(path, **changes):
    """Change fields of a JSON file; None stands for null, ... takes the field away."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_tensors(folder, change):
    """Rewrite the weights as `change` leaves their dictionary."""
    tensors = load_file(folder / MODEL)
    change(tensors)
    save_file(tensors, folder / MODEL)


def one_line(error):
    """Fail where an error's message is more than a line."""
    assert "\n" not in str(error)
    return True


def expect_refusal(folder, *words, **options):
    """Import fails with one line that names all of `words`; returns it."""
    with pytest.raises(UserError) as error:
        import_folder(folder, **options)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def write_shards(folder, tensors, count):
    """Spread tensors over files, with their index, in place of the one file."""
    (folder / MODEL).unlink(missing_ok=True)
    weight_map = {}
    for shard in range(count):
        part = dict(list(tensors.items())[shard::count])
        name = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
