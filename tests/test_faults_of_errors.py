"""Faults that users met in errors and terms: refused late, unclearly or not at all. See test_faults."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fcfd
from fcfd import losses, recipes
from fcfd.terms import Term

from .faulty import Spans, close, layers, says, two, untouched

INF, NAN = float("inf"), float("nan")
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# D. Errors and terms


ENTRIES = {"tuple": 1, "list": 1, "dict": "end", "record": "end", "model output": "end_logits"}


@pytest.mark.parametrize("kind", ENTRIES)
def test_D1_a_value_of_several_tensors_names_the_term_and_can_be_read(kind):
    """`AttributeError: 'tuple' object has no attribute 'ndim'`, no term named."""
    x, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    networks = {k: fcfd.split(Spans(width, kind), ["body"], example=x) for k, width in (("t", 5), ("s", 4))}
    nets = fcfd.link(networks, example=x)
    with pytest.raises(ValueError, match="term 'label', 'ss' towards 'Labels'.*entry"):
        losses.fcfd(*nets.columns, x, labels, paths=())
    terms = recipes.kd(2)
    terms = fcfd.replaced(
        terms, {name: fcfd.terms.entry(ENTRIES[kind], term.loss) for name, term in terms.items()}
    )
    _, aux = fcfd.objective(terms, *nets.columns, {"": x, "Labels": labels})
    student, teacher = (fcfd.terms._read(aux.values[path], ENTRIES[kind]) for path in ("ss", "tt"))
    close(aux.parts["label"], F.cross_entropy(student, labels))
    close(aux.parts["kl/student"], losses.kl(student, teacher).mean())


class OwnError(RuntimeError):
    """Of a user's module."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError,
        OwnError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        ZeroDivisionError,
        AssertionError,
    ],
)
@pytest.mark.parametrize("where", ["stage", "loss"])
def test_D1_every_error_names_its_path_or_its_term(error, where):
    """Only a plain RuntimeError did."""

    def fails(*_):
        raise error("what it says")

    calls = {
        "stage": lambda: fcfd.walk(("s",), {"s": (fails,)}, {"s": {}}, {"s": {}}, {"": torch.ones(1)}),
        "loss": lambda: fcfd.evaluate({"own": Term(fails, "s", "t")}, dict.fromkeys("st", torch.ones(1))),
    }
    with pytest.raises(ValueError) as found:
        calls[where]()
    says(found, "path 's'" if where == "stage" else "term 'own'", "what it says")
    assert found.value.__cause__.__class__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, torch.OutOfMemoryError])
def test_D1_what_a_loop_catches_keeps_its_class(error):
    """A batch that does not fit is caught by its class."""

    def fails(*_):
        raise error("stop")

    with pytest.raises(error):
        fcfd.walk(("s",), {"s": (fails,)}, {"s": {}}, {"s": {}}, {"": torch.ones(1)})
    with pytest.raises(error):
        fcfd.evaluate({"own": Term(fails, "s", "t")}, {"s": torch.ones(1), "t": torch.ones(1)})


@pytest.mark.parametrize(
    "returned", [torch.ones(1), None, (torch.ones(1),), (torch.ones(1), None), [torch.ones(1), {}]], ids=str
)
def test_D1_a_stage_that_returns_no_pair_names_its_path(returned):
    """A tensor of two rows was unpacked."""
    with pytest.raises(ValueError, match=r"path 's'.*the pair \(y, new_buffers\)"):
        fcfd.walk(("s",), {"s": (lambda *_: returned,)}, {"s": {}}, {"s": {}}, {"": torch.ones(1)})


@pytest.mark.parametrize("returned", [None, 1.0, (torch.ones(1), torch.ones(1))], ids=str)
def test_D1_a_loss_that_returns_no_tensor_names_its_term(returned):
    """`'float' object has no attribute 'mean'`."""
    with pytest.raises(ValueError, match="term 'own'.*one floating tensor is wanted"):
        fcfd.evaluate({"own": Term(lambda *_: returned, "s", "t")}, {"s": torch.ones(1), "t": torch.ones(1)})


