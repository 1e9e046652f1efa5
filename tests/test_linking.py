"""Link: which bridges are built, of which form, and that probing shapes changes nothing."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fcfd
from fcfd import losses
from fcfd.bridges import identity, multi_bridge

from .nets import batch, pair, stages
from .purity import assert_unchanged, snapshot


def _networks():
    torch.manual_seed(0)
    teacher, student = nn.ModuleList(stages(4)).double(), nn.ModuleList(stages(3)).double()
    return teacher, student, {"t": fcfd.split(list(teacher)), "s": fcfd.split(list(student))}


def _built(nets) -> dict[str, list[str]]:
    return {column: list(bridges) for column, bridges in nets.bridges.items()}


def test_by_default_the_bridges_that_fcfd_uses_are_built():
    *_, nets = pair()
    assert nets.crossings == ("sttt", "sstt", "tsss", "ttss")
    assert _built(nets) == {"s>t": ["0", "1", "2"], "t>s": ["0", "1"]}


def test_a_stem_is_left_alone():
    *_, networks = _networks()
    nets = fcfd.link(networks, example=batch()[0], first=2)
    assert nets.crossings == ("sstt", "ttss")
    assert _built(nets) == {"s>t": ["1", "2"], "t>s": ["1"]}


def test_only_the_bridges_of_the_given_paths_are_built():
    *_, networks = _networks()
    nets = fcfd.link(networks, example=batch()[0], paths=("ttss", "sss>t", "sstt"))
    assert _built(nets) == {"t>s": ["1"], "s>t": ["2", "1"]}
    assert nets.crossings == ("ttss", "sstt")


def test_a_path_that_crosses_twice_has_both_bridges():
    *_, networks = _networks()
    nets = fcfd.link(networks, example=batch()[0], paths=("stss",))
    assert _built(nets) == {"s>t": ["0"], "t>s": ["1"]}
    values, written = fcfd.walk(fcfd.plan(nets.crossings), *nets.columns, {"": batch()[0]})
    assert values["stss"].shape == (4, 10)
    settled = fcfd.merge_buffers(nets.buffers, written)
    assert not torch.equal(settled["s>t"]["0.bn.running_mean"], nets.buffers["s>t"]["0.bn.running_mean"])
    assert torch.equal(settled["t>s"]["1.bn.running_mean"], nets.buffers["t>s"]["1.bn.running_mean"])


def test_probing_shapes_changes_nothing():
    teacher, student, networks = _networks()
    dropout = nn.Dropout(0.5)
    networks["s"] = fcfd.split([*student[:-1], nn.Sequential(dropout, student[-1])])
    images, _ = batch()
    before = snapshot(teacher, student, dropout, networks["s"].buffers, networks["t"].buffers, images)
    torch.manual_seed(7)
    first = torch.rand(1)
    torch.manual_seed(7)
    fcfd.link(networks, example=images, bridges={"s>t": nn.Conv2d(3, 4, 1).double()})
    before[0] = torch.get_rng_state()
    assert_unchanged(before, teacher, student, dropout, networks["s"].buffers, networks["t"].buffers, images)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), first)


def test_rectified_targets_give_a_bridge_with_an_activation():
    def network(*, rectified):
        tail = nn.ReLU() if rectified else nn.Identity()
        return fcfd.split(
            [nn.Sequential(nn.Conv2d(3, 4, 3), tail), nn.Sequential(nn.Flatten(), nn.Linear(144, 2))]
        )

    images = batch(dtype=torch.float32)[0]
    nets = fcfd.link(
        {"s": network(rectified=False), "t": network(rectified=True)},
        example=images,
        paths=("s>t", "t>s"),
    )
    assert hasattr(nets.bridges["s>t"]["0"], "act")
    assert not hasattr(nets.bridges["t>s"]["0"], "act")


def test_the_student_trains_and_every_other_network_is_frozen():
    _, student, networks = _networks()
    nets = fcfd.link(networks | {"b": networks["t"]}, example=batch()[0])
    assert all(nets.params["s"][name] is tensor for name, tensor in student.named_parameters())
    assert not any(tensor.requires_grad for letter in "tb" for tensor in nets.params[letter].values())
    assert all(tensor.requires_grad for column in ("s>t", "t>s") for tensor in nets.params[column].values())


def test_bridges_are_an_ordinary_module():
    *_, nets = pair()
    other = pair()[-1]
    other.bridges.load_state_dict(nets.bridges.state_dict())
    for name, tensor in nets.bridges.named_parameters():
        assert tensor is nets.params[name[:3]][name[4:]]
        assert tensor.dtype == torch.float64
    optimizer = torch.optim.SGD(nets.bridges.parameters(), lr=0.1)
    images, labels = batch()
    loss, _ = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
    loss.backward()
    optimizer.step()
    moved, _ = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
    assert moved.item() != loss.item()


class Blend(nn.Module):
    """Half of the bridged feature, half of what the target network has there."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(6, 8, 1)

    def forward(self, pair):
        feature, seen = pair
        return (self.map(feature) + seen) / 2


