"""One model of every kind is cut exactly and takes an FCFD step; `benchmarks.coverage` does all of them."""

import json

import pytest

from benchmarks.coverage import CHECKS, PAGE, RESULT, measure, page, verdict

QUICK = [
    "torchvision/mobilenet_v3_small",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "timm/test_convnext",
    "timm/test_maxvit",
    "timm/test_vit",
    "transformers/Bert",
    "transformers/CLIP",
    "transformers/Llama",
    "transformers/Segformer",
    "transformers/Swin",
    "transformers/T5",
    "transformers/Wav2Vec2",
    "transformers/Yolos",
]
OTHERS = [
    "torchvision/alexnet",
    "torchvision/densenet121",
    "torchvision/efficientnet_b0",
    "torchvision/fcn_resnet50",
    "torchvision/googlenet",
    "torchvision/regnet_y_400mf",
    "torchvision/retinanet_resnet50_fpn",
    "torchvision/swin_t",
    "timm/coat_tiny",
    "timm/crossvit_tiny_240",
    "timm/efficientformerv2_s0",
    "timm/levit_128s",
    "timm/mobilevit_xxs",
    "timm/pvt_v2_b0",
    "timm/tiny_vit_5m_224",
    "timm/xcit_nano_12_p16_224",
    "transformers/GPT2",
    "transformers/Mamba",
    "transformers/Whisper",
]

NO_STEP = {"timm/levit_128s": "may be 'b t c' or 'b c t'"}
"""Why `link` refuses a model that is cut exactly."""

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own


@pytest.mark.parametrize("name", QUICK)
def test_a_model_of_every_kind(name):
    row = measure(name)
    assert verdict(row) == "exact", row
    if name in NO_STEP:
        assert NO_STEP[name] in row["step"]
    else:
        assert row.get("step", True) is True, row


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_more_models(name):
    test_a_model_of_every_kind(name)


def test_the_page_is_up_to_date_and_so_is_the_claim():
    rows = json.loads(RESULT.read_text())["rows"]
    assert PAGE.read_text() == page(PAGE.read_text(), rows), "run python -m benchmarks.coverage --page"
    words = [verdict(row) for row in rows]
    assert words.count("exact") / len(words) >= 0.97
    assert set(words) == {"exact", "refused"}, "a failure is a refusal, never a wrong number"


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
