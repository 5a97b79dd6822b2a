"""Tests what keypoint names say: sides, mirror pairs, and differences of lists."""

import pytest

from posefleet.data.schemas.names import difference, mirror_pairs, permutation, same_names, without_partner


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_x", "right_x"), ("x_left", "x_right"), ("l_x", "r_x"), ("L_X", "R_X"), ("x_l", "x_r"), ("x.L", "x.R"),
        ("lefteye", "righteye"), ("eyeleft", "eyeright"), ("LeftEye", "RightEye"), ("LEFT_EYE", "RIGHT_EYE"),
        ("LShoulder", "RShoulder"), ("lShoulder", "rShoulder"), ("kneeL", "kneeR"), ("l-knee", "r-knee"),
        ("Left Eye", "Right Eye"), ("left eye", "right eye"), ("lknee", "rknee"), ("Lelbow", "Relbow"),
        ("L1", "R1"), ("left", "right"), ("l", "r"), ("L_F_Paw", "R_F_Paw"), ("LFPaw", "RFPaw"), ("FL_paw", "FR_paw"),
        ("HL_paw", "HR_paw"), ("l_eye", "eye_right"), ("left_eye_left_corner", "right_eye_right_corner"),
        ("left_eye_1", "right_eye_1"), ("lt_hip", "rt_hip"), ("face/left/brow", "face/right/brow"),
        ("fuehler_links", "fuehler_rechts"), ("Fühler Links", "Fühler Rechts"), ("linker_fuss", "rechter_fuss"),
        ("oeil_gauche", "oeil_droit"), ("patte_gauche", "patte_droite"), ("ojo_izquierdo", "ojo_derecho"),
        ("ojo_izq", "ojo_der"), ("occhio_sinistro", "occhio_destro"), ("olho_esquerdo", "olho_direito"),
        ("lft_hip", "rgt_hip"),
    ],
)  # fmt: skip
def test_left_and_right_are_found_in_any_spelling(left: str, right: str) -> None:
    assert mirror_pairs(["nose", right, "tail", left]) == ((left, right),)
    assert mirror_pairs(["nose", left]) == () and mirror_pairs([right, "nose"]) == ()


@pytest.mark.parametrize(
    "names",
    [
        ["lip", "rip"], ["lower_x", "rower_x"], ["lid", "rid"], ["lamp", "ramp"], ["load", "road"], ["light", "right"],
        ["left_eye", "right_ear"], ["l_eye", "left_eye", "right_eye"], list("abcdefghijklmnopqrstuvwxyz"),
        ["point_k", "point_l", "point_r"], ["eye", "nose"], ["left_eye_left", "right_eye_left"],
    ],
)  # fmt: skip
def test_there_are_no_false_pairs(names: list[str]) -> None:
    assert mirror_pairs(names) == ()


def test_sides_without_a_partner_are_named() -> None:
    assert without_partner(["nose", "left_eye", "right_eye", "left_ear", "lip"]) == ["left_ear"]
    assert without_partner(["l_eye", "left_eye", "right_eye"]) == ["l_eye", "left_eye", "right_eye"]
    assert without_partner(["point_k", "point_l", "point_r"]) == []


def test_names_are_the_same_in_any_spelling_but_not_in_any_order() -> None:
    assert same_names(["Left Eye", "nose"], ["left_eye", "Nose"])
    assert not same_names(["nose", "left_eye"], ["left_eye", "nose"])
    assert not same_names(["nose"], ["nose", "tail"])
    assert permutation(["nose", "l_eye", "r_eye"], ["right_eye", "nose", "left_eye"]) == [1, 2, 0]
    assert permutation(["nose", "tail"], ["nose", "neck"]) is None


def test_a_difference_shows_both_lists() -> None:
    assert difference(["nose", "L_Eye"], ["nose", "left_eye"], "a", "b") == ""
    text = difference(["nose", "tail"], ["nose", "neck", "hip"], "schema dog", "cats.json")
    assert text.splitlines() == [
        "schema dog and cats.json differ (2 against 3 keypoints):",
        "    0  nose      nose",
        "    1  tail  !=  neck",
        "    2  -     !=  hip",
    ]


def test_a_difference_in_order_shows_the_permutation() -> None:
    text = difference(["nose", "tail", "hip"], ["hip", "nose", "tail"], "a", "b")
    assert text.endswith("p = [1, 2, 0]")


def test_a_difference_of_long_lists_shows_what_differs() -> None:
    names = [f"point {i}" for i in range(133)]
    text = difference(names, [*names[:60], *(name + "x" for name in names[60:])], "a", "b")
    assert "point 59 " not in text and "point 60x" in text and text.endswith("and 33 more")
