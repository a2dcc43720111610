"""The report as text and as HTML: what it says, at a terminal and in a pipe, and that a model's names stay text."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx_models import BN, conv_bn, statistics, text_model

from export import fold_onnx
from export.calibration.measure import measure
from export.choice import Choice
from export.data_files import read_samples
from export.report.charts import Group, Point, bars, errors_by_layer
from export.report.html import html_page, write_html
from export.report.inspection import inspect_model
from export.report.text import LONG, print_report
from fastbn._tables import print_table, printable
from fastbn.errors import ArgumentError, ModelError

HOSTILE = "<script>alert('x')</script>\"&\n\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def site(name, *, kept=None, into="Conv c", how="backward", operators="BatchNormalization"):
    fate = {"into": None, "reason": kept, "how": None} if kept else {"into": into, "reason": None, "how": how}
    return {"batch_norm": name, **fate, "operators": operators, "values": []}


def layer(name, source, folded, difference=1e-7):
    figures = {"max_abs": difference, "max_rel": difference, "ok": True}
    return {"layer": name, "value": name, **figures, "reference_error": source, "candidate_error": folded}


def make_report(sites, *, ok=True, layers=(), **more):
    output = {"output": "y", "max_abs": 2e-6, "max_rel": 1e-6, "ok": ok}
    against = {
        "max_abs": 2e-6,
        "max_rel": 1e-6,
        "tolerance": 1e-4,
        "ok": ok,
        "outputs": [output],
        "sites": list(layers),
    }
    return {
        "source": "folder/model.onnx",
        "output": "out.onnx",
        "unfolded": None,
        "fold": {
            "sites": sites,
            "before": {"nodes": 20, "parameters": 3000, "bytes": 12000},
            "after": {"nodes": 15, "parameters": 2500, "bytes": 10000},
        },
        "verify": {"unfolded": against},
        "latency_ms": {"unfolded": 4.0, "folded": 2.0},
        "latency_unoptimised_ms": {"unfolded": 10.0, "folded": 8.0},
        "ok": ok,
        **more,
    }


def printed(report, **how):
    stream = io.StringIO()
    print_report(report, stream, **how)
    return stream.getvalue()


def many(count):
    """Every tenth batch norm stays."""
    return [site(f"bn{i}", kept="it follows Relu" if i % 10 == 0 else None) for i in range(count)]


# As text


def test_a_row_for_each_batch_norm():
    sites = [
        site("first", into="Conv a, Conv b"),
        site("second", kept="it reads an input"),
        site("m", operators="Mul, Add"),
    ]
    layers = [layer("first", 3e-7, 2e-8), layer("first", 1e-7, 4e-8), layer("m", None, 0.0, difference=2e-7)]
    lines = printed(make_report(sites, layers=layers)).splitlines()
    rows = [re.split(r"  +", line.strip()) for line in lines if line.startswith("  ")][:4]
    assert rows == [
        ["batch norm", "where", "how", "difference", "error, source", "error, folded"],
        ["first", "into Conv a, Conv b", "backward", "1.0e-07", "3.0e-07", "4.0e-08"],
        ["second", "kept: it reads an input"],
        ["m (Mul, Add)", "into Conv c", "backward", "2.0e-07", "0.0e+00"],
    ]
    assert "folded        2 of 3 batch norms" in lines
    assert "bytes         12,000 -> 10,000" in lines
    assert "latency       4.000 ms -> 2.000 ms (median of onnxruntime as it comes, batch 1)" in lines
    assert "10.000 ms -> 8.000 ms" in "\n".join(lines)
    assert lines[-1] == "verified      yes, within 0.0001"


def test_columns_without_figures_are_left_out():
    [head] = [line for line in printed(make_report([site("bn", how=None)])).splitlines() if "batch norm " in line]
    assert head.split("  ") == ["", "batch norm", "where"]


def test_a_difference_is_said():
    assert "verified      NO: the outputs differ by more than 0.0001" in printed(make_report([site("a")], ok=False))


def test_what_the_proof_found_beside_the_outputs():
    report = make_report([site("a")], ok=False)
    report["verify"]["unfolded"] |= {
        "first_difference": "stem/bn",
        "optimised": [
            {"model": "reference", "error": 7.8, "ok": False},
            {"model": "candidate", "error": None, "ok": False},
            {"model": "candidate", "error": 1e-7, "ok": True},
        ],
        "notes": ["float64 could not run it"],
    }
    report["verify"]["unfolded"]["outputs"][0] |= {"reference_error": 4e-7, "candidate_error": 3e-7}
    text = printed(report)
    assert "rel 4.0e-07 of the source, 3.0e-07 of the written model, against float64" in text
    said = [
        "differs at    stem/bn",
        "warning       onnxruntime's own optimiser changes the source: its outputs are off by 7.8e+00",
        "warning       onnxruntime's own optimiser changes the written model: it fails",
        "note          float64 could not run it",
    ]
    assert text.splitlines()[-4:] == said
    page = "".join(Page(html_page(report)).texts)
    assert all(re.sub(" {2,}", " ", line) in page for line in said)
    assert "4.0e-07" in page


def test_many_are_counted_but_those_kept_are_named():
    text = printed(make_report(many(10 * LONG)))
    assert re.search(rf"^  {9 * LONG} batch norms +into Conv +backward$", text, re.MULTILINE)
    assert f"folded        {9 * LONG} of {10 * LONG} batch norms (--verbose names each)" in text
    assert text.count("kept: it follows Relu") == LONG
    assert len(re.findall(r"^  bn\d", text, re.MULTILINE)) == LONG
    text = printed(make_report(many(10 * LONG)), verbose=True)
    assert len(re.findall(r"^  bn\d", text, re.MULTILINE)) == 10 * LONG
    assert "--verbose" not in text
    assert len(re.findall(r"^  bn\d", printed(make_report(many(LONG))), re.MULTILINE)) == LONG


def test_never_wrapped_in_a_pipe():
    name, reason = "n" * 500, "because " * 100 + "so"
    [line] = [line for line in printed(make_report([site(name, kept=reason)])).splitlines() if name in line]
    assert line.split("kept: ")[1] == reason


def test_a_table_at_a_terminal_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = [("[bold]a[/bold] :smile:", "kept: " + "x" * 50), ("b", "into Conv")]
    stream, pipe = Terminal(), io.StringIO()
    print_table(("batch norm", "where"), rows, stream, marked={0})
    print_table(("batch norm", "where"), rows, pipe, marked={0})
    shown = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    assert "\x1b[33m" in stream.getvalue()
    assert "[bold]a[/bold] :smile:" in shown
    assert "─" in shown
    assert max(map(len, shown.splitlines())) <= 60
    assert "\x1b" not in pipe.getvalue()
    assert pipe.getvalue().count("\n") == 3


def test_plain_at_a_terminal_that_is_far_too_narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    print_table(("a", "b"), [("x" * 60, "y" * 60)], stream)
    assert f"  {'x' * 60}  {'y' * 60}\n" in stream.getvalue()


def test_names_cannot_steer_the_terminal():
    text = printed(make_report([site(HOSTILE, kept=HOSTILE)], source=HOSTILE))
    assert "\x1b" not in text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert text.count(r"\n\x1b[31m\u202e") == 3
    assert printable("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n 1") == "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n 1"


def test_a_stream_without_unicode():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_report(make_report([site("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n")]), stream)
    stream.flush()
    assert rb"gr\xfcn" in stream.buffer.getvalue()


# As HTML


class Page(HTMLParser):
    """Elements, attributes, text and the rows of the last table of a document; every element must be closed."""

    VOID = ("meta", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.rows, self.tables = [], [], [], [], [], 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tbody":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def layers_of(sites, rng):
    return [
        layer(s["batch_norm"], float(a), float(b))
        for s, (a, b) in zip(sites, 10 ** rng.uniform(-8, -5, (len(sites), 2)), strict=True)
    ]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_page_holds_every_batch_norm(count):
    sites = many(count)
    report = make_report(sites, layers=layers_of(sites, np.random.default_rng(0)))
    page = Page(html_page(report))
    text = "".join(page.texts)
    assert "model.onnx \N{RIGHTWARDS ARROW} out.onnx" in text
    assert "Verified: yes, within 0.0001" in text
    names = [row[0] for row in page.rows if row[0].startswith("bn")]
    assert names == [s["batch_norm"] for s in sites]
    assert page.tags.count("svg") == (3 if count else 2)
    assert page.tags.count("circle") == page.tags.count("path") == count
    if count:
        assert page.rows[0][1:3] == ["kept", "it follows Relu"]
        assert f"{sum(s['into'] is not None for s in sites)} of {count}" in text
    else:
        assert "none to fold" in text


def test_page_needs_nothing_else_and_can_load_nothing():
    text = html_page(make_report(many(3), layers=layers_of(many(3), np.random.default_rng(0))))
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object", "image", "use"}.isdisjoint(page.tags)
    assert {"src", "href", "xlink:href", "onload"}.isdisjoint(name for name, _ in page.attributes)
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text


def test_page_for_readers_of_all_kinds():
    text = html_page(make_report(many(3)))
    page = Page(text)
    assert ("lang", "en") in page.attributes
    assert ("role", "img") in page.attributes
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any("onnxruntime as it comes before 4 ms" in label and "after 2 ms (-50.0%)" in label for label in labels)
    assert {value for name, value in page.attributes if name == "scope"} == {"col", "row"}
    assert [tag for tag in page.tags if tag in ("h1", "h2", "h3")].count("h1") == 1
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_hostile_names_stay_text():
    sites = [site(HOSTILE, kept=HOSTILE), site("b", into=f"Conv {HOSTILE}", operators=HOSTILE)]
    layers = [layer(HOSTILE, 1e-7, 1e-7)]
    report = make_report(sites, layers=layers, source=f"{HOSTILE}.onnx", output=f"{HOSTILE}2.onnx")
    report["verify"]["unfolded"]["outputs"][0]["output"] = HOSTILE
    report["verify"]["unfolded"] |= {"first_difference": HOSTILE, "notes": [HOSTILE]}
    text = html_page(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert "\x1b" not in text
    assert "".join(page.texts).count("<script>alert('x')</script>") >= 7  # the name is there, as text


def test_page_without_a_referee_draws_the_difference():
    sites = many(3)
    text = html_page(make_report(sites, layers=[layer(s["batch_norm"], None, None) for s in sites]))
    page = Page(text)
    assert (page.tags.count("circle"), page.tags.count("path")) == (0, 3)
    assert "Largest difference from the source" in text


def test_reasons_that_differ_in_names_are_one():
    read = "the output of {} is read by 2 nodes, not by this one alone; Relu {} is not affine"
    sites = [site(str(i), kept=read.format(f"Add /b{i}/Add_{i}", f"/r.{i}")) for i in range(3)]
    text = html_page(make_report(sites))
    assert "<li><b>3</b> the output of Add is read by 2 nodes, not by this one alone; Relu is not affine</li>" in text
    rows = Page(text).rows
    assert rows[2][2] == read.format("Add /b2/Add_2", "/r.2")


def test_page_says_what_the_verdict_rests_on():
    report = make_report([site("a")])
    report["verify"]["unfolded"] |= {"inputs": 6, "judged": 6}
    report["verify"]["unfolded"]["outputs"][0] |= {"reference_error": 3e-7, "candidate_error": 4e-7}
    text = html_page(report)
    assert "Tried on 6 sets of inputs, random and difficult ones. The right answer, in float64, is known" in text
    assert "3.0e-07 \N{RIGHTWARDS ARROW} 4.0e-07" in text
    report["verify"]["unfolded"] |= {"inputs": 8, "judged": 0}
    report["inputs"] = {"data": "d.npz", "samples": 64, "left_out": 6}
    text = html_page(report)
    assert "Tried on 64 samples of d.npz (6 left out). The right answer, in float64, is known for none of them." in text


def test_page_marks_the_layers_that_differ():
    layers = [layer("a", 1e-7, 1e-7), layer("b", 1e-7, 0.2) | {"ok": False}]
    report = make_report([site("a"), site("b")], ok=False, layers=layers)
    report["verify"]["unfolded"] |= {"first_difference": "b", "notes": ["a note"]}
    text = html_page(report)
    assert re.findall(r'<tr class="bad"><th scope="row">(\w)', text) == ["b"]
    assert "<li><b>differs at</b> b</li><li><b>note</b> a note</li>" in text


def test_page_of_a_calibration():
    moved = {"channels": 3, "values": 1280, "mean_shift": 0.5, "var_ratio": 2.0, "constant": 1, "recovers": "it was so"}
    stayed = {"channels": 0, "values": 0, "mean_shift": None, "var_ratio": None, "constant": 0, "recovers": None}
    layers = [
        {"batch_norm": "a", **moved, "reason": None},
        {"batch_norm": "b", **stayed, "reason": "it is in a subgraph"},
    ]
    found = {"data": HOSTILE, "samples": 16, "left_out": 4, "batches": 2, "mode": "layers", "layers": layers}
    report = make_report([], fold=None, calibration=found, undo="o.undo.safetensors", unfolded="o.unfolded.onnx")
    text = html_page(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "4 samples were left out" in text
    shift, ratio = "0.5 old deviations", "\N{MULTIPLICATION SIGN} 2"
    assert page.rows == [
        ["a", "3", "1,280", shift, ratio, "it was so; 1 channels without variance"],
        ["b", "", "", "", "", "left as it is: it is in a subgraph"],
    ]
    assert "python -m export o.unfolded.onnx --undo o.undo.safetensors -o back.onnx" in text
    assert "Statistics" not in html_page(make_report([]))


def test_the_commonest_reasons_come_first():
    sites = [site(f"bn{i}", kept="common" if i < 5 else f"rare{i:02}") for i in range(30)]
    text = html_page(make_report(sites))
    assert "Why 30 stayed" in text
    assert re.findall(r"<li><b>\d+</b> (\w+)", text)[:2] == ["common", "rare05"]
    assert "and 16 reasons more" in text


def test_page_of_outputs_that_differ():
    text = html_page(make_report(many(2), ok=False))
    assert "NO: the outputs differ by more than 0.0001" in text
    assert "Verified" not in text


def test_page_where_nothing_was_written_and_measured():
    empty = {"latency_ms": {}, "latency_unoptimised_ms": {}, "verify": {"unfolded": None}, "output": None}
    page = Page(html_page(make_report([], **empty)))
    assert "nothing to prove" in "".join(page.texts)
    assert "Latency" not in "".join(page.texts)


def test_page_of_a_model_whose_batch_norms_were_kept():
    page = Page(html_page(make_report([], fold=None, latency_ms={"unfolded": 3.0}, latency_unoptimised_ms={})))
    text = "".join(page.texts)
    assert "before 3 ms" in text
    assert "speed-up" not in text


def test_html_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.html"
    write_html(make_report(many(2), source="gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\udc80.onnx"), path)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ModelError, match="must be in a folder that exists"):
        write_html(make_report([]), tmp_path / "nowhere" / "report.html")


# Charts


def heights(svg):
    circles = [float(y) for y in re.findall(r'<circle class="mark before" cx="[\d.]+" cy="([\d.]+)"', svg)]
    lines = [float(y) for y in re.findall(r'<line class="grid"[^>]* y1="([\d.]+)"', svg)]
    return circles, lines


def test_errors_are_on_a_logarithmic_axis():
    svg = errors_by_layer("e", [Point("a", 1e-7, None), Point("b", 1e-6, None), Point("c", 1e-5, None)])
    (low, middle, high), lines = heights(svg)
    assert low - middle == pytest.approx(middle - high, abs=0.11)
    assert low > high  # downwards is smaller
    assert low == max(lines)
    assert high == min(lines)


def test_errors_that_have_no_logarithm_are_at_the_edges():
    points = [
        Point("a", 0.0, 1e-7),
        Point("b", float("inf"), None),
        Point("c", float("nan"), None),
        Point("d", 1e-7, 0.0),
    ]
    svg = errors_by_layer("e", points)
    (zero, infinite, nan, finite), lines = heights(svg)
    assert zero == max(lines)
    assert infinite == nan == min(lines)
    assert min(lines) <= finite < zero - 20  # a power of ten, and yet above zero
    assert ">0</text>" in svg


def test_what_is_allowed_is_a_line_between_right_and_wrong():
    svg = errors_by_layer("e", [Point("a", 1e-7, None), Point("b", 1e-2, None)], 1e-4)
    (right, wrong), _ = heights(svg)
    [allowed] = [float(y) for y in re.findall(r'<line class="allowed"[^>]* y1="([\d.]+)"', svg)]
    assert right > allowed > wrong
    assert "allowed" not in errors_by_layer("e", [Point("a", 1e-7, None)])


@pytest.mark.parametrize("value", [0.0, 5e-324, 1.7e308])
def test_any_error_can_be_drawn(value):
    _, lines = heights(errors_by_layer("e", [Point("a", value, value)]))
    assert 2 <= len(lines) <= 11
    assert all(0 <= y <= 300 for y in lines)


@pytest.mark.parametrize("shared", [True, False])
def test_bars_are_to_scale(shared):
    svg = bars("t", [Group("a", 10, 5, str), Group("b", 2, 2, str), Group("c", 0, None, str)], shared=shared)
    a, half, b, same, nothing = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg))
    assert a == pytest.approx(2 * half)
    assert b == same == pytest.approx(a / 5 if shared else a)
    assert nothing == 1
    assert "after 5 (-50.0%)" in svg
    assert "after 2 (+0.0%)" in svg


def test_texts_of_charts_are_escaped():
    page = Page(bars(HOSTILE, [Group(HOSTILE, 1, 2, lambda value: HOSTILE)], shared=True))
    assert "script" not in page.tags
    assert "".join(page.texts).count(HOSTILE) == 3
    [label] = [value for name, value in page.attributes if name == "aria-label"]
    assert label.count(HOSTILE) == 5


# Which batch norms


def test_choice():
    names = ["/a/bn", "/a/bn2", "/b/bn", "odd[0]"]

    def chosen(**how):
        choice = Choice(**how)
        choice.check(names)
        return [name for name in names if choice(name)]

    assert chosen() == names
    assert chosen(only=["/a/*"]) == ["/a/bn", "/a/bn2"]
    assert chosen(only=["/a/bn", "odd[0]"]) == ["/a/bn", "odd[0]"]
    assert chosen(skip=["*/bn"]) == ["/a/bn2", "odd[0]"]
    assert chosen(only=["/a/*"], skip=["*bn2"]) == ["/a/bn"]


@pytest.mark.parametrize(("option", "way_out"), [("only", "nearest: layer1.bn1, "), ("skip", "nearest: layer1.bn1, ")])
def test_an_unknown_name_is_told_the_nearest(option, way_out):
    names = ["layer1.bn1", "layer1.bn2", "stem"]
    with pytest.raises(ArgumentError, match=f"--{option} must name .*, got 'layer1.bnn1'; {way_out}"):
        Choice(**{option: ["stem", "layer1.bnn1"]}).check(names)
    with pytest.raises(ArgumentError, match="--inspect lists them"):
        Choice(**{option: ["zzzzzzzz*"]}).check(names)


# What is in a model


def inspect(model):
    return inspect_model(ir.from_proto(model))


def test_inspection_of_a_model():
    model, arrays = conv_bn(np.random.default_rng(0))
    model.producer_name = "torch"
    found = inspect(model)
    assert (found.ir_version, found.opsets, found.producer) == (8, {"": 17}, "torch")
    assert [(port.name, port.dtype, port.shape) for port in found.inputs] == [("x", "float", "[N, 2, 6, 6]")]
    assert [port.name for port in found.outputs] == ["y"]
    assert (found.nodes, found.parameters, found.bytes) == (2, 66, 264)
    [norm] = found.batch_norms
    assert (norm.batch_norm, norm.channels, norm.producer, norm.consumers) == ("y", 3, "Conv c", ("output",))
    assert norm.eps == pytest.approx(1e-5)
    for role, key in (("gamma", "s"), ("beta", "b"), ("mean", "m"), ("variance", "v")):
        assert getattr(norm, role) == (arrays[key].min(), arrays[key].max())
    assert norm.findings == ()
    assert found.ok


def ones(**changes):
    arrays = {"s": [1.0, 2, 3], "b": [0.5] * 3, "m": [0.1] * 3, "v": [1.0, 2, 3]}
    return {name: np.array(changes.get(name, values), np.float32) for name, values in arrays.items()}


@pytest.mark.parametrize(
    ("changes", "attributes", "severity", "what"),
    [
        ({"s": [0, 0, 0]}, "", "warning", "gamma is 0 in all 3 channels"),
        ({"s": [0, 1, 1]}, "", "note", r"gamma is 0 in 1 of 3 channels \(0\)"),
        ({"m": [0, 0, 0], "v": [1, 1, 1]}, "", "error", "the initial values, in all 3 channels$"),
        ({"v": [1, 0, 1]}, "", "note", r"the variance is 0 in 1 of 3 channels \(1\).* 632 times"),
        ({"v": [1, 1e-6, 1]}, "", "note", "variance is down to 1e-06, below eps 1e-05, in 1 of 3 .* 603 times"),
        ({"v": [1, 0, 0]}, "<epsilon = 0.0>", "error", r"the variance is 0, without eps, in 2 of 3 channels \(1, 2\)"),
        ({"v": [1, -1, 1]}, "", "error", "the variance is -1 in 1 of 3"),
        ({"v": [1, np.nan, 1]}, "", "error", "variance is not finite in 1 of 3 channels"),
        ({"b": [np.inf, np.nan, 1]}, "", "error", "beta is not finite in 2 of 3 channels"),
        ({"b": [1, 1]}, "", "error", "its constants differ in length"),
    ],
)
def test_suspicious_values(changes, attributes, severity, what):
    body = f"y = BatchNormalization {attributes} (x, s, b, m, v)"
    found = inspect(text_model(body, ones(**changes), x="float[N, 3, 6, 6] x"))
    [norm] = found.batch_norms
    [finding] = norm.findings
    assert (finding.severity, finding.layer) == (severity, "y")
    assert re.search(what, finding.what), finding
    assert found.ok == (severity == "note")
    assert norm.producer == "input x"


@pytest.mark.parametrize("body", ["c = Conv(x, W, B)", "c = ConvTranspose(x, W, B)"])
def test_a_bias_before_a_batch_norm_is_noted(body):
    arrays = ones() | {"W": np.ones((3, 3, 1, 1), np.float32), "B": np.ones(3, np.float32)}
    [norm] = inspect(text_model(f"{body} {BN}", arrays, x="float[N, 3, 6, 6] x")).batch_norms
    [finding] = norm.findings
    assert (finding.severity, finding.kind, finding.number) == ("note", "useless-bias", 3)
    shared = text_model(f"{body} n = BatchNormalization(c, s, b, m, v) y = Add(n, c)", arrays, x="float[N, 3, 6, 6] x")
    assert inspect(shared).batch_norms[0].findings == ()


def test_training_mode_and_computed_constants():
    body = "w = Add(s, s) y, q, r = BatchNormalization <training_mode = 1> (x, w, g, m, v)"
    [norm] = inspect(text_model(body, ones(), x="float[N, 3, 6, 6] x, float[3] g")).batch_norms
    assert [(finding.severity, re.split("[:,]", finding.what)[0]) for finding in norm.findings] == [
        ("warning", "in training mode"),
        ("note", "its beta can be given by the caller"),
    ]
    assert norm.gamma == (2, 6)
    assert norm.beta is None
    assert norm.channels == 3


def test_statistics_that_the_caller_may_override_are_read_if_asked():
    model = text_model("y = BatchNormalization(x, s, b, m, v)", ones(), x="float[N, 3, 6, 6] x")
    model.graph.input.append(onnx.helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, [3]))
    [norm] = inspect(model).batch_norms
    assert norm.mean is None
    assert "allow_overridable takes its default" in norm.findings[0].what
    [norm] = inspect_model(ir.from_proto(model), allow_overridable=True).batch_norms
    assert norm.mean == (np.float32(0.1), np.float32(0.1))
    assert norm.findings == ()


DECOMPOSED = {"k": np.float32([2, 0, 4]).reshape(3, 1, 1), "t": np.float32([1, 2, 3]).reshape(1, 3, 1, 1)}


def test_decomposed_batch_norms_are_listed_beside_the_others():
    body = "c = Add(k, k) a = Mul(x, c) d = Sub(a, t) r = Relu(d) n = BatchNormalization(r, s, b, m, v) y = Mul(n, h)"
    model = text_model(body, ones() | DECOMPOSED | {"h": np.float32(2)}, x="float[N, 3, 6, 6] x")
    spelled, norm = inspect(model).batch_norms
    assert (spelled.batch_norm, spelled.operators, spelled.channels) == ("a", "Mul, Sub", 3)
    assert (spelled.gamma, spelled.beta, spelled.mean, spelled.eps) == ((0, 8), (-3, -1), None, None)
    assert (spelled.producer, spelled.consumers) == ("input x", ("Relu r",))
    assert [finding.what for finding in spelled.findings] == [
        "its scale is 0 in 1 of 3 channels (1): nothing of the input passes"
    ]
    assert (norm.batch_norm, norm.operators) == ("n", "BatchNormalization")


def test_the_names_of_an_inspection_are_those_of_a_fold():
    rng = np.random.default_rng(0)
    body = "n = BatchNormalization(a, s, b, m, v) p = Relu(n) o = BatchNormalization(p, s, b, m, v)"
    nodes = text_model(body, statistics(rng, 2), x="float a", y="float o").graph.node
    for node in nodes:
        node.name = ""
    names = ["a", "s", "b", "m", "v"]
    function = onnx.helper.make_function("my", "Block", names, ["o"], nodes, [onnx.helper.make_opsetid("", 17)])
    calls = "c = my.Block(x, s, b, m, v) y = my.Block(c, s, b, m, v)"
    model = text_model(calls, statistics(rng, 2))
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("my", 1))
    found = [norm.batch_norm for norm in inspect(model).batch_norms]
    assert found == [site.batch_norm for site in fold_onnx(model)[1].sites]
    assert found == ["n", "c", "n_2", "y"]
    assert inspect(model).nodes == fold_onnx(model)[1].before.nodes == 6
    read = ir.from_proto(model)
    inspect_model(read)
    assert len(read.graph) == 2  # nothing was inlined in the model itself


def test_batch_norms_in_functions_are_measured_on_data(tmp_path):
    """By the statistics of what they see: the second one's input is the first one's, cut and put right."""
    rng = np.random.default_rng(0)
    nodes = text_model("n = BatchNormalization(a, s, b, m, v) o = Relu(n)", {}, x="float a", y="float o").graph.node
    names = ["a", "s", "b", "m", "v"]
    model = text_model("c = my.Block(x, s, b, m, v) y = my.Block(c, s, b, m, v)", statistics(rng, 2))
    model.functions.append(
        onnx.helper.make_function("my", "Block", names, ["o"], nodes, [onnx.helper.make_opsetid("", 17)])
    )
    model.opset_import.append(onnx.helper.make_opsetid("my", 1))
    x = rng.normal(3, 2, (40, 2, 6, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    read = ir.from_proto(model)
    measured = measure(read, read_samples(tmp_path / "x.npy", model))
    first, second = measured.moments.values()
    np.testing.assert_allclose(first[0], x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(first[1], x.var((0, 2, 3)), rtol=1e-5)
    values = {tensor.name: numpy_helper.to_array(tensor)[:, None, None] for tensor in model.graph.initializer}
    inner = np.maximum(
        (x - first[0][:, None, None]) / np.sqrt(first[1] + 1e-5)[:, None, None] * values["s"] + values["b"], 0
    )
    np.testing.assert_allclose(second[0], inner.mean((0, 2, 3)), rtol=1e-4)
    listed = inspect_model(read, measured=measured).batch_norms
    assert all(norm.gap > 0.3 and norm.findings[0].kind == "gap" for norm in listed)
    assert measured.output.samples == 40


def test_batch_norms_in_subgraphs_are_listed():
    rng = np.random.default_rng(0)
    inner = "then_branch = one () => (float[N, 2, 6, 6] p) { p = BatchNormalization(x, s, b, m, v) }"
    other = "else_branch = two () => (float[N, 2, 6, 6] q) { q = Identity(x) }"
    model = text_model(f"c = Constant <value = bool {{1}}> () y = If (c) <{inner}, {other}>", statistics(rng, 2))
    found = inspect(model)
    assert len(found.batch_norms) == 1
    assert found.nodes == 4


def test_an_inspection_changes_nothing():
    model, _ = conv_bn(np.random.default_rng(0))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "unused"))
    read = ir.from_proto(model)
    before = ir.to_proto(read).SerializeToString()
    inspect_model(read)
    assert ir.to_proto(read).SerializeToString() == before
    assert isinstance(model, onnx.ModelProto)
