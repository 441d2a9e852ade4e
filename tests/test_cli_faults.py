"""What a user can mend is one line and exit code 2: disks, folders, variables, large numbers."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from support.training_helpers import package_path, tiny_config
from test_cli import assert_one_line_error, invoke, train

from metasparse_ext import _atomic as atomic
from metasparse_ext.cli import messages
from metasparse_ext.training import Run, Trainer
from metasparse_ext.training.run import RunLock

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory, one_thread):
    """A finished run."""
    run = Run(tmp_path_factory.mktemp("runs") / "maml")
    Trainer(tiny_config(tiny_root, iterations=1), run).fit()
    return run


@pytest.fixture
def full_disk(monkeypatch):
    def system(call, *arguments):
        if call is os.write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments)

    monkeypatch.setattr(atomic, "_system", system)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk(tmp_path, tiny_root, trained):
    result = train("maml", tiny_root, tmp_path / "run")
    assert_one_line_error(result, "run/config.json: No space left on device")
    result = invoke("export", trained, "--out", tmp_path / "masks.npz")
    assert_one_line_error(result, "masks.npz: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.usefixtures("full_disk")
def test_an_evaluation_that_cannot_be_kept_is_shown(trained):
    result = invoke("evaluate", trained, "--tasks", "2")
    assert result.exit_code == 2
    assert "2 tasks, transductive" in " ".join(result.stdout.split())
    assert len(result.stderr.splitlines()) == 1
    assert "usage-test-2tasks.npz: No space left on device" in result.stderr


def test_a_file_in_the_place_of_the_folder(tmp_path, tiny_root):
    (tmp_path / "run").write_text("mine")
    assert_one_line_error(train("maml", tiny_root, tmp_path / "run"), f"{tmp_path / 'run'}: ")
    inside = tmp_path / "run" / "deeper"
    assert_one_line_error(train("maml", tiny_root, inside), str(inside))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_may_not_be_written(tmp_path, tiny_root, monkeypatch):
    def system(call, *arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(atomic, "_system", system)
    assert_one_line_error(train("maml", tiny_root, tmp_path / "run"), "run: Permission denied")


def test_a_folder_that_vanishes(tmp_path, tiny_root, monkeypatch):
    out = tmp_path / "run"
    original = Trainer._validate

    def vanish(self):
        shutil.rmtree(out)
        original(self)

    monkeypatch.setattr(Trainer, "_validate", vanish)
    result = train("maml", tiny_root, out)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "No such file or directory" in result.stderr


def test_an_export_into_a_folder_that_is_not_there(tmp_path, trained):
    out = tmp_path / "absent" / "masks.npz"
    assert_one_line_error(
        invoke("export", trained, "--out", out), f"{out}: No such file or directory"
    )


def test_a_run_in_use(tmp_path, trained):
    pytest.importorskip("fcntl")
    lock = RunLock(trained.lock_path)
    assert lock.acquire()
    result = invoke("train", "maml", "--out", trained, "--resume")
    lock.release()
    assert_one_line_error(result, "another process is training in this folder")


def test_numbers_too_large(tmp_path, tiny_root):
    result = train("maml", tiny_root, tmp_path / "run", "--meta-lr", "1e38")
    assert_one_line_error(result, "RunConfig: expected meta_lr to be at most 1000000, got 1e+38")
    result = train("maml", tiny_root, tmp_path / "run", "--image-size", "100000")
    assert_one_line_error(result, "image_size: 96 images of 100000x100000 need 894 GiB")
    result = train("maml", tiny_root, tmp_path / "run", "--width", "1000000000")
    assert_one_line_error(result, "there is not enough memory: ", "GiB were asked for at once")
    result = train("maml", tiny_root, tmp_path / "run", "--ways", "1000000000")
    assert_one_line_error(result, "1000000000-way tasks need 1000000000 classes, there are 8")
    result = train("maml", tiny_root, tmp_path / "run", "--tasks", "1000000000")
    assert_one_line_error(result, "omniglot/val: tasks: 9000000000 images of 16x16 need 8583 GiB")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 3])
def test_images_of_few_pixels(tmp_path, tiny_root, size):
    result = train("maml", tiny_root, tmp_path / "run", "--image-size", size, "--tasks", 1)
    assert result.exit_code == 0, result.output


def test_an_output_that_cannot_encode_all(tmp_path, trained):
    """Numbers that were computed are shown, with what the encoding lacks escaped."""
    folder = tmp_path / "\u30e9\u30f3"
    shutil.copytree(trained.folder, folder)
    ended = subprocess.run(
        [sys.executable, "-m", "metasparse_ext", "evaluate", folder, "--tasks", "2"],
        env={**package_path(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "\\xb1" in ended.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"METASPARSE_DATTA": "x"}, "METASPARSE_DATTA: did you mean METASPARSE_DATA?"),
        ({"METASPARSE_DATA": "/no/such"}, "METASPARSE_DATA: there is no folder /no/such"),
        ({"METASPARSE_DATA": __file__}, "METASPARSE_DATA: expected a folder, got the file"),
        ({"METASPARSE_CACHE": __file__}, "METASPARSE_CACHE: expected a folder, got the file"),
    ],
)
def test_environment_variables(monkeypatch, variables, message):
    with pytest.raises(messages.EnvironmentVariableError, match=message.replace("?", r"\?")):
        messages.check_environment(variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert_one_line_error(invoke("info"), message)


def test_environment_variables_that_are_right():
    messages.check_environment(
        {"METASPARSE_CACHE": "/not/yet", "METASPARSE_DATA": "/", "OTHER": "x"}
    )


@pytest.mark.parametrize(
    "name", ["METASPARSE_CONV_BACKEND", "METASPARSE_CPU_ISA", "METASPARSE_CUDA_BACKEND"]
)
def test_variables_that_are_read_when_they_are_needed(name):
    if messages._library.problem is not None and name != "METASPARSE_CUDA_BACKEND":
        pytest.skip("the library is not there to read them")
    ended = subprocess.run(
        [sys.executable, "-m", "metasparse_ext", "info"],
        env={**package_path(), name: "abacus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"metasparse: {name}: ")
    assert "abacus" in ended.stderr


def test_no_home_folder(monkeypatch, tmp_path):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("METASPARSE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    result = invoke("train", "maml", "--data", "glyphs", "--out", tmp_path / "run")
    assert_one_line_error(result, "there is no home folder", "METASPARSE_CACHE")


def test_brackets_and_colons_are_shown_as_they_are(tmp_path, tiny_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = "run[/bold][red]:smile:"
    result = train("maml", tiny_root, out, "--resume")
    assert result.exit_code == 0, result.output
    assert f"nothing to resume in {out}: starting" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(f"saved in {out}")
    os.rename(out, "a[b]")
    assert "a[b]" in invoke("evaluate", "a[b]", "--tasks", "2").stdout


def test_a_checkpoint_that_is_damaged_is_named(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    assert_one_line_error(invoke("evaluate", folder), ".safetensors: not a whole checkpoint")
    assert_one_line_error(invoke("train", "maml", "--out", folder, "--resume"), "last.previous")


def image_folder(root, side, modes):
    """Three classes of three images a split; ``side`` and ``modes`` are by split."""
    for split, width in side.items():
        for number in range(3):
            folder = root / split / f"{split}{number}"
            folder.mkdir(parents=True)
            for image in range(3):
                Image.new(modes[split], (width, 16), image).save(folder / f"{image}.png")
    return root


@pytest.mark.parametrize(
    ("side", "modes", "message"),
    [
        ((16, 20), ("L", "L"), "got (1, 16, 16) and (1, 16, 20); --image-size brings sizes to one"),
        ((16, 16), ("RGB", "L"), "got (3, 16, 16) and (1, 16, 16); one RGB image makes all"),
    ],
)
def test_splits_of_several_shapes(tmp_path, side, modes, message):
    splits = ("train", "val")
    root = image_folder(
        tmp_path / "set", *(dict(zip(splits, x, strict=True)) for x in (side, modes))
    )
    result = train("maml", root, tmp_path / "run", "--data", "folder", "--queries", "1")
    assert_one_line_error(result, "set/train and set/val: expected images of one shape", message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["", "nul\0"])
def test_a_path_that_cannot_be_one(tmp_path, tiny_root, trained, path):
    message = f"expected folder to be text {'without NUL' if path else 'that is not empty'}"
    assert_one_line_error(train("maml", tiny_root, path), "'--out'", message)
    assert_one_line_error(invoke("evaluate", path), "'RUN...'", message)
    assert_one_line_error(invoke("plot", trained, "--out", path), "'--out'", message)
    message = message.replace("folder", "path")
    assert_one_line_error(invoke("export", trained, "--out", path), message)
    result = train("maml", tiny_root, tmp_path / "run", "--data", "folder", "--root", path)
    assert_one_line_error(result, message.replace("path", "root"))


def test_a_path_that_is_empty_is_not_the_present_folder(tmp_path, trained):
    message = "expected it to be text that is not empty"
    export = ("export", trained, "--out", tmp_path / "a.safetensors")
    assert_one_line_error(invoke(*export, "--support", ""), "'--support'", message)
    assert_one_line_error(invoke("sweep", "", "--out", tmp_path), "'FILE'", message)
    assert_one_line_error(invoke("sweep", tmp_path / "a.toml", "--out", ""), "'--out'", message)
    assert_one_line_error(invoke("data", "info", ""), "data: expected DATA to be text")


@pytest.mark.parametrize("command", ["info", "check", "convert"])
def test_data_that_are_nowhere(tmp_path, command):
    absent = tmp_path / "absent"
    assert_one_line_error(invoke("data", command, absent), f"data: no folder or file {absent}")
    home = "~nobody-of-this-name"
    assert_one_line_error(invoke("data", command, home), "there is no home folder")


@pytest.mark.parametrize("setting", ["=3", "nothing", " =3"])
def test_a_setting_without_a_key_or_a_value(tmp_path, tiny_root, setting):
    result = train("maml", tiny_root, tmp_path / "run", "--set", setting)
    assert_one_line_error(result, f"--set: expected KEY=VALUE, got {setting!r}")


@pytest.mark.parametrize("rate", ["inf", "nan"])
def test_a_rate_that_is_not_finite(tmp_path, tiny_root, rate):
    result = train("maml", tiny_root, tmp_path / "run", "--inner-lr", rate)
    assert_one_line_error(result, f"MAML: expected inner_lr to be finite, got {rate}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["last.safetensors", "last.previous.safetensors"])
def test_a_folder_in_the_place_of_a_checkpoint(tmp_path, trained, name):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    for path in folder.glob("last*"):
        path.unlink()
    (folder / name).mkdir()
    result = invoke("train", "maml", "--out", folder, "--resume")
    assert_one_line_error(result, f"run/{name}: expected a checkpoint, got a folder")
    assert (folder / name).is_dir()


def test_a_run_without_its_last_checkpoint_is_left_alone(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    for path in folder.glob("last*"):
        path.unlink()
    for flags in ((), ("--resume",)):
        result = invoke("train", "maml", "--out", folder, *flags)
        assert_one_line_error(result, "run: there is no last.safetensors to go on from")
    assert (folder / "metrics.jsonl").read_bytes() == trained.metrics_path.read_bytes()


def test_images_json_that_is_damaged_is_written_anew(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    (folder / "images.json").write_bytes(b"")
    assert invoke("train", "maml", "--out", folder, "--resume").exit_code == 0
    assert (folder / "images.json").read_bytes() == trained.images_path.read_bytes()


def test_a_folder_in_the_place_of_the_next_previous_checkpoint(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    previous = folder / "last.previous.safetensors"
    previous.unlink(missing_ok=True)
    previous.mkdir()
    before = (folder / "last.safetensors").read_bytes()
    result = invoke("train", "maml", "--out", folder, "--resume", "--iterations", "2")
    assert result.exit_code == 2
    assert "run/last.previous.safetensors: " in result.stderr
    assert (folder / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"[" * 100_000, b"{}", b'{"setting": 3}', b"\xff"]
)
def test_an_evaluation_that_is_damaged_is_named(tmp_path, trained, content):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    assert invoke("evaluate", folder).exit_code == 0
    (folder / "evaluation-test.json").write_bytes(content)
    result = invoke("plot", folder, "--out", tmp_path / "pictures")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"metasparse: {folder}/evaluation-test.json: not a whole file")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "\0", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "images.json"])
def test_a_file_of_settings_that_is_damaged_is_named(tmp_path, trained, name, content):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    (folder / name).write_text(content)
    result = invoke("export", folder, "--out", tmp_path / "masks.npz")
    assert_one_line_error(result, f"{folder / name}: ", "not JSON")


def test_kernel_usage_that_is_damaged_is_named(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    assert invoke("evaluate", folder).exit_code == 0
    (folder / "usage-test.npz").write_bytes(b"PK\x03\x04damaged")
    result = invoke("plot", folder, "--out", tmp_path / "pictures")
    assert result.exit_code == 2
    assert f"{folder}/usage-test.npz: not a whole file of kernel usage" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "train", "iteration": 1, "accuracy": "high"}', "accuracy to be a number"),
        ('{"kind": 3, "iteration": 1}', "kind to be text, got int 3"),
        ('{"kind": "train", "iteration": "first"}', "iteration to be an integer"),
        ('{"kind": "train"}', "iteration to be an integer, got None"),
        ("3", "expected a JSON object"),
    ],
)
def test_a_record_of_wrong_types_is_named(tmp_path, trained, line, message):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    count = len((folder / "metrics.jsonl").read_bytes().splitlines())
    result = invoke("plot", folder, "--out", tmp_path / "pictures")
    assert_one_line_error(result, f"run/metrics.jsonl, line {count}: ", message)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("against", ["iteration", "elapsed"])
def test_records_that_lack_a_number_are_drawn_without_it(tmp_path, trained, against):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "validation", "iteration": 9, "accuracy": 0.5}\n')
        file.write('{"kind": "validation", "iteration": 9, "accuracy": null, "elapsed": 3}\n')
    result = invoke("plot", folder, "--out", tmp_path / "pictures", "--against", against)
    assert result.exit_code == 0, result.output


def test_a_plot_of_nothing_says_so(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    (folder / "metrics.jsonl").write_bytes(b"")
    assert_one_line_error(invoke("plot", folder), "no iteration was done and no evaluation kept")


def test_a_test_split_of_another_shape_is_refused_before_training(tmp_path):
    splits = {"train": 16, "val": 16, "test": 20}
    root = image_folder(tmp_path / "set", splits, dict.fromkeys(splits, "L"))
    result = train(
        "maml", root, tmp_path / "run", "--data", "folder,allow_overlap=true", "--queries", "1"
    )
    assert_one_line_error(result, "set/test: expected images of one shape", "--image-size brings")
    assert not (tmp_path / "run").exists()


def test_a_run_on_paths_of_one_folder_is_evaluated_from_another(tmp_path, monkeypatch):
    classes = {s: [f"{s}{number}" for number in range(3)] for s in ("train", "val", "test")}
    sides, modes = dict.fromkeys(classes, 16), dict.fromkeys(classes, "L")
    image_folder(tmp_path / "sets", sides, modes)
    (tmp_path / "set").mkdir()
    for split in classes:
        for each in (tmp_path / "sets" / split).iterdir():
            each.rename(tmp_path / "set" / each.name)
    (tmp_path / "splits.json").write_text(json.dumps(classes))
    monkeypatch.chdir(tmp_path)
    data = ("--data", "folder,splits=splits.json,allow_overlap=true", "--queries", "1")
    result = train("maml", "set", "run", *data)
    assert result.exit_code == 0, result.output
    config = Run("run").config()
    assert config.root == str(tmp_path / "set")
    assert f"splits={tmp_path}/splits.json" in config.data
    again = train("maml", "set", "run", *data, "--resume")
    assert again.exit_code == 0, again.output
    assert invoke("evaluate", "run", *data[:2]).exit_code == 0
    assert Run("run").evaluation_path("test").exists()
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    result = invoke("evaluate", tmp_path / "run")
    assert result.exit_code == 0, result.output
