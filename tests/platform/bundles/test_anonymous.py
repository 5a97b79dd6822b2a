"""Settings and texts lose the places of a machine, and keep what says what was used."""

import pytest

from posefleet.platform.bundles.anonymous import without_places


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/jane/data/shards/val2017", "val2017"),
        ("/home/jane/data/coco@val2017", "coco@val2017"),
        ("/home/jane doe/my data/val/", "val"),
        ("/home/jane", "***"),
        ("~", "***"),
        ("~jane/x/runs", "runs"),
        ("s3://company-bucket/jane/val2017", "val2017"),
        ("sqlite:////home/jane/mlflow.db", "mlflow.db"),
        ("https://jane:secret@mlflow.company.com/store?token=abcdefgh", "store"),
        ("names of /home/jane/val.json, sigmas of file:///x/y.yaml", "names of val.json, sigmas of y.yaml"),
        ("models:/smpr@champion", "models:/smpr@champion"),
        ("left/right, 1/2 of it", "left/right, 1/2 of it"),
        ("coco17", "coco17"),
    ],
)
def test_a_text(text: str, kept: str) -> None:
    assert without_places({"a": [text, 3, None]}) == {"a": [kept, 3, None]}
