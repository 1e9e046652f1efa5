"""Recipes: each published method's terms against the same method written out by hand on the same networks."""

import itertools

import pytest
import torch
from torch import nn

import fcfd
from fcfd import recipes
from fcfd.bridges import MaskedMix, MatchStatistics, identity
from fcfd.losses import cross_entropy, info_nce, kl, ofa, squared_error

from .nets import batch, stages


def _networks(letters: str) -> dict[str, fcfd.Network]:
    torch.manual_seed(0)
    widths = {"s": 3, "t": 4, "a": 4, "b": 5}
    return {
        letter: fcfd.split(list(nn.ModuleList(stages(widths[letter])).double().eval())) for letter in letters
    }


def _run(terms, letters="st", params=None, **options):
    images, labels = batch()
    needed = fcfd.reads(terms.values())
    nets = fcfd.link(_networks(letters), example=images, teacher=letters[1], paths=needed, **options)
    loss, aux = fcfd.objective(
        terms, nets.stages, params or nets.params, nets.buffers, {"": images, "Labels": labels}
    )
    return nets, loss, aux, labels


def _trained(nets, loss) -> dict[str, set[str]]:
    """What got a gradient, by column: the first part of each name (stage or bridge)."""
    loss.backward()
    return {
        column: {name.split(".")[0] for name, tensor in params.items() if tensor.grad is not None}
        for column, params in nets.params.items()
    }


def test_kd():
    _, loss, aux, labels = _run(fcfd.scaled(recipes.kd(4, temperature=2.0), {"label": 0.1, "kl": 0.9}))
    v = aux.values
    divergence = kl(v["ssss"], v["tttt"], temperature=2.0).mean()
    torch.testing.assert_close(loss, 0.1 * cross_entropy(v["ssss"], labels).mean() + 0.9 * divergence)


def test_hints():
    nets, loss, aux, _ = _run(fcfd.scaled(recipes.hints(("ss>t",)), 100.0))
    torch.testing.assert_close(loss, 100 * squared_error(aux.values["ss>t"], aux.values["tt"]).mean())
    assert "sss" not in aux.values, "nothing beyond the hint is computed"
    assert _trained(nets, loss) == {"s": {"0", "1"}, "t": set(), "s>t": {"1"}}


def test_simkd_trains_the_body_and_deploys_a_crossed_path():
    nets, loss, aux, _ = _run(recipes.simkd(4))
    torch.testing.assert_close(loss, squared_error(aux.values["sss>t"], aux.values["ttt"]).mean())
    assert _trained(nets, loss) == {"s": {"0", "1", "2"}, "t": set(), "s>t": {"2"}}
    deployed, _ = fcfd.walk(fcfd.plan(["ssst"]), *nets.columns, {"": batch()[0]})
    assert deployed["ssst"].shape == (4, 10)


def test_srrl():
    nets, loss, aux, labels = _run(fcfd.scaled(recipes.srrl(4), {"logits": 5.0}))
    v = aux.values
    pooled = (v["sss>t"].relu().mean((2, 3)) - v["ttt"].relu().mean((2, 3))).square().mean()
    logits = (v["ssst"] - v["tttt"]).square().mean()
    torch.testing.assert_close(loss, cross_entropy(v["ssss"], labels).mean() + pooled + 5 * logits)
    assert _trained(nets, loss) == {"s": set("0123"), "t": set(), "s>t": {"2"}}


def test_fula_compares_every_later_stage_and_trains_the_stitch_alone():
    terms = recipes.fula("sttt")
    images, _ = batch()
    stitch = {"s>t": nn.Conv2d(3, 4, 1).double()}
    nets = fcfd.link(_networks("st"), example=images, paths=("sttt",), bridges=stitch)
    params = nets.params | {"s": fcfd.frozen(nets.params["s"])}
    loss, aux = fcfd.objective(terms, nets.stages, params, nets.buffers, {"": images})
    v = aux.values
    pairs = [("s>t", "t"), ("st", "tt"), ("stt", "ttt"), ("sttt", "tttt")]
    by_hand = sum(
        ((v[a] - v[b]).flatten(1).square().sum(1) / v[b].flatten(1).square().sum(1)).mean() / 4
        for a, b in pairs
    )
    torch.testing.assert_close(loss, by_hand)
    assert _trained(nets, loss) == {"s": set(), "t": set(), "s>t": {"0"}}


