"""WAR and UAR as published."""

import json
from pathlib import Path

import pytest

from verl_omni.metrics import uar, war

CASES = json.loads((Path(__file__).parent / "golden/war_uar.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_war_and_uar_equal_the_original(case):
    assert war(case["y_true"], case["y_pred"]) == pytest.approx(case["war"], abs=1e-9)
    assert uar(case["y_true"], case["y_pred"]) == pytest.approx(case["uar"], abs=1e-9)


@pytest.mark.parametrize("metric", [war, uar])
def test_nothing_to_measure_is_an_error(metric):
    with pytest.raises(ValueError, match="0 labels"):
        metric([], [])
    with pytest.raises(ValueError, match="1 labels and 2 predictions"):
        metric(["happy"], ["happy", "sad"])