def test_D1_a_missing_batch_is_named():
    """`KeyError: ''`."""
    nets = two()
    with pytest.raises(ValueError, match=r"path 's' reads the batch, values\[''\]"):
        fcfd.walk(("s",), *nets.columns, {})


@pytest.mark.parametrize("weight", [0, 0.0, -0.0, np.float64(0), False])
def test_D2_a_weight_of_zero_is_absent(weight):
    """`kl_weight=0.0` with 10 and 100 classes was refused, and 0·∞ was NaN."""
    nets, x, labels = two(outputs=10, student_outputs=3), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    if weight is False:
        with pytest.raises(TypeError, match="weights"):
            losses.fcfd(*nets.columns, x, labels, paths=(), kl_weight=weight)
        return
    loss, aux = losses.fcfd(*nets.columns, x, labels, paths=(), kl_weight=weight)
    assert "kl/student" not in aux.parts
    assert "ttt" not in aux.values
    close(
        loss.detach(),
        aux.parts["label"].detach() + 5 * sum(v.detach() for n, v in aux.parts.items() if n != "label"),
    )


def test_D2_zero_times_infinity_is_nothing():
    """It was NaN."""
    terms = {"a": Term(lambda s, t: s / 0, "s", "t", 0.0), "b": Term(losses.squared_error, "s", "t", 2.0)}
    values = {"s": torch.ones(2, 3), "t": torch.zeros(2, 3)}
    assert fcfd.weighted_sum(terms, fcfd.evaluate(terms, values)) == 2
    zero = torch.zeros((), requires_grad=True)  # a tensor is not read, so it is computed
    assert "b" in fcfd.evaluate({"b": terms["b"]._replace(weight=zero)}, values)


@pytest.mark.parametrize("option", ["feature_weight", "path_weight", "label_weight", "kl_weight", "crossed"])
def test_D2_every_weight_of_fcfd_can_be_zero(option):
    """What was weighted by 0 was computed all the same."""
    nets, x = two(), torch.randn(4, 6)
    _, aux = losses.fcfd(*nets.columns, x, torch.tensor([0, 1, 2, 0]), paths=("stt",), **{option: 0.0})
    gone = {
        "feature_weight": ("feature", "pooled"),
        "path_weight": ("kl/stt",),
        "label_weight": ("label",),
        "kl_weight": ("kl/student",),
        "crossed": ("feature/st", "pooled/st", "kl/stt"),
    }[option]
    assert aux.parts
    assert not [name for name in aux.parts if name.startswith(gone)]


def test_D2_nothing_at_all_is_refused():
    """An empty sum is no loss."""
    with pytest.raises(ValueError, match="no term"):
        fcfd.objective(fcfd.scaled(recipes.kd(3), 0.0), *two().columns, {"": torch.randn(2, 6)})


TAKES_PATHS = {
    "plan": lambda paths: fcfd.plan(paths),
    "link": lambda paths: two(paths=paths),
    "draw": lambda paths: fcfd.draw(paths, 1, seed=0, step=0),
    "hints": lambda paths: recipes.hints(paths),
    "appearance": lambda paths: recipes.appearance(3, paths),
    "function": lambda paths: recipes.function(3, paths),
    "fcfd": lambda paths: losses.fcfd(*two().columns, torch.randn(2, 6), torch.tensor([0, 1]), paths=paths),
    "recipes.fcfd": lambda paths: recipes.fcfd(3, (), paths),
    "losses.function": lambda paths: losses.function(*two().columns, torch.randn(2, 6), paths=paths),
}


FITTING = {"hints": "ss>t", "appearance": "ss>t", "recipes.fcfd": "ss>t"}