def test_fula_may_weigh_the_depths():
    terms = recipes.fula("sstt", weights=(0.0, 0.0, 1.0))
    _, loss, aux, _ = _run(terms)
    torch.testing.assert_close(loss, aux.parts["latent/sstt"])
    with pytest.raises(ValueError, match=r"fula: 2 weights for the 3 values \['ss>t', 'sst', 'sstt'\]"):
        recipes.fula("sstt", weights=(1.0, 2.0))


def test_the_hybrid_assistant_learns_and_teaches():
    terms = fcfd.scaled(recipes.hybrid_assistant(4, gamma=1.5), {"ofa": 0.5})
    nets, loss, aux, labels = _run(terms)
    v = aux.values

    def nce(a, b):
        return info_nce(a.mean((2, 3)), b.mean((2, 3)), temperature=0.1)

    logits = sum(
        ofa(v[a], v[b].detach(), labels, gamma=1.5).mean()
        for a, b in (("sstt", "tttt"), ("ssss", "tttt"), ("ssss", "sstt"))
    )
    features = nce(v["sst"], v["ttt"]) + nce(v["sss>t"], v["ttt"]) + nce(v["sss>t"], v["sst"].detach())
    by_hand = cross_entropy(v["ssss"], labels).mean() + 0.5 * logits + features
    torch.testing.assert_close(loss, by_hand)
    names = list(nets.params["s>t"])
    got = torch.autograd.grad(loss, [nets.params["s>t"][name] for name in names], retain_graph=True)
    wanted = torch.autograd.grad(by_hand, [nets.params["s>t"][name] for name in names])
    for name, a, b in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_assistant_as_a_target_gets_no_gradient():
    nets, _, aux, _ = _run(recipes.hybrid_assistant(4))
    aux.parts["ofa/student-assistant"].backward()
    assert all(tensor.grad is None for tensor in nets.params["s>t"].values())


def test_several_teachers_are_several_fcfds_with_the_labels_once():
    of_a = recipes.fcfd(4, ("ssaa", "aass"), fcfd.bridged(4, ("sa",)), teacher="a")
    of_b = recipes.fcfd(4, ("bbss",), fcfd.bridged(4, ("sb",)), teacher="b")
    terms = fcfd.scaled(recipes.multi_teacher({"a": of_a, "b": of_b}), {"label": 2.0})
    nets, loss, aux, _ = _run(terms, "sab")
    of_a, of_b = fcfd.scaled(of_a, {"label": 0.0}), fcfd.scaled(of_b, {"label": 0.0})
    apart = sum(fcfd.weighted_sum(own, fcfd.evaluate(own, aux.values)) for own in (of_a, of_b))
    torch.testing.assert_close(loss, 2 * aux.parts["label"] + apart)
    trained = _trained(nets, loss)
    assert trained["a"] == trained["b"] == set()
    assert trained["s>a"] == trained["s>b"] == {"0", "1", "2"}
    assert trained["a>s"] == trained["b>s"] == {"1"}


def test_a_path_that_crosses_twice_is_a_path():
    """Student, teacher, student: at its teacher stage it is compared, and at the logits."""
    terms = fcfd.scaled(recipes.function(4, ("stss",), temperature=2.0), {"feature": 3.0})
    assert list(terms) == ["feature/st", "kl/stss"]
    nets, loss, aux, _ = _run(terms)
    v = aux.values
    feature = squared_error(v["st"], v["tt"]).mean()
    torch.testing.assert_close(loss, 3 * feature + kl(v["stss"], v["tttt"], temperature=2.0).mean())
    assert _trained(nets, loss) == {"s": set("023"), "t": set(), "s>t": {"0"}, "t>s": {"1"}}