def test_a_bridge_may_see_the_target_s_feature():
    *_, networks = _networks()
    blend = Blend().double()
    images, _ = batch()
    nets = fcfd.link(networks, example=images, paths=("ss&ttt",), bridges={"ss&t": blend})
    values, _ = fcfd.walk(fcfd.plan(["ss&ttt"]), *nets.columns, {"": images})
    torch.testing.assert_close(values["ss&t"], (blend.map(values["ss"]) + values["tt"]) / 2)
    assert nets.crossings == ("ss&ttt",)


def test_a_module_of_one_s_own_may_stand_anywhere():
    *_, networks = _networks()
    own = nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(inplace=True)).double()
    nets = fcfd.link(networks, example=batch()[0], bridges={"ss>t": own})
    assert nets.bridges["s>t"]["1"] is own
    assert _built(nets) == {"s>t": ["0", "1", "2"], "t>s": ["0", "1"]}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"teacher": "q"}, "link: there is no network 'q', only 't', 's'"),
        (
            {"bridges": {"ss>t": nn.Conv2d(6, 7, 1).double()}},
            "your bridge 'ss>t' returns [4, 7, 4, 4]; the feature",
        ),
        ({"bridges": {"ss>t": nn.Conv2d(5, 8, 1).double()}}, "your bridge 'ss>t' cannot read the feature"),
        ({"bridges": {"tt>q": nn.Identity()}}, "no path needs your bridge 'tt>q', only 's>t', 'ss>t'"),
        ({"paths": ("ss&tt",)}, "'ss&t' needs a bridge that sees its target: pass bridges={'ss&t': ...}"),
        ({"paths": ("sq",)}, "link: path 's>q' needs network 'q', which is not given"),
        (
            {"paths": ("ssss>t",)},
            "link: path 'ssss>t' is too long: networks of 4 stages have features to bridge",
        ),
        ({"paths": ("sssst",)}, "link: path 'ssss>t' is too long"),
    ],
)
def test_what_does_not_fit_is_refused(options, text):
    *_, networks = _networks()
    with pytest.raises(ValueError, match="^link: ") as error:
        fcfd.link(networks, example=batch()[0], **options)
    assert text in str(error.value)


def test_a_longer_network_is_joined_where_its_resolutions_match():
    """Five stages at 8, 8, 4, 2 pixels against three at 8 and 4: the teacher's second and third are met."""

    def block(channels, out, stride):
        return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU())

    def head(channels):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    teacher = [block(3, 4, 1), block(4, 4, 1), block(4, 8, 2), block(8, 8, 2), head(8)]
    student = [block(3, 3, 1), block(3, 3, 2), head(3)]
    images, labels = batch(dtype=torch.float32)
    nets = fcfd.link({"t": fcfd.split(teacher), "s": fcfd.split(student)}, example=images)
    assert nets.names == {"t": ("1", "2", "4"), "s": ("0", "1", "2")}
    assert nets.crossings == ("stt", "tss")
    loss, aux = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
    assert aux.values["tt"].shape == (4, 8, 4, 4)
    whole = nn.Sequential(*teacher)
    torch.testing.assert_close(aux.values["ttt"], whole(images))
    loss.backward()