@pytest.mark.parametrize("name", TAKES_PATHS)
def test_D3_paths_are_several(name):
    """`plan("ssttt")` was `('s', 't')`, `link(paths="sstt")` built nothing, a generator was used up."""
    path, call = FITTING.get(name, "stt"), TAKES_PATHS[name]
    who = name.removeprefix("recipes.").removeprefix("losses.")
    with pytest.raises(ValueError, match=rf"{who}: paths is the string.*\('{path}',\)"):
        call(path)
    for wrong in (iter([path]), (one for one in [path]), None, 3):
        optional = name == "link" and wrong is None
        if (name != "plan" or wrong in (None, 3)) and not optional:
            with pytest.raises(TypeError, match=f"{who}: paths is"):
                call(wrong)
    if name != "plan":
        for twice in ([path, path], [path, fcfd.expand(path[0] + "1" + path[1:])]):
            with pytest.raises(ValueError, match=f"{who}.*{path}.*twice"):
                call(twice)
    call([path])


@pytest.mark.parametrize("walker", ["walk", "crossings", "bridged", "split"])
def test_D3_other_functions_take_no_string_for_several(walker):
    """A string is a sequence of letters."""
    calls = {
        "walk": lambda: fcfd.walk("ss", *two().columns, {"": torch.randn(2, 6)}),
        "crossings": lambda: fcfd.crossings(4, "st"),
        "bridged": lambda: fcfd.bridged(4, "st"),
        "split": lambda: fcfd.split(
            nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), "0", example=torch.randn(2, 6)
        ),
    }
    with pytest.raises((ValueError, TypeError), match=f"{walker}: .*(string|list of names)"):
        calls[walker]()


@pytest.mark.parametrize(
    "path", ["S", "s>", ">t", "s>s", "s t", "s>tt", "s>>t", "s&", "s0t", "é", "ss>tss", "3s", "s-t"]
)
@pytest.mark.parametrize(
    "function", [fcfd.depth, fcfd.prefixes, fcfd.counterpart, lambda path: fcfd.plan([path])]
)
def test_D4_what_is_no_path_is_refused(function, path):
    """`depth` validated nothing."""
    with pytest.raises(ValueError) as error:
        function(path)
    says(error, ": ")


