"""Bad input, in all experiments: one line that names the setting, status 2, and nothing compiled before."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from tests.lacking import lacking
from tests.test_supervised import ALL, parse

CASES = [
    # What one piece of code refuses for all experiments.
    ("random_label", "--preset smok", ("preset", "'smok'", "did you mean 'smoke'")),
    ("rotating", "--preset smoke --preset=default", ("preset", "smoke and default", "give one")),
    ("permuted_mnist", "--model mpl", ("model", "'mpl'", "did you mean 'mlp'")),
    ("slowly_changing_regression", "--methods l2er", ("methods", "'l2er'", "l2_er")),
    ("continual_imagenet", "--probes hesian", ("probes", "'hesian'", "did you mean 'hessian'")),
    ("incremental_cifar", "--seeds 0", ("seeds", "0 ", "1 or more")),
    ("label_permuted", "--tasks 0", ("tasks", "0 ", "1 or more")),
    ("rotating", "--segments-per-task 7", ("segments_per_task", "7", "updates")),
    ("warm_start", "--segments-per-task 0", ("segments_per_task", "0", "updates")),
    ("rl_gymnax", "--devices 99", ("devices", "99", "0 (all) to")),
    ("random_label", "--shard 3/3", ("shard", "'3/3'", "(n-1)/n")),
    ("permuted_mnist", "--methods l2 --sweep method.l3=1", ("sweep", "'method.l3'", "did you mean 'method.l2'")),
    ("continual_imagenet", "--methods l2 --l2.l2 -1", (".l2: -1.0", "0 or more")),
    ("random_label", "--methods l2 reset --redo.period 3", ("redo.period: no effect with methods l2 reset",)),
    ("random_label", "--probes none --hessian.order 8", ("hessian.order: no effect with probes none", "name hessian")),
    ("random_label", "--synthetic.classes 3", ("synthetic.classes: no effect with data digits", "name synthetic")),
    ("incremental_cifar", "--seeds many", ("--seeds", "many", "int")),
    ("label_permuted", "--seed-chunk -1", ("seed_chunk", "-1", "0 or more")),
    ("rotating", "--resume /nowhere", ("resume", "/nowhere is not a run directory")),
    # What depends on the data set, before it is fetched.
    ("permuted_mnist", "--segments-per-task 7", ("segments_per_task", "7", "updates")),
    ("permuted_mnist", "--stream.examples 60001", ("stream.examples", "60001", "1 to 60000", "mnist")),
    ("permuted_mnist", "--data cifar100 --stream.examples 50001", ("stream.examples", "50001", "1 to 50000")),
    # What is an experiment's own.
    ("random_label", "--data mnits", ("data", "'mnits'", "did you mean 'mnist'")),
    ("random_label", "--data mnist --data-path /nowhere", ("/nowhere",)),
    ("random_label", "--stream.examples 5000", ("stream.examples", "5000", "1 to 1498", "digits")),
    ("random_label", "--training.batch-size 401", ("batch_size", "401", "400")),
    ("random_label", "--training.updates 120 --training.batch-size 16", ("updates", "120", "25 steps")),
    ("random_label", "--segments-per-task 3", ("segments_per_task", "3", "10 updates")),
    ("random_label", "--model cnn --model.padding VALID", ("channels", "SAME")),
    ("random_label", "--model.hidden", ("features", "hidden layers")),
    ("random_label", "--model.hidden --probes weights", ("effective_rank", "hidden layers")),
    ("slowly_changing_regression", "--stream.flip-one --methods l2 reset", ("methods", "reset", "boundaries")),
    ("slowly_changing_regression", "--stream.flip-one --methods l2+dash", ("methods", "l2+dash", "boundaries")),
    ("random_label", "--method adam_rel --training.optimizer sgd", ("methods", "adam_rel", "optimiser")),
    ("random_label", "--method moment_reset --training.optimizer sgd", ("methods", "moment_reset", "optimiser")),
    ("incremental_cifar", "--method l2+orthogonal", ("l2+orthogonal", "'initializer'", "'resnet18'")),
    ("random_label", "--method crelu+smooth_leaky", ("methods", "activation", "'crelu'", "'smooth_leaky'")),
    ("random_label", "--method plasticity_injection --method.head-layers 4", ("head_layers", "4", "2 ")),
    ("random_label", "--method muon+muon", ("methods", "replace the optimiser")),
    ("slowly_changing_regression", "--stream.flip-one --training.head reset", ("training.head", "'keep'")),
    ("random_label", "--training.batch-size 1", ("batch_size", "effective_rank", "2 or more")),
    ("random_label", "--training.epochs 0", ("training.epochs", "0 ", "1 or more")),
    ("incremental_cifar", "--preset smoke --training.restore-best", ("training.restore_best", "True", "give False")),
    ("incremental_cifar", "--preset smoke --stream.new-classes 7", ("stream.new_classes", "7")),
    ("incremental_cifar", "--preset paper --data-path /nowhere", ("cifar100", "/nowhere does not exist")),
    ("continual_imagenet", "--preset paper --data-path /nowhere", ("imagenet32", "/nowhere does not exist")),
    ("slowly_changing_regression", "--stream.period 0", ("stream.period", "0 ", "1 or more")),
    ("slowly_changing_regression", "--training.batch-size 10001", ("batch_size", "10001", "10000")),
    ("rl_gymnax", "--stream cartpol_chain", ("stream", "'cartpol_chain'", "did you mean 'cartpole_chain'")),
    ("rl_gymnax", "--stream.env Nope-v0", ("Nope-v0", "CartPole-v1")),
    ("rl_gymnax", "--stream.sigma -1", ("sigma", "-1")),
    ("rl_gymnax", "--stream minatar_chain --stream.games Pong", ("games", "Pong", "Seaquest")),
    ("rl_gymnax", "--steps-per-task 1000", ("steps_per_task", "1000", "512")),
    ("rl_gymnax", "--steps-per-task 0", ("steps_per_task", "0 ", "512")),
    ("rl_gymnax", "--agent dqn --ppo.epochs 3", ("ppo.epochs: no effect with agent dqn; name ppo there",)),
    ("rl_gymnax", "--agent ppo --dqn.epsilon-steps=5", ("dqn.epsilon-steps: no effect with agent ppo", "name dqn")),
    ("rl_gymnax", "--preset minatar --sweep ppo.epochs=1,2", ("ppo.epochs: no effect with agent dqn",)),
    ("rl_gymnax", "--model conv", ("model", "conv", "height")),
    ("rl_gymnax", "--methods orthogonal", ("methods", "orthogonal", "'initializer'", "'mlp'")),
    ("rl_gymnax", "--method plasticity_injection --method.head-layers 9", ("head_layers", "9", "2 ")),
    ("rl_gymnax", "--hessian.eps 1 2", ("ggn.eps", "another probe's (1.0, 2.0)")),
    ("rl_gymnax", "--method l2 --sweep model.hidden=8,8+8", ("model.hidden", "'8+8'")),
]


TOO_LARGE = [
    ("random_label", "--seeds 1000000000000", ("seeds: 1000000000000", "at most 2147483647")),
    ("random_label", "--first-seed 4294967295 --seeds 2", ("first_seed", "4294967295", "at most 4294967294")),
    ("random_label", "--training.epochs 1000000000", ("tasks", "gradient steps", "32 bits", "epochs")),
    ("rl_gymnax", "--steps-per-task 10000000000", ("steps_per_task", "10000000000", "at most")),
    ("rotating", f"--model.hidden {'8 ' * 3000}", ("model.hidden", "3,000 entries", "at most 256")),
    ("random_label", "--probes hessian --hessian.order 1000000", ("hessian.order", "1000000", "parameters")),
    ("rl_gymnax", "--probes ggn --ggn.probes 1000000", ("ggn.probes", "1000000", "parameters")),
    ("random_label", "--methods l2_er --sweep method.window=1,9999999999", ("l2_er.window", "9999999999", "at most")),
    (
        "random_label",
        f"--methods l2 --sweep method.l2={','.join(map(str, range(1, 1001)))}"
        f" --sweep training.learning_rate={','.join(map(str, range(1, 1001)))}",
        ("sweep", "1,000,000 combinations", "at most 10,000"),
    ),
    ("continual_imagenet", "--synthetic.train-per-class 1000000000", ("1000000010", "GiB are free", "fewer images")),
]
TOO_MUCH_MEMORY = [
    ("random_label", "--seeds 2000000000", ("2,000,000,000 networks", "seeds (2000000000)")),
    ("random_label", "--model.hidden 1000000 1000000", ("2 networks", "model.hidden (1000000 1000000)")),
    ("random_label", "--methods l2_er --l2-er.window 1000000000", ("2 networks", "l2_er.window (1000000000)")),
]


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path, assert_nothing_compiles):
    """``refused(experiment, line)``: what it says, having compiled, fetched and printed nothing, where no data are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PLASTAX_DATA", raising=False)

    def run(name: str, line: str, status: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", [name, *shlex.split(line)])
        with assert_nothing_compiles(), pytest.raises(SystemExit) as stop:
            ALL[name].main()
        out, err = capsys.readouterr()
        assert (stop.value.code, out if status == 2 else "") == (status, ""), (out, err)
        assert err.startswith("error: ") or status != 2
        assert err.count("\n") == 1
        return " ".join(err.split())

    return run


@pytest.mark.parametrize(("name", "line", "parts"), CASES)
def test_bad_input_is_refused_before_anything_compiles(refused, tmp_path, name, line, parts):
    said = refused(name, f"{line} --runs-dir {tmp_path}/runs")
    assert not (tmp_path / "runs").exists()
    for part in parts:
        assert part in said


@pytest.mark.parametrize(("name", "line", "parts"), TOO_LARGE, ids=lambda value: str(value)[:60])
def test_numbers_beyond_any_machine_are_refused(refused, tmp_path, name, line, parts):
    said = refused(name, f"--preset smoke {line} --runs-dir {tmp_path}/runs")
    assert not (tmp_path / "runs").exists()
    for part in parts:
        assert part in said


@pytest.mark.parametrize(("name", "line", "parts"), TOO_MUCH_MEMORY, ids=lambda value: str(value)[:60])
def test_more_than_fits_into_the_memory_is_refused_before_it_is_taken(refused, tmp_path, name, line, parts):
    said = refused(name, f"--preset smoke {line} --no-compilation-cache --runs-dir {tmp_path}/runs", 1)
    assert not (tmp_path / "runs").exists()
    for part in ("out of memory in", "GiB are free; lower one of", *parts):
        assert part in said


@pytest.mark.parametrize(
    ("name", "more"), [("random_label", ""), ("rl_gymnax", " --auto-chunk"), ("rl_gymnax", " --shard 0/2")]
)
def test_a_directory_that_cannot_be_written_is_refused_first(refused, tmp_path, name, more):
    (tmp_path / "file").touch()
    said = refused(name, f"--preset smoke --runs-dir {tmp_path}/file{more}")
    assert f"runs_dir: {tmp_path}/file/{name} cannot be written (Not a directory)" in said


@pytest.mark.parametrize("name", ["random_label", "rl_gymnax"])
def test_a_full_disk_is_refused_first(refused, tmp_path, name):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        lacking(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        said = refused(name, f"--preset smoke --runs-dir {tmp_path}/runs")
        assert f"runs_dir: {tmp_path}/runs/{name} cannot be written (No space left on device)" in said
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("random_label", "--preset smoke --training.optimizer adam --methods all --probes all"),
        ("incremental_cifar", "--preset smoke --probes features weights gradient hessian kronecker"),
    ],
)
def test_what_is_built_compiles_nothing(name, line, assert_nothing_compiles):
    """Whatever is refused then, or where a refusal comes too late, nothing has compiled yet."""
    config = parse(name, line)
    experiment = ALL[name]
    shared = experiment.share(config)
    with assert_nothing_compiles():
        batches = experiment.build(config, shared.value).batches
    assert len(batches) == len(config.methods)