def test_networks_may_read_other_inputs():
    def network(pixels):
        return fcfd.split(
            [
                nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
                nn.Sequential(nn.Flatten(), nn.Linear(pixels**2, 3)),
            ]
        )

    example = {"s": torch.randn(2, 3, 8, 8), "t": torch.randn(2, 3, 16, 16)}
    nets = fcfd.link({"s": network(8), "t": network(16)}, example=example, paths=("st", "ts", "s>t"))
    loss, aux = losses.fcfd(*nets.columns, example, torch.tensor([0, 2]), paths=nets.crossings)
    assert aux.values["s>t"].shape == aux.values["t"].shape == (2, 4, 8, 8)
    loss.backward()


class Pyramid(nn.Module):
    """Maps of several sizes."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, width, 3, 2**at, 1) for at in range(levels))

    def forward(self, x):
        return {f"p{at}": level(x) for at, level in enumerate(self.levels)}


class Tower(nn.Conv2d):
    """The same convolution on every level."""

    def forward(self, maps):
        return pytree.tree_map(super().forward, maps)


def detector(width: int, levels: int) -> fcfd.Network:
    first = Pyramid(width, levels) if levels > 1 else nn.Conv2d(3, width, 3, 1, 1)
    return fcfd.split([first, Tower(width, width, 1), Head(width, 10)])


class Head(nn.Linear):
    """Reads a pyramid, or one map."""

    def forward(self, maps):
        return super().forward(
            sum(x.mean((2, 3)) for x in (maps.values() if isinstance(maps, dict) else [maps]))
        )


@pytest.mark.parametrize("student_levels", [3, 2])
def test_pyramids_are_bridged_level_by_level_or_all_to_all_where_asked_for(student_levels):
    networks = {"t": detector(6, 3), "s": detector(4, student_levels)}
    images, labels = batch(dtype=torch.float32)
    own = {}
    if student_levels == 2:
        text = r"'s>t' leads from 2 tensors to 3, and nothing tells which belong together.*multi_bridge"
        with pytest.raises(ValueError, match=text):
            fcfd.link(networks, example=images)
        ends = {letter: one.stages[0](one.params, one.buffers, images)[0] for letter, one in networks.items()}
        for a, b in ("st", "ts"):
            for at in (1, 2):
                own[f"{a * at}>{b}"] = multi_bridge(ends[a], ends[b])
        own.pop("tt>s")
    nets = fcfd.link(networks, example=images, bridges=own)
    rows = nets.bridges["s>t"]["0"].rows
    sources = [list(row) for row in rows]
    assert sources == ([["0"], ["1"], ["2"]] if student_levels == 3 else [["0", "1"]] * 3)

    def loss():
        return losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)

    before, aux = loss()
    maps = aux.values["s>t"]
    assert {name: x.shape for name, x in maps.items()} == {
        name: x.shape for name, x in aux.values["t"].items()
    }
    tensors = pytree.tree_leaves(maps), pytree.tree_leaves(aux.values["t"])
    wanted = [nn.functional.mse_loss(ours, theirs) for ours, theirs in zip(*tensors, strict=True)]
    torch.testing.assert_close(aux.parts["feature/s>t"], sum(wanted) / 3)
    optimizer = torch.optim.SGD([*nets.params["s"].values(), *nets.bridges.parameters()], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss()[0].backward()
        optimizer.step()
    assert loss()[0] < before


def test_a_map_is_bridged_to_a_pyramid_and_back():
    networks = {"t": detector(6, 2), "s": detector(4, 1)}
    images, labels = batch(dtype=torch.float32)
    nets = fcfd.link(networks, example=images)
    loss, aux = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
    loss.backward()
    assert nets.crossings == ("stt", "tss")
    assert aux.values["t>s"].shape == aux.values["s"].shape
    assert list(aux.values["s>t"]) == ["p0", "p1"]
    assert all(bool(own.grad.any()) for name, own in nets.bridges.named_parameters() if "conv" in name)


def test_features_that_hold_more_than_tensors_need_a_bridge_of_one_s_own():
    def two(x):
        return x, 3

    def head(x):
        return x[0].mean((2, 3))

    networks = {letter: fcfd.split([two, head]) for letter in "st"}
    with pytest.raises(ValueError, match=r"link: 's>t' leads between features that hold more than tensors"):
        fcfd.link(networks, example=batch()[0])


class Two(nn.Module):
    """Hands out more than is read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(3, width, 3, 2)

    def forward(self, x):
        return {"unread": self.first(x), "read": self.second(x)}


