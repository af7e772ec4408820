"""Nothing of the user's is ever lost: what a writer may replace, what it leaves when it dies, what it never touches."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from unittest.mock import Mock

import pytest

from contract.errors import ConfigError, UserError
from contract.files import (
    open_regular,
    replace_folder,
    scratch_folder,
    write_file,
    write_into,
)
from contract.presets import preset
from contract.staging import STAGED
from contract.weights import initial_weights
from data.prepare import DEFAULT_RANKS, prepare
from data.tokenizers import load_ranks, save_ranks
from harness.exchange.export import export
from harness.training.bench import write_results
from harness.training.checkpoint import Checkpoint, checkpoint_files, load_checkpoint, save_checkpoint
from harness.training.metrics import MetricsLog, plot_metrics
from harness.training.run_folder import RunFolder, new_run
from learn.exercises.catalogue import find_exercise
from learn.exercises.start import write_starter
from parity.golden.export import export_pack
from parity.golden.packs import load_pack, save_pack
from tests.contract.files_on_disk import PowerCut, fingerprint

posix = pytest.mark.skipif(
    os.name == "nt", reason="needs Linux or macOS (Windows has no such files or signals)"
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the writers write: a checkpoint, a text, a pack; and their marks, to lay where they do not belong."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = load_ranks(DEFAULT_RANKS)
    config = preset("tense", vocab_size=tokenizer.n_vocab, n_layer=1, d_model=8)
    checkpoint = Checkpoint(config, initial_weights(config, 0, "float32"), tokenizer)
    (folder / "text.txt").write_text("One, two.\n" * 99)
    with MetricsLog(folder / "metrics.jsonl") as log:
        log.write(step=1, loss=1.0, learning_rate=0.1, gradient_norm=1.0)
    plot_metrics(folder / "metrics.jsonl", folder / "loss.png")
    figure = Mock()  # drawn once, as hundreds of plots are written here
    figure.return_value.savefig.side_effect = lambda file, **_: file.write((folder / "loss.png").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure", figure)
        yield folder, checkpoint, load_pack("untied-no-bias")


# Every file and folder that the program ever writes under a name of its own.
FOLDERS = ("best", "latest", "best.new", "best.old", "latest.new", "latest.old")
NAMES = (
    *("loss.png", "metrics.jsonl", "tokens.bin", "tokens.json", "tokens.tiktoken", ".lock"),
    *(
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "tokenizer.tiktoken",
        "model.pt",
        "model.npz",
    ),
    *("vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json", "SHA256SUMS"),
    *(
        "manifest.json",
        "index.txt",
        "README.txt",
        "logits.bin",
        "logits.npy",
        "loss.bin",
        "final_norm.weight.bin",
    ),
    *(
        "untied-no-bias.json",
        "untied-no-bias.safetensors",
        "data.bin",
        "data.json",
        "data.tiktoken",
        "x.html",
    ),
)


def writers(folder: Path, made, overwrite: bool) -> dict:
    """Every writer of the project, aimed at `folder` and the names in it."""
    source, checkpoint, pack = made

    def start_run():
        with new_run(RunFolder(folder), overwrite=overwrite) as staged:
            prepare(source / "text.txt", "bytes", staged.tokens)

    def plain(name):
        def write():
            with write_file(folder / name, overwrite=False) as file:
                file.write(b"ours")

        return write

    return {
        "run": start_run,
        "checkpoint": lambda: save_checkpoint(folder, checkpoint),
        "latest": lambda: save_checkpoint(folder / "latest", checkpoint),
        "tokens": lambda: prepare(source / "text.txt", "bytes", folder / "data.bin", overwrite=overwrite),
        "export huggingface": lambda: export(checkpoint, "huggingface", folder, overwrite=overwrite),
        "export npz": lambda: export(checkpoint, "npz", folder, overwrite=overwrite),
        "pack": lambda: save_pack(pack, folder, overwrite=overwrite),
        "pack raw": lambda: export_pack(pack, "raw", folder, overwrite=overwrite),
        "pack npy": lambda: export_pack(pack, "npy", folder, overwrite=overwrite),
        "pack npz": lambda: export_pack(pack, "npz", folder / "model.npz", overwrite=False),
        "ranks": lambda: save_ranks(checkpoint.tokenizer, folder / "data.tiktoken"),
        "starter": lambda: write_starter(find_exercise("relu"), 0, folder / "x.html"),
        "bench": lambda: write_results(folder / "config.json", []),
        "log": lambda: MetricsLog(folder / "metrics.jsonl").__exit__(None),
        "plot": lambda: plot_metrics(source / "metrics.jsonl", folder / "loss.png"),
        "file": plain("x.html"),
        "lock": plain(".lock"),
    }


PLAIN = ("pack npz", "ranks", "starter", "bench", "file", "lock")


WRITERS = list(writers(Path(), (None, None, None), False))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "contents", ["mine", '{"step": 10, "validation_loss": 2.0, "model": "mine"}', "folder"]
)
def test_every_writer_over_each_file_of_the_users(tmp_path, made, writer, contents):
    """One file of the user's under each name that we use, by itself: refused or not, it is as it was."""
    for name in (*NAMES, *FOLDERS):
        folder = tmp_path / name / "folder"
        place = folder / name
        if name in FOLDERS or contents == "folder":
            place.mkdir(parents=True)
            place = place / "thesis.txt"
        folder.mkdir(parents=True, exist_ok=True)
        place.write_text(contents)
        for overwrite in (False, True):
            with suppress(UserError, ConfigError):
                writers(folder, made, overwrite)[writer]()
            assert place.read_text() == contents, (name, overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("contents", ["mine", "{}", "link", "marks elsewhere"])
def test_every_writer_over_the_users_files(tmp_path, made, writer, overwrite, contents):
    """A folder full of the user's files under all names that we use: refused in one line, and nothing has changed."""
    if contents == "link" and os.name == "nt":
        pytest.skip("needs Linux or macOS (links need rights on Windows)")
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        for name in FOLDERS:
            (place / name).mkdir(parents=True)
            (place / name / "thesis.txt").write_text("mine")
    for name in NAMES:
        if contents == "link":
            (elsewhere / name).write_text("mine")
            (folder / name).symlink_to(elsewhere / name)
        elif contents == "marks elsewhere" and name != "config.json":  # which they would not be in
            (folder / name).write_text('{"format": "twin-gpt checkpoint", "files": {}}')
        else:
            (folder / name).write_text(contents)
    before = fingerprint(tmp_path)
    with pytest.raises((UserError, ConfigError)) as error:
        writers(folder, made, overwrite)[writer]()
    assert "\n" not in str(error.value)
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("writer", [writer for writer in WRITERS if writer not in PLAIN])
def test_every_writer_over_its_own(tmp_path, made, writer):
    """What a writer wrote it replaces, only with `overwrite`, and the user's other files stay where they are."""
    folder = tmp_path / "folder"
    folder.mkdir()
    writers(folder, made, False)[writer]()
    first = fingerprint(folder)
    if writer not in ("checkpoint", "latest", "log", "plot"):  # saving again is what a training loop does
        with pytest.raises(UserError, match=r"already|not empty"):
            writers(folder, made, False)[writer]()
        assert fingerprint(folder) == first
    writers(folder, made, True)[writer]()
    assert fingerprint(folder).keys() == first.keys()


def test_the_users_files_in_a_checkpoint_stay(tmp_path, made):
    """What a person has put beside a checkpoint's own files is in the next one too, under a free name."""
    place, checkpoint = tmp_path / "latest", made[1]
    save_checkpoint(place, checkpoint)
    (place / "notes").mkdir()
    (place / "notes" / "a.txt").write_text("mine")
    (place / "optimizer.safetensors").write_text("mine too")  # this checkpoint has none of its own
    moments = {f"{moment}.{name}": value for moment in "mv" for name, value in checkpoint.weights.items()}
    fields = {name: getattr(checkpoint, name) for name in ("config", "weights", "tokenizer")}
    save_checkpoint(place, Checkpoint(**fields, optimizer=moments))
    assert (place / "notes" / "a.txt").read_text() == "mine"
    assert (place / "optimizer.safetensors~").read_text() == "mine too"
    assert load_checkpoint(place, with_optimizer=True).optimizer is not None


def test_what_comes_while_a_checkpoint_is_written_stays(tmp_path, made):
    """A file that a person saves into a checkpoint's folder at the last moment, and the folder's permissions."""
    save_checkpoint(tmp_path / "latest", made[1])
    (tmp_path / "latest").chmod(0o770)
    with replace_folder(tmp_path / "latest", checkpoint_files) as new:
        (new / "config.json").write_text("{}")
        (tmp_path / "latest" / "notes.txt").write_text("mine")
    assert (tmp_path / "latest" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "latest" / "config.json").read_text() == "{}"
    assert os.name == "nt" or (tmp_path / "latest").stat().st_mode & 0o777 == 0o770


def test_a_foreign_list_of_files_claims_nothing_elsewhere(tmp_path, made):
    """A config.json that lists files outside its folder is no mark."""
    (tmp_path / "latest").mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    record = {"format": "twin-gpt checkpoint", "files": {"../thesis.txt": "0" * 64}}
    (tmp_path / "latest" / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"holds config\.json"):
        save_checkpoint(tmp_path / "latest", made[1])
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_checkpoint_in_a_users_folder_is_refused(tmp_path, made):
    """Neither a folder with other files nor a file is taken for a checkpoint's place."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = fingerprint(tmp_path)
    with pytest.raises(UserError, match=r"model holds thesis\.txt, which this program did not write"):
        save_checkpoint(tmp_path / "model", made[1])
    with pytest.raises(UserError, match="file is a file, expected a folder"):
        save_checkpoint(tmp_path / "file", made[1])
    assert fingerprint(tmp_path) == before


@posix
def test_links_are_followed(tmp_path, made):
    """A run, a checkpoint or a file behind a link stands where the link leads, and the link stays."""
    (tmp_path / "disk").mkdir()
    for name in ("run", "model"):
        (tmp_path / "disk" / name).mkdir()
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    writers(tmp_path / "run", made, False)["run"]()
    writers(tmp_path / "run", made, True)["run"]()
    for _ in range(2):
        save_checkpoint(tmp_path / "model", made[1])
    assert (tmp_path / "disk" / "run" / "tokens.bin").is_file()
    assert load_checkpoint(tmp_path / "disk" / "model").config == made[1].config
    (tmp_path / "page").symlink_to(tmp_path / "disk" / "page.html")
    for text in (b"first", b"second"):
        with write_file(tmp_path / "page", overwrite=True) as file:
            file.write(text)
        assert (tmp_path / "disk" / "page.html").read_bytes() == text
    assert all((tmp_path / name).is_symlink() for name in ("run", "model", "page"))
    (tmp_path / "nothing").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link to nothing"):
        writers(tmp_path / "nothing", made, False)["run"]()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="needs root (who may mount a file system)",
)
def test_mount_points(tmp_path, made):
    """A volume, as containers have them, takes runs, exports and checkpoints, again and again."""
    place = tmp_path / "volume"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs a system that lets root mount a tmpfs (not a container without that right)")
    try:
        for writer in ("run", "export npz", "checkpoint", "pack raw"):
            for overwrite in (False, True):
                writers(place, made, overwrite)[writer]()
            assert not list(place.glob(f".*{STAGED}"))
            assert len(list(place.iterdir())) > 2
            for path in place.iterdir():
                subprocess.run(["rm", "-r", str(path)], check=True)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@posix
def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    """What is no regular file is never replaced by one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        with write_file(pipe) as file:
            file.write(b"through")
        assert reader.communicate(timeout=600)[0] == b"through"
    with write_file("/dev/null", overwrite=True) as file:
        file.write(b"gone")
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(pipe)
    program = (
        "from contract.files import write_file\nwith write_file('/dev/stdout') as file: file.write(b'said')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    assert run.stdout == b"said"


def test_a_file_that_is_there(tmp_path):
    """It is replaced only when told; an error on the way leaves it, and keeps its permissions."""
    path = tmp_path / "page.html"
    path.write_text("mine")
    path.chmod(0o640)
    with pytest.raises(UserError, match="already exists; replace it with --overwrite"), write_file(path):
        pytest.fail("the block was entered")
    with pytest.raises(ZeroDivisionError), write_file(path, overwrite=True) as file:
        file.write(b"half" if 1 / 0 else b"")
    assert fingerprint(tmp_path) == {"page.html": ("file", b"mine")}
    with write_file(path, overwrite=True) as file:
        file.write(b"new")
    assert fingerprint(tmp_path) == {"page.html": ("file", b"new")}
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o640


def test_what_appears_in_the_meantime_is_kept(tmp_path):
    """Of two writers to one place that both found it free, the second is refused, and the first's stays whole."""

    def write_both(folder: Path):
        with write_into(folder) as slow:
            (slow / "one").write_text("slow")
            (slow / "two").write_text("slow")
            with write_into(folder) as quick:
                (quick / "two").write_text("quick")

    def write_one(path: Path):
        with write_file(path) as slow, write_file(path) as quick:
            slow.write(b"slow")
            quick.write(b"quick")

    for write, path in ((write_one, tmp_path / "a"), (write_both, tmp_path / "b")):
        with pytest.raises(UserError, match="has appeared in the meantime"):
            write(path)
    assert fingerprint(tmp_path) == {
        "a": ("file", b"quick"),
        "b": ("folder",),
        str(Path("b", "two")): ("file", b"quick"),
    }


@pytest.mark.parametrize("writer", ["run", "export npz", "tokens", "pack"])
def test_a_half_made_change_is_finished_before_anybody_looks(tmp_path, made, monkeypatch, writer):
    """Wherever a process dies in replacing its own, the next one replaces it: the folder never locks itself."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write = writers(folder, made, True)[writer]
    write()
    replace = os.replace
    for stage in range(0, 30, 2):
        calls = iter(range(1000))

        def dying(source, target, calls=calls, stage=stage):
            if next(calls) >= stage:
                raise PowerCut
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                write()
                break
            except PowerCut:
                pass
        write()
    assert not list(folder.glob(f".*{STAGED}"))
    assert stage >= 4


def test_a_file_in_memory_is_no_device(tmp_path):
    """What lies below /dev/shm is a file like any other, and is not overwritten unless that is asked for."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("needs /dev/shm (Linux)")
    with (
        tempfile.NamedTemporaryFile(dir=memory) as file,
        pytest.raises(UserError, match="already exists"),
        write_file(file.name),
    ):
        pytest.fail("the block was entered")


def test_scratch_folders_go(tmp_path, monkeypatch):
    """They are private and leave nothing behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as folder:
        (folder / "tokens.bin").write_text("private")
        assert folder.parent.parent == tmp_path
        assert os.name == "nt" or folder.parent.stat().st_mode & 0o77 == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["raw", "npy"])
def test_an_exported_pack_is_replaced_whole(tmp_path, packs, format):
    """No file of an earlier pack stays, so that none is read as the new one's."""
    out = tmp_path / "pack"
    export_pack(packs["gpt2-tied"], "raw", out)
    export_pack(packs["untied-no-bias"], format, out, overwrite=True)
    export_pack(packs["untied-no-bias"], format, tmp_path / "fresh")
    assert fingerprint(out) == fingerprint(tmp_path / "fresh")
    sums = (out / "SHA256SUMS").read_text().splitlines()[1:]
    assert {line.partition("  ")[2]: line.partition("  ")[0] for line in sums} == {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in out.iterdir()
        if path.name != "SHA256SUMS"
    }


def test_a_raw_pack_knows_its_numbers(tmp_path, packs):
    """A bit that flipped in a golden tensor is told of the pack, and not of the port that is held against it."""
    export_pack(packs["gpt2-tied"], "raw", tmp_path / "pack")
    path = tmp_path / "pack" / "final_norm.weight.bin"
    data = path.read_bytes()
    path.write_bytes(data[:7] + bytes([data[7] ^ 1]) + data[8:])
    with pytest.raises(UserError, match=r"final_norm\.weight\.bin is not what was exported"):
        load_pack(str(tmp_path / "pack"))
