"""``--inspect`` as text."""

from typing import Any, TextIO

from fastbn._tables import Row, print_line, print_table

COLUMNS = ("batch norm", "operators", "channels", "eps", "reads", "read by", "gamma", "beta", "mean", "variance")


def print_inspection(listing: dict[str, Any], file: TextIO | None = None) -> None:
    """An ``Inspection`` as a dictionary, ``source`` among its keys: the model's lines, a row for each batch norm."""
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in listing["opsets"].items())
    lines = [("read", listing["source"]), ("opset", opsets), ("IR version", str(listing["ir_version"]))]
    if listing["producer"]:
        lines.append(("made by", listing["producer"]))
    for label in ("inputs", "outputs"):
        ports = [f"{port['name']}: {port['dtype']} {port['shape']}" for port in listing[label]]
        lines += [(label if index == 0 else "", port) for index, port in enumerate(ports)]
    lines += [(key, f"{listing[key]:,}") for key in ("nodes", "parameters", "bytes")]
    norms = listing["batch_norms"]
    suspicious = [index for index, norm in enumerate(norms) if norm["warnings"]]
    lines.append(("batch norms", f"{len(norms):,}, {len(suspicious):,} with warnings" if norms else "none"))
    for label, text in lines:
        print_line(f"{label:<14}{text}", file)
    if norms:
        print_table(COLUMNS, [_row(norm) for norm in norms], file, marked=suspicious)
    for norm in norms:
        for warning in norm["warnings"]:
            print_line(f"{'warning':<14}{norm['batch_norm']}: {warning}", file)


def _row(norm: dict[str, Any]) -> Row:
    return (
        norm["batch_norm"],
        "" if norm["operators"] == "BatchNormalization" else norm["operators"],
        "?" if norm["channels"] is None else f"{norm['channels']:,}",
        "?" if norm["eps"] is None else f"{norm['eps']:g}",
        norm["producer"],
        ", ".join(norm["consumers"]),
        *(_range(norm[role]) for role in ("gamma", "beta", "mean", "variance")),
    )


def _range(values: tuple[float, float] | None) -> str:
    return "?" if values is None else f"{values[0]:.3g} .. {values[1]:.3g}"