NUMBERS: dict[str, list[Any]] = {
    "crossings": [lambda n: fcfd.crossings(n), lambda n: fcfd.crossings(5, first=n)],
    "bridged": [lambda n: fcfd.bridged(n), lambda n: fcfd.bridged(5, first=n)],
    "kd": [lambda n: recipes.kd(n)],
    "simkd": [lambda n: recipes.simkd(n)],
    "srrl": [lambda n: recipes.srrl(n)],
    "hybrid_assistant": [lambda n: recipes.hybrid_assistant(n), lambda n: recipes.hybrid_assistant(5, at=n)],
    "fcfd": [lambda n: recipes.fcfd(n, (), ())],
    "function": [lambda n: recipes.function(n, ())],
    "appearance": [lambda n: recipes.appearance(n, ())],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_D4_depths_are_checked(name):
    """`crossings(5, first=0)` contained 'ttttt', `kd(0)` read the batch as logits."""
    for call in NUMBERS[name]:
        for number in (0, -1):
            with pytest.raises(ValueError, match=name):
                call(number)
        for wrong in (2.0, "3", None, True):
            if wrong is not None or name != "hybrid_assistant":
                with pytest.raises(TypeError, match=name):
                    call(wrong)


@pytest.mark.parametrize("call, text", [
    (lambda: recipes.simkd(1), "simkd: depth 1 must be at least 2"),
    (lambda: recipes.srrl(1), "srrl: depth 1 must be at least 2"),
    (lambda: recipes.hybrid_assistant(2), "hybrid_assistant: depth 2 must be at least 3"),
    (lambda: recipes.hybrid_assistant(5, at=4), "hybrid_assistant: at is 4"),
    (lambda: recipes.kd(3, teacher="s"), "kd: student and teacher are both 's'"),
    (lambda: recipes.fcfd(3, (), (), student="t"), "fcfd: student and teacher are both 't'"),
    (lambda: recipes.simkd(3, student="t"), "simkd: student and teacher are both 't'"),
    (lambda: recipes.kd(3, teacher="teacher"), "kd: teacher is 'teacher'"),
    (lambda: recipes.kd(3, student="S"), "kd: student is 'S'"),
    (lambda: recipes.function(3, ("ttt",)), "function: path 'ttt' stays in one network"),
    (lambda: recipes.function(3, ("st",)), "function: path 'st' runs 2 stages"),
    (lambda: recipes.function(3, ("sttt",)), "function: path 'sttt' runs 4 stages"),
    (lambda: recipes.function(3, ("ss>t",)), "function: path 'ss>t'"),
    (lambda: recipes.appearance(3, ("sst",)), "appearance: path 'sst' does not end in a bridge"),
    (lambda: recipes.appearance(2, ("sss>t",)), "appearance: path 'sss>t' runs 3 stages"),
    (lambda: recipes.hints(("ss",)), "hints: path 'ss' does not end in a bridge"),
    (lambda: recipes.fula("ttt"), "fula: path 'ttt' stays in one network"),
    (lambda: recipes.fula("stt", weights=(1.0,)), "fula: 1 weights for the 3 values"),
    (lambda: recipes.multi_teacher({}), "multi_teacher: there is no recipe"),
    (lambda: fcfd.replaced(recipes.kd(2), {"k": losses.kl}), "replaced: no term is of the kind 'k'"),
    (lambda: fcfd.scaled(recipes.kd(2), {"featur": 1.0}), "scaled: no term is of the kind 'featur'"),
    (lambda: fcfd.masked(recipes.kd(2), {"kl": "mask"}), "masked: .* begins with a capital"),
])  # fmt: skip
def test_D4_recipes_refuse_what_is_no_method(call, text):
    """Wrong depths and letters gave terms of nothing: a divergence of a network with itself."""
    with pytest.raises(ValueError, match=text):
        call()


def test_D4_several_teachers_keep_every_term():
    """`multi_teacher` dropped the paths of unknown teachers."""
    own = {k: recipes.fcfd(3, (f"s{k}{k}",), (f"s>{k}",), teacher=k) for k in "ab"}
    terms = recipes.multi_teacher(own)
    assert len(terms) == 1 + sum(len(recipe) - 1 for recipe in own.values())


any_of: Any = fcfd  # without types, so that wrong ones can be given
SMALL = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
X, Y = torch.ones(2, 6), torch.tensor([0, 1])
META = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).to("meta")


class Part(nn.Module):
    def forward(self, x):
        return x


