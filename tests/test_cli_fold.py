"""``python -m export model.onnx``: choosing batch norms, dry runs, --inspect, --copy and the HTML report."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_lines import assert_refused, run, snapshot
from onnx_models import operators, statistics, text_model

import export.cli
import export.proof.runtime
import fastbn
from export.cli import main
from export.fold import fold_graph
from fastbn import nn

PROG = "python -m export"
NAMES = ("stem/bn", "block/bn", "head/bn")


def network():
    """Three Conv-BN and one batch norm on the input, which stays."""
    rng = np.random.default_rng(0)
    body, arrays, x = "i = BatchNormalization(x, si, bi, mi, vi)", statistics(rng, 2, "i"), "i"
    for number in range(3):
        arrays[f"W{number}"] = rng.standard_normal((2, 2, 1, 1)).astype(np.float32)
        arrays |= statistics(rng, 2, str(number))
        norm = f"BatchNormalization(c{number}, {', '.join(f'{role}{number}' for role in 'sbmv')})"
        body += f" c{number} = Conv({x}, W{number}) n{number} = {norm} r{number} = Relu(n{number})"
        x = f"r{number}"
    model = text_model(f"{body} y = Identity({x})", arrays)
    for number, name in enumerate(NAMES):
        next(node for node in model.graph.node if node.output[0] == f"n{number}").name = name
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder with a model that has batch norms, one that has none, and a checkpoint; latencies are 1 ms."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export.cli, "latencies", lambda models, inputs, **how: [1.0 for _ in models])
    onnx.save(network(), "model.onnx")
    onnx.save(text_model("y = Relu(x)", {}), "relu.onnx")
    fastbn.save(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), "net.safetensors", input_shape=(2, 6, 6))
    return tmp_path


@pytest.fixture
def cli(folder, capsys):
    """Standard output of a run that exits with 0 and does not complain, and the names of the files it made."""

    def call(*arguments):
        before = snapshot(folder)
        code, out, err = run(main, arguments, capsys)
        assert (code, err) == (0, "")
        after = snapshot(folder)
        assert {name: after[name] for name in before} == before
        return out, after.keys() - before.keys()

    return call


@pytest.fixture
def refused(folder, capsys):
    """The one line of a run that must refuse and change nothing."""
    return lambda *arguments: assert_refused(main, arguments, capsys, folder, PROG)


def kept(path):
    return {node.name for node in onnx.load(path).graph.node if node.op_type == "BatchNormalization"} & set(NAMES)


# Which batch norms


@pytest.mark.parametrize(
    ("arguments", "stay"),
    [
        (["--only", "stem/bn"], {"block/bn", "head/bn"}),
        (["--only", "stem/bn", "block/bn"], {"head/bn"}),
        (["--only", "stem/bn", "--only", "block/bn"], {"head/bn"}),
        (["--skip", "b*", "h*"], {"block/bn", "head/bn"}),
        (["--only", "*/bn", "--skip", "head/*"], {"head/bn"}),
    ],
)
def test_only_and_skip(cli, arguments, stay):
    out, _ = cli("model.onnx", "--dry-run", "--json", *arguments)
    sites = {site["batch_norm"]: site for site in json.loads(out)["fold"]["sites"]}
    assert {name for name in NAMES if sites[name]["into"] is None} == stay
    assert all(sites[name]["reason"] for name in stay)


SPELLED = {"W": (2, 2, 1, 1), "k": (2, 1, 1), "t": (1, 2, 1, 1)}


def test_a_decomposed_batch_norm_is_chosen_by_name(cli):
    rng = np.random.default_rng(0)
    arrays = {name: rng.uniform(1, 2, shape).astype(np.float32) for name, shape in SPELLED.items()}
    onnx.save(text_model("c = Conv(x, W) a = Mul(c, k) d = Add(a, t) y = Relu(d)", arrays), "spelled.onnx")
    assert re.search(r"^  a +Mul, Add +2 ", cli("spelled.onnx", "--inspect")[0], re.MULTILINE)
    cli("spelled.onnx", "-o", "all.onnx", "--only", "a")
    assert operators(onnx.load("all.onnx")) == ["Conv", "Relu"]
    out, _ = cli("spelled.onnx", "-o", "none.onnx", "--skip", "a")
    assert "kept: it was not chosen" in out
    assert operators(onnx.load("none.onnx")) == ["Conv", "Mul", "Add", "Relu"]


def test_what_is_not_chosen_stays_in_the_file(cli):
    assert cli("model.onnx", "-o", "out.onnx", "--skip", "b*")[1] == {"out.onnx"}
    assert kept("out.onnx") == {"block/bn"}


def test_a_name_that_is_not_there(refused):
    line = refused("model.onnx", "-o", "out.onnx", "--only", "stem/bn", "blok/bn")
    assert "--only must name batch norms of SOURCE, got 'blok/bn'; nearest: block/bn" in line
    assert "got 'nowhere*'; --inspect lists them" in refused("model.onnx", "-o", "out.onnx", "--skip", "nowhere*")
    assert "--inspect lists them" in refused("relu.onnx", "-o", "out.onnx", "--only", "bn")


# Runs that write nothing


def test_dry_run(cli, monkeypatch):
    monkeypatch.setattr(export.cli, "verify", None)  # no proof is run
    out, made = cli("model.onnx", "--dry-run")
    assert made == set()
    assert "written       nothing: a dry run" in out
    assert re.search(r"^  stem/bn +into Conv c0", out, re.MULTILINE)
    assert "verified" not in out
    out, made = cli("model.onnx", "--dry-run", "--json", "-o", "out.onnx", "--skip", "head/bn")
    assert made == set()
    report = json.loads(out)
    assert (report["dry_run"], report["output"], report["ok"]) == (True, None, True)
    assert report["fold"]["before"]["nodes"] == 11
    assert report["fold"]["after"]["nodes"] < 11
    assert {site["batch_norm"] for site in report["fold"]["sites"]} >= set(NAMES)


def test_dry_run_says_what_a_run_does(cli):
    dry, _ = cli("model.onnx", "--dry-run", "--json")
    wet, _ = cli("model.onnx", "-o", "out.onnx", "--json")
    assert json.loads(dry)["fold"] == json.loads(wet)["fold"]


def test_inspect(cli):
    out, made = cli("model.onnx", "--inspect")
    assert made == set()
    assert "opset         ai.onnx 17" in out
    assert "batch norms   4, 0 with warnings" in out
    assert re.search(r"^  block/bn +2 +1e-05 +Conv c1 +Relu r1 ", out, re.MULTILINE)
    out, made = cli("model.onnx", "--inspect", "--json")
    listing = json.loads(out)
    assert made == set()
    assert listing["source"] == "model.onnx"
    assert listing["inputs"] == [{"name": "x", "dtype": "float", "shape": "[N, 2, 6, 6]"}]
    assert [norm["batch_norm"] for norm in listing["batch_norms"]][1:] == list(NAMES)


def test_inspect_warns(cli, capsys):
    model = network()
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays["s1"].CopyFrom(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "s1"))
    onnx.save(model, "dead.onnx")
    code, out, _ = run(main, ["dead.onnx", "--inspect"], capsys)
    assert code == 1
    assert "batch norms   4, 1 with warnings" in out
    assert "warning       block/bn: gamma is 0 in all 2 channels" in out
    assert "healthy       NO: 1 warning" in out
    code, out, _ = run(main, ["dead.onnx", "--inspect", "--json"], capsys)
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_inspect_on_data(cli, capsys):
    """The statistics of the data are those of a calibration; with them in force nothing is wrong any more."""
    np.save("data.npy", 5 + np.random.default_rng(0).standard_normal((70, 2, 6, 6)))
    code, out, _ = run(main, ["model.onnx", "--inspect", "--data", "data.npy", "--json"], capsys)
    before = json.loads(out)
    assert (code, before["data"]["samples"]) == (1, 70)
    gaps = {finding["layer"]: finding["number"] for n in before["batch_norms"] for finding in n["findings"]}
    assert all(norm["gap"] == gaps[norm["batch_norm"]] > 0.3 for norm in before["batch_norms"])
    assert before["output"]["relative"] > 0.3
    cli("model.onnx", "-o", "out.onnx", "--no-fold", "--calibrate", "data.npy")
    after = json.loads(run(main, ["out.onnx", "--inspect", "--data", "data.npy", "--json"], capsys)[1])
    assert max(norm["gap"] for norm in after["batch_norms"]) < 1e-3
    assert after["output"]["relative"] < 1e-3
    assert "gap" not in {finding["kind"] for norm in after["batch_norms"] for finding in norm["findings"]}
    out = run(main, ["out.onnx", "--inspect", "--data", "data.npy"], capsys)[1]
    assert "data          70 samples of data.npy\n" in out
    assert "output        with the statistics of the data the output moves by 0.0" in out


def test_inspect_without_batch_norms(cli):
    assert "batch norms   none" in cli("relu.onnx", "--inspect")[0]


# No batch norm


def test_nothing_to_fold_writes_nothing(cli):
    out, made = cli("relu.onnx", "-o", "out.onnx")
    assert made == set()
    assert "nothing: the model has no batch norm; no file is written, --copy writes one" in out
    out, made = cli("relu.onnx", "-o", "out.onnx", "--json")
    report = json.loads(out)
    assert made == set()
    assert (report["output"], report["ok"], report["fold"]["sites"]) == (None, True, [])


def test_copy(cli):
    out, made = cli("relu.onnx", "-o", "out.onnx", "--copy")
    assert made == {"out.onnx"}
    assert "written       out.onnx (as it was)" in out
    assert "verified      yes" in out
    assert operators(onnx.load("out.onnx")) == ["Relu"]
    assert cli("model.onnx", "-o", "two.onnx", "--copy")[1] == {"two.onnx"}
    assert kept("two.onnx") == set()


# The HTML report


def test_html_report(cli):
    out, made = cli("model.onnx", "-o", "out.onnx", "--report", "report.html", "--json")
    assert made == {"out.onnx", "report.html"}
    report = json.loads(out)
    assert report["latency_ms"] == report["latency_unoptimised_ms"] == {"unfolded": 1.0, "folded": 1.0}
    text = Path("report.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert name in text
    assert "optimisations off" in text


def test_html_report_of_a_checkpoint(cli):
    _, made = cli("net.safetensors", "-o", "out.onnx", "--report", "report.HTM")
    assert made == {"out.onnx", "report.HTM"}


def test_html_report_where_nothing_was_written(cli):
    assert cli("relu.onnx", "-o", "out.onnx", "--report", "report.html")[1] == {"report.html"}


def test_html_report_of_outputs_that_differ(folder, capsys, monkeypatch):
    def fold_wrongly(model, **how):
        report = fold_graph(model, **how)
        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.1), name=value.name)
        return report

    monkeypatch.setattr(export.cli, "fold_graph", fold_wrongly)
    arguments = ["model.onnx", "-o", "out.onnx", "--report", "report.html"]
    assert run(main, arguments, capsys)[0] == 1
    assert "NO: the outputs differ by more than 0.0001" in (folder / "report.html").read_text(encoding="utf-8")


def test_latency_is_measured_without_the_optimiser_for_the_page_only(cli, monkeypatch):
    asked = []

    def measure(models, inputs, *, optimise=True):
        asked.append(optimise)
        return export.proof.runtime.latencies(models, inputs, seconds=0.02, optimise=optimise)

    monkeypatch.setattr(export.cli, "latencies", measure)
    out, _ = cli("model.onnx", "-o", "a.onnx", "--json")
    assert asked == [True]
    assert json.loads(out)["latency_unoptimised_ms"] == {}
    out, _ = cli("model.onnx", "-o", "b.onnx", "--json", "--report", "r.html")
    assert asked == [True, True, False]
    assert all(0 < figure < 1000 for figure in json.loads(out)["latency_unoptimised_ms"].values())


# Data of the user's


def test_the_report_says_what_it_was_proved_on(cli):
    x = np.random.default_rng(1).standard_normal((70, 2, 6, 6))
    np.savez("data.npz", x=x, labels=np.zeros(70))
    out, _ = cli("model.onnx", "-o", "out.onnx", "--data", "data.npz")
    assert "proved on     64 samples of data.npz, 6 left out" in out
    out, _ = cli("model.onnx", "-o", "out2.onnx", "--json")
    assert json.loads(out)["inputs"] is None


# What it refuses

TO = ["-o", "out.onnx"]
BAD_ARGUMENTS = {
    "report of another suffix": (["model.onnx", *TO, "--report", "r.txt"], "--report must end in .html, got 'r.txt'"),
    "report without a suffix": (["model.onnx", *TO, "--report", "out"], "--report must end in .html"),
    "report over the source": (["model.onnx", *TO, "--report", "model.onnx"], "--report must end in .html"),
    "report in a missing folder": (["model.onnx", *TO, "--report", "no/r.html"], "must be in a folder that exists"),
    "report is a folder": (["model.onnx", *TO, "--report", "folder.html"], "must be a file, got a folder"),
    "report of a dry run": (["model.onnx", "--dry-run", "--report", "r.html"], "--dry-run must come without --report"),
    "report of --inspect": (["model.onnx", "--inspect", "--report", "r.html"], "--inspect must come without --report"),
    "OUT of --inspect": (["model.onnx", *TO, "--inspect"], "--inspect must come without --out"),
    "--inspect and --dry-run": (["model.onnx", "--inspect", "--dry-run"], "--inspect must come without --dry-run"),
    "--inspect and --only": (["model.onnx", "--inspect", "--only", "a"], "--inspect must come without --only"),
    "--dry-run and --copy": (["model.onnx", "--dry-run", "--copy"], "--dry-run must come without --copy"),
    "--dry-run and --no-fold": (["model.onnx", "--dry-run", "--no-fold"], "--dry-run must come without --no-fold"),
    "--no-fold and --skip": (["model.onnx", *TO, "--no-fold", "--skip", "a"], "--no-fold must come without --skip"),
    "--only without names": (["model.onnx", *TO, "--only"], "expected at least one argument"),
    "--dry-run without SOURCE": (["--dry-run"], "--dry-run must come with an .onnx SOURCE, got none"),
    "--inspect without SOURCE": (["--inspect"], "--inspect must come with an .onnx SOURCE, got none"),
    **{
        f"{option} of a checkpoint": (
            ["net.safetensors", *TO, option, *names],
            f"{option} must come with an .onnx SOURCE",
        )
        for option, names in {
            "--dry-run": (),
            "--inspect": (),
            "--copy": (),
            "--only": ("0",),
            "--skip": ("0",),
        }.items()
    },
    "--inspect of no file": (["nowhere.onnx", "--inspect"], "must be a file that exists"),
    "--inspect of text": (["text.onnx", "--inspect"], "must be an ONNX model, got"),
    "--dry-run of text": (["text.onnx", "--dry-run"], "must be an ONNX model, got"),
    "--dry-run with OUT over SOURCE": (["model.onnx", "--dry-run", "-o", "model.onnx"], "must be another file"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(refused, folder, case):
    arguments, sentence = BAD_ARGUMENTS[case]
    (folder / "folder.html").mkdir()
    (folder / "text.onnx").write_text("not a model")
    assert sentence in refused(*arguments)


def test_inspect_of_constants_that_cannot_be_read(refused):
    model = network()
    next(tensor for tensor in model.graph.initializer if tensor.name == "s1").raw_data = b"123"
    onnx.save(model, "lies.onnx")
    assert "SOURCE must be valid ONNX, got" in refused("lies.onnx", "--inspect")


CRASH = "c = Conv(x, W) k = Add(c, one) n = BatchNormalization(k, s, b, m, v) y = Slice(n, zero, one_, two)"


def test_a_model_that_crashes_onnx(refused):
    """Slice of a convolution's output of negative length fails an assertion in onnx's C++."""
    rng = np.random.default_rng(0)
    arrays = {"W": rng.random((2, 2, 7, 7), np.float32), "one": np.ones((1, 2, 1, 1), np.float32)}
    arrays |= {name: np.array([value]) for name, value in (("zero", 0), ("one_", 1), ("two", 2))}
    onnx.save(text_model(CRASH, arrays | statistics(rng, 2), x="float[1, 2, 4, 4] x"), "crash.onnx")
    assert "out.onnx must be valid ONNX, got one that crashes onnx's checker" in refused("crash.onnx", *TO)
