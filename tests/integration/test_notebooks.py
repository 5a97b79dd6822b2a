"""Every cell of docs/notebooks/ runs, with smaller numbers."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
SMALL: dict[str, Any] = {
    "data.resize.short_side": 64,
    "data.resize.long_side": 64,
    "data.augment.crop": 64,
    "data.batch_size": 4,
    "model.backbone.name": "test_resnet",
    "model.backbone.weights": "",
    "model.head.channels": 16,
    "model.decode.score_floor": 0.0,
    "evaluate.overlays": 1,
}
PARAMETERS: dict[str, Any] = {"IMAGES": 16, "HELD_OUT": 4, "SIDE": 64, "EPOCHS": 1, "SETTINGS": SMALL}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in json.loads(path.read_text())["cells"]:
        assert cell.get("outputs", []) == [], "notebooks are stored without their outputs"
        if cell["cell_type"] == "code":
            shown.append(run_cell("".join(cell["source"]), names))
            if "parameters" in cell["metadata"].get("tags", []):
                names |= PARAMETERS
    assert any(hasattr(value, "_repr_png_") for value in shown) or path.stem == "compare_and_promote"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does, and give the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None