def test_crossing_through_a_bridge_that_sees():
    """CrossKD's and MiPKD's bridges: the crossed path reads the target network's own feature too."""
    terms = recipes.function(4, ("ss&ttt",))
    assert list(terms) == ["feature/ss&tt", "pooled/ss&tt", "kl/ss&ttt"]
    same_width = {"s": _networks("t")["t"], "t": _networks("t")["t"]}
    images, _ = batch()
    nets = fcfd.link(same_width, example=images, paths=("ss&ttt",), bridges={"ss&t": MatchStatistics()})
    loss, aux = fcfd.objective(terms, *nets.columns, {"": images})
    moments = [torch.std_mean(aux.values[path], (0, 2, 3)) for path in ("ss&t", "tt")]
    torch.testing.assert_close(moments[0][1], moments[1][1])
    loss.backward()


def test_masked_mix_holds_one_or_the_other_in_every_place():
    torch.manual_seed(0)
    mix = MaskedMix(nn.Conv2d(2, 3, 1), keep=0.3)
    feature, seen = torch.randn(8, 2, 6, 6), torch.randn(8, 3, 6, 6)
    out = mix((feature, seen))
    bridged = (out == mix.bridge(feature)).all(1)
    assert torch.equal((out == seen).all(1), ~bridged)
    assert bridged.float().mean().item() == pytest.approx(0.3, abs=0.06)
    tokens = MaskedMix(nn.Linear(2, 3), keep=1.0)
    assert torch.equal(
        tokens((torch.ones(2, 5, 2), torch.zeros(2, 5, 3))), tokens.bridge(torch.ones(2, 5, 2))
    )


@pytest.mark.parametrize(
    "terms",
    [
        recipes.kd(4),
        recipes.hints(("s>t", "ss>t")),
        recipes.srrl(4),
        recipes.fula("sstt"),
        recipes.hybrid_assistant(4),
        recipes.fcfd(4, ("sstt", "tsss"), fcfd.bridged(4)),
    ],
    ids=["kd", "hints", "srrl", "fula", "hybrid_assistant", "fcfd"],
)
def test_every_recipe_runs_in_one_graph(terms):
    torch.compiler.reset()
    images, labels = batch()
    nets = fcfd.link(_networks("st"), example=images, paths=fcfd.reads(terms.values()))
    values = {"": images, "Labels": labels}

    def run(params, buffers, values):
        return fcfd.objective(terms, nets.stages, params, buffers, values)[0]

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(nets.params, nets.buffers, values), run(nets.params, nets.buffers, values)
    )


# Block by block: what docs/recipes/blocks.md writes as dicts


def _same_architecture(depth=3):
    torch.manual_seed(0)
    modules = {
        letter: [nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double() for _ in range(depth)] for letter in "ts"
    }
    networks = {letter: fcfd.split(blocks) for letter, blocks in modules.items()}
    x = torch.randn(4, 5, dtype=torch.float64)
    paths = fcfd.bridged(depth, ("st", "ts"))
    return modules, fcfd.link(networks, example=x, paths=paths, bridges=identity), x


def _by_hand(modules, route, x):
    for at, letter in enumerate(route):
        x = modules[letter][at](x)
    return x


def test_hybrids_of_one_architecture_are_compositions_of_their_blocks():
    modules, nets, x = _same_architecture()
    routes = ["".join(letters) for letters in itertools.product("st", repeat=3)]
    values, _ = fcfd.walk(fcfd.plan(routes), *nets.columns, {"": x})
    for route in routes:
        torch.testing.assert_close(values[route], _by_hand(modules, route, x), rtol=0, atol=0)


def test_on_the_teachers_inputs_every_block_learns_by_itself():
    modules, nets, x = _same_architecture()
    terms = {f"layer/{i + 1}": fcfd.Term(squared_error, "t" * i + "s>t", "t" * (i + 1)) for i in range(2)}
    _, aux = fcfd.objective(terms, *nets.columns, {"": x})
    for at, part in enumerate(aux.parts.values()):
        inputs = _by_hand(modules, "t" * at, x)
        wanted = (modules["s"][at](inputs) - modules["t"][at](inputs)).square().mean()
        torch.testing.assert_close(part, wanted)
        for place, block in enumerate(modules["s"]):
            found = torch.autograd.grad(
                part, [*block.parameters()], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            assert any(gradient.abs().max() > 0 for gradient in found) == (place == at)