WRONG = {
    "split a name": (lambda: any_of.split("resnet18"), "split: 'resnet18' is no model"),
    "split None": (lambda: any_of.split([None]), "split: entry 0 .* None"),
    "split a class": (lambda: any_of.split(nn.ReLU), "split: the class ReLU is no model"),
    "split a list with a class": (lambda: any_of.split([nn.Linear(2, 2), nn.ReLU]), "split: entry 1"),
    "split a state dict": (lambda: any_of.split(nn.Linear(2, 2).state_dict()), "split: a OrderedDict"),
    "split nothing": (lambda: any_of.split([]), "split: an empty list"),
    "split a network": (lambda: any_of.split(layers(6, 4, 3)), "split: "),
    "split a number": (lambda: any_of.split(3), "split: a int is no model"),
    "at nothing": (lambda: any_of.split(Part(), ["0", "0"], example=torch.ones(2, 6)), "split: "),
    "at twice": (lambda: any_of.split(SMALL, ["0", "0"], example=X), "split: the boundary '0'.*twice"),
    "at 0": (lambda: any_of.split(SMALL, 0, example=X), "split: at=0"),
    "stage a network": (lambda: any_of.stage(layers(6, 4, 3)), "stage: a Network is no torch.nn.Module"),
    "stage a function": (lambda: any_of.stage(torch.relu), "stage: .* is no torch.nn.Module"),
    "stage a class": (lambda: any_of.stage(nn.ReLU), "stage: the class ReLU"),
    "link modules": (lambda: any_of.link({"t": SMALL, "s": SMALL}, example=X), "link: .*split it first"),
    "link a list": (lambda: any_of.link([layers(6, 4, 3)], example=torch.ones(1, 6)), "link: networks"),
    "link a word": (lambda: any_of.link({"teacher": layers(6, 4, 3)}, example=torch.ones(1, 6)), "'teacher'"),
    "compiled": (lambda: any_of.compiled(layers(6, 4, 3)), "compiled: stages is a Network"),
    "checkpointed": (lambda: any_of.checkpointed(nn.Linear(2, 2)), "checkpointed: stages"),
    "compiled links": (lambda: any_of.compiled(two()), "compiled: stages is a Linked"),
    "joined": (lambda: any_of.joined(layers(6, 4, 3), (1, 2)), "joined: stages is a Network"),
    "fcfd of networks": (lambda: losses.fcfd(layers(6, 4, 3), {}, {}, X, Y, paths=()), "fcfd: stages"),
    "images": (lambda: losses.fcfd(*two().columns, "images", torch.tensor([0]), paths=()), "fcfd: images"),
    "terms": (lambda: any_of.evaluate([Term(losses.kl, "s", "t")], {}), "terms"),
    "a term": (lambda: any_of.evaluate({"kl": losses.kl}, {}), "terms.*'kl'"),
    "change": (lambda: losses.fcfd(*two().columns, X, Y, paths=(), change={}), "fcfd: change"),
    "change to": (lambda: any_of.losses.fcfd(*two().columns, X, Y, paths=(), change=print), "fcfd: change"),
    "two batches": (lambda: losses.fcfd(*two().columns, X, {"Labels": Y, "": X}, paths=()), "fcfd: labels"),
    "a loss": (lambda: any_of.replaced(recipes.kd(2), {"kl": "kl"}), "replaced: .*'kl'"),
    "a bridge": (lambda: any_of.bridge(torch.ones(2, 3), torch.ones(2, 4)), "bridge: source"),
    "a size": (lambda: any_of.bridge((2, 3.0), (2, 4)), "bridge: a size of source"),
    "reads": (lambda: any_of.reads(recipes.kd(2)), "reads: "),
    "match": (lambda: any_of.match([torch.ones(2, 3)], [(2, 3)]), "match: "),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_D5_a_wrong_object_is_named_at_once(name):
    """It failed later, somewhere else."""
    call, text = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=text):
        call()


LATE = {
    "at True": (lambda: any_of.split(SMALL, True, example=X), "split: at=True"),
    "at None": (lambda: any_of.split(SMALL, [None], example=X), "split: a boundary is of type NoneType"),
    "at an empty tuple": (
        lambda: any_of.split(SMALL, [()], example=X),
        "a boundary is an empty tuple",
    ),
    "at a number in a tuple": (
        lambda: any_of.split(SMALL, [("0", 1)], example=X),
        "a name .* of type int",
    ),
    "an example of nothing": (lambda: any_of.split(SMALL, ["0"], example=()), "split: .*is empty"),
    "an example without names": (lambda: any_of.split(SMALL, ["0"], example={}), "split: .*is empty"),
    "a module list": (lambda: any_of.split(nn.ModuleList(SMALL), example=X), r"split: .*list\(model\)"),
    "a module dict": (
        lambda: any_of.split(nn.ModuleDict({"a": SMALL}), example=X),
        "ModuleDict has no forward",
    ),
    "link no example": (lambda: two_of(torch.randn(0, 6)), "link: .*empty"),
    "a bridge of two inputs": (lambda: two(bridges={"s>t": nn.Bilinear(5, 5, 8)}), "link: your bridge 's>t'"),
}


def two_of(example):
    return fcfd.link({"t": layers(6, 5, 3), "s": layers(6, 4, 3)}, example=example)


@pytest.mark.parametrize("name", LATE)
def test_D5_relatives_are_named_at_once(name):
    """Relatives of the wrong objects above."""
    call, text = LATE[name]
    with pytest.raises((TypeError, ValueError), match=text):
        call()


