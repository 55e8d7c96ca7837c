"""Mamba's mixers of a rank: numbers by hand, and what two ranks have is what is joined."""

import pytest

from ckpt_tool.readers.megatron.cuts import WHOLE, Cut, find_cut

MIXER = "decoder.layers.3.mixer."
#: One rank's: two heads of three, one group whose state is seven, and a model of six.
BESIDE = {
    f"{MIXER}in_proj.weight": (28, 6),
    f"{MIXER}conv1d.weight": (20, 1, 4),
    f"{MIXER}conv1d_weight": (20, 1, 4),
    f"{MIXER}conv1d.bias": (20,),
    f"{MIXER}A_log": (2,),
    f"{MIXER}norm.weight": (6,),
    f"{MIXER}out_proj.weight": (6, 6),
}
INPUTS, CONVOLVED = (6, 6, 7, 7, 2), (6, 7, 7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("in_proj.weight", Cut(0, sections=INPUTS)),
        ("conv1d.weight", Cut(0, sections=CONVOLVED)),
        ("conv1d_weight", Cut(0, sections=CONVOLVED)),
        ("conv1d.bias", Cut(0, sections=CONVOLVED)),
        ("A_log", Cut(0)),
        ("norm.weight", Cut(0)),
        ("out_proj.weight", Cut(1)),
    ],
)
def test_each_part_is_cut_by_itself(name, expected):
    assert find_cut(MIXER + name, BESIDE) == expected
    falcon = {key.replace("mixer", "mamba_mixer"): shape for key, shape in BESIDE.items()}
    assert find_cut(f"decoder.layers.3.mamba_mixer.{name}", falcon) == expected


def test_norms_before_it_are_whole_and_others_are_no_mixers():
    shapes = {f"{MIXER}in_proj.layer_norm_weight": (6,), "decoder.layers.3.norm.weight": (6,)}
    assert all(find_cut(name, shapes) == WHOLE for name in shapes)


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {f"{MIXER}A_log": (2,)},
        {f"{MIXER}A_log": (), f"{MIXER}out_proj.weight": (6, 6)},
        {f"{MIXER}A_log": (2,), f"{MIXER}out_proj.weight": (6,)},
        {f"{MIXER}A_log": (3,), f"{MIXER}out_proj.weight": (6, 6)},  # an odd rest
        {f"{MIXER}A_log": (2,), f"{MIXER}out_proj.weight": (6, 13)},  # nothing is left
    ],
)
def test_without_what_says_the_sizes_there_are_no_parts(beside):
    name = f"{MIXER}in_proj.weight"
    assert find_cut(name, {name: (28, 6), **beside}) == Cut(0)


def test_a_scalar_is_whole():
    assert find_cut(f"{MIXER}A_log", {f"{MIXER}A_log": ()}) == WHOLE


def test_pieces_of_two_ranks():
    """Of 56 rows the second rank has the second halves of five parts."""
    cut = Cut(0, sections=INPUTS)
    assert cut.whole((28, 6), 2) == (56, 6)
    found = [(start, box.offsets[0], box.sizes) for start, box in cut.pieces((28, 6), 1, 2)]
    assert found == [
        (0, 6, (6, 6)),
        (6, 18, (6, 6)),
        (12, 31, (7, 6)),
        (19, 45, (7, 6)),
        (26, 54, (2, 6)),
    ]
    assert cut.text() == "Shard(0), 5 parts"
