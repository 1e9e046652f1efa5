"""One model of every kind is cut exactly and takes an FCFD step; `benchmarks.coverage` does all of them."""

import pytest

from benchmarks.coverage import CHECKS, measure, page, verdict

QUICK = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
]
OTHERS = [
    "timm/levit_128s",
    "timm/efficientformerv2_s0",
    "timm/tiny_vit_5m_224",
    "timm/test_vit",
    "timm/test_convnext",
    "timm/test_maxvit",
    "timm/coat_tiny",
    "timm/pvt_v2_b0",
    "timm/xcit_nano_12_p16_224",
    "timm/mobilevit_xxs",
    "transformers/Bert",
    "transformers/T5",
    "transformers/Llama",
    "transformers/GPT2",
    "transformers/Whisper",
    "transformers/CLIP",
    "transformers/Swin",
    "transformers/Segformer",
    "transformers/Wav2Vec2",
    "transformers/Mamba",
]

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own


@pytest.mark.parametrize("name", QUICK)
def test_a_classifier_of_every_kind(name):
    row = measure(f"torchvision/{name}")
    assert verdict(row) == "exact", row
    assert row["step"] is True, row


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_libraries(name):
    pytest.importorskip(name.partition("/")[0])
    row = measure(name)
    assert verdict(row) == "exact", row


def test_the_page_shows_what_was_found():
    rows = [
        {"model": "timm/a", "stages": ["x"], "seconds": 2.0, **dict.fromkeys(CHECKS[:3], True)},
        {"model": "timm/b", "refused": "split: no."},
        {"model": "torchvision/c", "stages": ["x"], "seconds": 1.0, **dict.fromkeys(CHECKS[:3], False)},
    ]
    text = page("before\n<!-- coverage -->\nold\n<!-- end -->\nafter\n", rows)
    assert text.startswith("before\n<!-- coverage -->\n| library | models |")
    assert "| timm | 2 | 1 | 1 of 1 | 1 of 1 | 1 of 1 | 0 of 0 | 2.0 |" in text
    assert "- `timm/b`: refused. split: no.\n- `torchvision/c`: differs." in text
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in text