@pytest.mark.parametrize(
    "name, call",
    [
        ("frozen", lambda: fcfd.frozen(nn.Linear(2, 2))),
        ("write_buffers_", lambda: fcfd.write_buffers_({"s": nn.Linear(2, 2)}, {})),
        ("write_buffers_", lambda: fcfd.write_buffers_(nn.BatchNorm1d(2), [torch.ones(2)])),
    ],
)
def test_D5_a_wrong_object_for_dicts_is_named(name, call):
    """An AttributeError of the first line that reads it."""
    with pytest.raises(TypeError, match=f"{name}: "):
        call()


@pytest.mark.parametrize("example", ["on meta", "on the CPU"])
def test_D5_a_model_on_meta_is_split(example):
    """`Tensor.item() cannot be called on meta tensors`."""
    x = torch.randn(2, 6, device="meta" if example == "on meta" else "cpu")
    network = fcfd.split(META, ["0"], example=x)
    assert network.shapes == ((2, 4), (2, 3))
    assert "meta" in network.proof
    assert META[0].weight.is_meta


def test_D5_networks_on_meta_are_not_linked():
    """They were split, and then `RuntimeError` of no path came from `link`. Features on meta show no ReLU."""
    x = torch.randn(2, 6, device="meta")
    networks = {k: fcfd.split(META, ["0"], example=x) for k in "ts"}
    with pytest.raises(ValueError, match="link: the example is on meta"):
        fcfd.link(networks, example=x, paths=("s>t",))


def test_D5_split_in_inference_mode_is_named():
    """Another state of torch for which the example is blamed."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.inference_mode(), pytest.raises(ValueError) as error:
        fcfd.split(model, ["0"], example=torch.randn(2, 6))
    says(error, "inference_mode")
    assert "example" not in str(error.value)


@pytest.mark.parametrize("how", ["torch.compile", "compile in place", "deep inside"])
def test_D5_a_compiled_block_inside_is_named(how):
    """The example was blamed."""
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    if how == "compile in place":
        block.compile(backend="eager")
    else:
        block = torch.compile(block, backend="eager")
    inner = nn.Sequential(nn.Sequential(block)) if how == "deep inside" else block
    with pytest.raises(ValueError, match="compiled.*fcfd.compiled"):
        fcfd.split(nn.Sequential(nn.Linear(6, 4), inner, nn.Linear(4, 3)), ["0"], example=torch.randn(2, 6))


@pytest.mark.parametrize("path, missing", [("sstt", "sst"), ("ss>t", "ss"), ("ss", "s"), ("sst", "ss>t")])
def test_D6_a_walk_without_its_sources_names_them(path, missing):
    """`KeyError: 'sst'`."""
    nets = two(paths=("stt", "sst", "ss>t"))
    if len(path) == 4 and ">" not in path:
        nets = fcfd.link(
            {k: layers(6, w, w, w, 3) for k, w in (("t", 8), ("s", 5))},
            example=torch.randn(2, 6),
            paths=("sstt",),
        )
    with pytest.raises(ValueError) as error:
        fcfd.walk([path], *nets.columns, {"": torch.randn(2, 6)})
    says(error, f"path {path!r} reads {missing!r}", f"fcfd.plan(({path!r},))")


WRITES = [
    {"running_mean": torch.ones(3), "running_var": torch.ones(4)},
    {"running_mean": torch.ones(3), "no_buffer": torch.ones(3)},
    {"running_mean": torch.ones(3), "running_var": [1.0, 1.0, 1.0]},
    {"running_mean": torch.ones(3), "running_var": torch.ones(3, dtype=torch.complex64)},
    {"running_mean": torch.ones(3), "num_batches_tracked": torch.tensor(2.5)},
    {"running_mean": torch.ones(3), "running_var": None},
    {"running_mean": torch.ones(3), "running_var": torch.ones(3, device="meta")},
]


@pytest.mark.parametrize("at", range(len(WRITES)))
def test_D6_buffers_are_written_all_or_none(at):
    """`write_buffers_` could write half before it failed, and dropped imaginary parts."""
    norm = nn.BatchNorm1d(3)
    with untouched(norm), pytest.raises((ValueError, TypeError), match="write_buffers_: "):
        fcfd.write_buffers_(norm, WRITES[at])