class ReadsOne(nn.Module):
    """Reads one map of two, and begins in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, 5)

    def forward(self, maps):
        return self.last(maps["read"].relu_().mean((2, 3)))


def test_what_the_next_stage_does_not_read_has_no_bridge_unless_a_path_compares_it():
    torch.manual_seed(0)
    models = {
        letter: nn.ModuleList([Two(width), ReadsOne(width)]) for letter, width in {"t": 6, "s": 4}.items()
    }
    networks = {letter: fcfd.split([*parts]) for letter, parts in models.items()}
    images, before = torch.rand(2, 3, 8, 8), snapshot(*models.values())
    with torch.random.fork_rng():  # bridges draw their weights
        nets = fcfd.link(networks, example=images, paths=("st", "ts"))
    assert_unchanged(before, *models.values())
    assert all(own.grad is None for model in models.values() for own in model.parameters())
    rows = {column: [len(row) for row in built["0"].rows] for column, built in nets.bridges.items()}
    assert rows == {"s>t": [0, 1], "t>s": [0, 1]}
    values, _ = fcfd.walk(fcfd.plan(("st", "ts")), *nets.columns, {"": images})
    (values["st"].sum() + values["ts"].sum()).backward()
    assert all(own.grad is not None for own in nets.bridges.parameters())
    nets = fcfd.link(networks, example=images, paths=("st", "s>t"))
    assert [len(row) for row in nets.bridges["s>t"]["0"].rows] == [1, 1]
    with torch.inference_mode():  # nothing tells there
        nets = fcfd.link(networks, example=images, paths=("st",))
    assert [len(row) for row in nets.bridges["s>t"]["0"].rows] == [1, 1]


def test_a_pyramid_of_another_form_is_refused():
    two = [torch.ones(1), torch.ones(1)]
    with pytest.raises(
        ValueError, match=r"^multi_level: the prediction holds 2 tensors as list, the target 1 as dict"
    ):
        fcfd.terms.multi_level(nn.functional.mse_loss)(two, {"a": torch.ones(1)})


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", ["t", "s", "ts"])
def test_bridges_are_in_float32_whatever_the_networks_are_in(half, which):
    """A bridge reads the source's type and writes the target's; its own weights train in float32."""
    torch.manual_seed(0)
    dtypes = {letter: half if letter in which else torch.float32 for letter in "ts"}
    networks = {
        letter: fcfd.split(list(nn.ModuleList(stages(3)).to(dtype).eval()))
        for letter, dtype in dtypes.items()
    }
    images, labels = batch(dtype=torch.float32)
    example = {letter: images.to(dtype) for letter, dtype in dtypes.items()}
    nets = fcfd.link(networks, example=example)
    assert {weight.dtype for weight in nets.bridges.parameters()} == {torch.float32}
    loss, aux = losses.fcfd(*nets.columns, example, labels, paths=nets.crossings)
    loss.backward()
    assert loss.isfinite()
    assert aux.values["s>t"].dtype == dtypes["t"]
    assert aux.values["ts"].dtype == dtypes["s"]
    assert all(weight.grad.isfinite().all() for name, weight in nets.bridges.named_parameters())


def test_link_under_autocast_builds_the_same_bridges():
    torch.manual_seed(0)
    networks = {letter: fcfd.split(list(nn.ModuleList(stages(3)))) for letter in "ts"}
    images, labels = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        nets = fcfd.link(networks, example=images)
    assert {weight.dtype for weight in nets.bridges.parameters()} == {torch.float32}
    loss, aux = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
    loss.backward()
    assert aux.values["s>t"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
    torch.testing.assert_close(half, loss, rtol=0.05, atol=0.0)


class Sound(nn.Module):
    """Two convolutions over time, and a classifier: features `[batch, channels, time]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(1, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(width, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 5)

    def parts(self) -> list:
        return [self.first, self.second, lambda x: x.mean(2), self.head]


def test_a_sequence_with_channels_first_is_stated_and_learns():
    torch.manual_seed(0)
    cut = {}
    for letter, width in (("t", 8), ("s", 6)):
        sound = Sound(width)
        cut[letter] = fcfd.split([sound.first, sound.second, nn.Sequential(Mean(), sound.head)])
    clips, labels = torch.randn(4, 1, 64), torch.tensor([0, 1, 2, 3])
    with pytest.raises(
        ValueError, match=r"feature 's', \[4, 6, 32\], may be 'b t c' or 'b c t' \(batch, channels"
    ):
        fcfd.link(cut, example=clips)
    nets = fcfd.link(cut, example=clips, layouts={"s": "b c t", "t": "b c t"})
    loss, aux = losses.fcfd(*nets.columns, clips, labels, paths=nets.crossings)
    assert aux.values["s"].shape == (4, 6, 1, 32)
    pooled = aux.values["ss>t"].relu().mean((2, 3)) - aux.values["tt"].relu().mean((2, 3))
    torch.testing.assert_close(aux.parts["pooled/ss>t"], pooled.square().mean())
    loss.backward()
    other, _ = losses.fcfd(*nets.columns, torch.randn(4, 1, 128), labels, paths=nets.crossings)
    assert other.isfinite()


class Mean(nn.Module):
    """The mean over time."""

    def forward(self, x):
        return x.mean(2)


@pytest.mark.parametrize(
    ("networks", "error", "text"),
    [
        ({"s": nn.Linear(2, 2)}, TypeError, "link: networks['s'] is a Linear; split it first"),
        ({"S": None}, ValueError, "a network is one letter a-z, not 'S'"),
    ],
)
def test_what_is_no_network_is_refused(networks, error, text):
    *_, good = _networks()
    networks = {letter: network if network is not None else good["t"] for letter, network in networks.items()}
    with pytest.raises(error) as found:
        fcfd.link(good | networks, example=batch()[0])
    assert text in str(found.value)


def test_layouts_of_nothing_are_refused():
    *_, networks = _networks()
    with pytest.raises(ValueError, match="link: layouts names 'q', which is no network and no feature"):
        fcfd.link(networks, example=batch()[0], layouts={"q": "b c h w"})


def test_paths_and_bridges_may_be_written_short():
    *_, networks = _networks()
    own = nn.Conv2d(6, 8, 1).double()
    nets = fcfd.link(networks, example=batch()[0], paths=("s2t2",), bridges={"s2>t": own})
    assert nets.crossings == ("sstt",)
    assert nets.bridges["s>t"]["1"] is own


class Fixed(nn.Module):
    """Returns a feature of some shape, whatever it reads."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.feature = nn.Parameter(torch.randn(1, *shape))

    def forward(self, x):
        return self.feature.expand(len(x), *self.feature.shape[1:])


@pytest.mark.parametrize("shape", [(16, 7, 7), (50, 24)])
def test_a_feature_of_images_keeps_their_ratio(shape):
    """So one reading fits: a map with its channels first; or a class token and 49 patches."""
    networks = {letter: fcfd.split([Fixed(*shape), nn.Flatten()]) for letter in "st"}
    images = torch.randn(2, 3, 28, 28)
    nets = fcfd.link(networks, example=images, paths=("s>t",))
    values, _ = fcfd.walk(fcfd.plan(["ss", "s>t"]), *nets.columns, {"": images})
    assert values["s"].shape == values["s>t"].shape == (2, *shape)


def test_channels_last_of_stages_by_hand_are_stated():
    """Eight channels of 8·4 pixels and 4 channels of 8·8 have one shape."""
    networks = {letter: fcfd.split([Fixed(8, 8, 4), nn.Flatten()]) for letter in "st"}
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"'s', \[2, 8, 8, 4\], may be 'b c h w' or 'b h w c'"):
        fcfd.link(networks, example=images, paths=("s>t",))
    nets = fcfd.link(networks, example=images, paths=("s>t",), layouts={"s": "b h w c", "t": "b c h w"})
    values, _ = fcfd.walk(fcfd.plan(["s>t"]), *nets.columns, {"": images})
    assert values["s"].shape == (2, 4, 8, 8)
    assert values["s>t"].shape == (2, 8, 8, 4)


def test_two_readings_are_both_named():
    class Square(nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), 16, 16, requires_grad=True)

    networks = {letter: fcfd.split([Square(), nn.Flatten()]) for letter in "st"}
    with pytest.raises(
        ValueError, match=r"'s', \[2, 16, 16\], may be 'b t c' or 'b c t' .* layouts=\{'s': ...\}"
    ):
        fcfd.link(networks, example=torch.randn(2, 3, 28, 28), paths=("s>t",))


# Bridges by a function


def _copies(*widths: int):
    return [nn.Linear(a, b) for a, b in pairwise(widths)]


def test_networks_of_one_architecture_need_no_bridge():
    networks = {"t": fcfd.split(_copies(6, 5, 4, 3)), "s": fcfd.split(_copies(6, 5, 4, 3))}
    x = torch.randn(4, 6)
    nets = fcfd.link(networks, example=x, paths=("stt", "sst", "tss", "s>t"), bridges=identity)
    assert not list(nets.bridges.parameters())
    values, _ = fcfd.walk(fcfd.plan(("stt", "sst", "tss", "s>t")), *nets.columns, {"": x})
    t, s = (networks[letter].stages for letter in "ts")

    def run(column, letter, at, x):
        return column[at](nets.params[letter], nets.buffers[letter], x)[0]

    first = run(s, "s", 0, x)
    torch.testing.assert_close(values["s>t"], first)
    torch.testing.assert_close(values["stt"], run(t, "t", 2, run(t, "t", 1, first)))


def test_where_shapes_differ_the_usual_bridge_stands():
    networks = {"t": fcfd.split(_copies(6, 5, 4, 3)), "s": fcfd.split(_copies(6, 5, 2, 3))}
    nets = fcfd.link(networks, example=torch.randn(4, 6), bridges=identity)
    assert isinstance(nets.bridges["s>t"]["0"], nn.Identity)
    assert list(nets.bridges["s>t"]["1"].parameters())


def test_a_builder_sees_both_features_and_makes_every_bridge():
    networks = {"t": fcfd.split(_copies(6, 5, 4, 3)), "s": fcfd.split(_copies(6, 2, 3, 3))}
    seen = []

    def builder(source, target):
        seen.append((tuple(source.shape), tuple(target.shape)))
        return nn.Linear(source.shape[1], target.shape[1])

    nets = fcfd.link(networks, example=torch.randn(4, 6), paths=("s>t", "sst"), bridges=builder)
    assert seen == [((4, 2), (4, 5)), ((4, 3), (4, 4))]
    assert nets.bridges["s>t"]["1"].weight.shape == (4, 3)


@pytest.mark.parametrize(
    "bridges, error, text",
    [
        (
            lambda source, target: "none",
            TypeError,
            r"what bridges\(source, target\) returned for 's>t' is of",
        ),
        (lambda source, target: nn.Linear(2, 2), ValueError, "'s>t'"),
        (nn.Identity(), TypeError, "bridges is of type Identity"),
        ([nn.Identity()], TypeError, "bridges is of type list"),
    ],
)
def test_what_builds_no_bridge_is_refused(bridges, error, text):
    networks = {"t": fcfd.split(_copies(6, 5, 3)), "s": fcfd.split(_copies(6, 2, 3))}
    with pytest.raises(error, match=f"^link: .*{text}"):
        fcfd.link(networks, example=torch.randn(4, 6), bridges=bridges)
