"""Are crossed terms at odds with the labels? Gradients by path: `python -m benchmarks.study.probes`.

At some steps of a run every crossed path is walked on the step's batch, drawn or not. For the terms of each
path, and for appearance, a line says: the cosine of their gradient with that of the labels, and with that of
labels and teacher's logits together, over the student's parameters that the terms reach; the size of that
gradient beside the labels' on the same parameters; the divergence of the path's logits from the teacher's;
and which share of the teacher's information the path gives.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import fcfd
from fcfd import losses, recipes, scaled

from . import training
from .driver import RESULTS, append, chosen, lines
from .methods import METHODS
from .settings import REPORTED, SETTINGS

AT = (0, 15, 30, 60, 100, 150, 200, 250, 299)
"""Steps that are looked at."""


def gradients(loss: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient by parameter, of those that the loss reaches."""
    found = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
    pairs = zip(params, found, strict=True)
    return {name: gradient.flatten() for name, gradient in pairs if gradient is not None}


def compared(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, float]:
    """Cosine of two gradients, and the ratio of their norms, over the parameters that both reach."""
    shared = [name for name in one if name in other]
    a, b = (torch.cat([side[name] for name in shared]) for side in (one, other))
    norms = a.norm() * b.norm()
    cosine = (a @ b / norms).item() if norms > 0 else 0.0
    return cosine, (a.norm() / b.norm()).item() if b.norm() > 0 else 0.0


def looked(
    nets: fcfd.Linked, values: dict[str, Any], bridged: tuple[str, ...], weight: float
) -> list[dict[str, Any]]:
    """A record of each crossed path, and one of appearance, on one batch."""
    depth = len(nets.stages["s"])
    base = recipes.kd(depth)
    groups = {"appearance": scaled(recipes.appearance(depth, bridged), weight)}
    for path in nets.crossings:
        terms = recipes.function(depth, (path,))
        features = {"feature", "pooled"} & {name.split("/")[0] for name in terms}
        groups[path] = scaled(terms, dict.fromkeys(sorted(features), weight))
    every = {f"{group}:{name}": term for group, terms in groups.items() for name, term in terms.items()}
    _, aux = fcfd.objective(base | every, *nets.columns, values)
    params = nets.params["s"]
    label = gradients(aux.parts["label"], params)
    both = gradients(aux.parts["label"] + aux.parts["kl/student"], params)
    teacher = aux.values["t" * depth]
    nothing = losses.kl(torch.zeros_like(teacher), teacher, temperature=4.0).mean().item()
    records = []
    for group, terms in groups.items():
        loss = torch.stack([term.weight * aux.parts[f"{group}:{name}"] for name, term in terms.items()]).sum()
        own = gradients(loss, params)
        cosine, size = compared(own, label)
        record = {
            "path": group,
            "cosine_label": cosine,
            "size": size,
            "cosine_logits": compared(own, both)[0],
        }
        if group != "appearance":
            divergence = aux.parts[f"{group}:kl/{group}"].item()
            record |= {"kl": divergence, "share": max(0.0, 1 - divergence / nothing)}
        records.append({key: round(v, 5) if isinstance(v, float) else v for key, v in record.items()})
    return records


def probe(name: str, method: str, *, seed: int, factor: float, file: Path, folder: Path) -> None:
    """One run, looked at."""
    setting = SETTINGS[name]
    data = training.parts(setting, "validation")
    teacher = training.taught(setting, data, folder, device="cpu")
    bridged = fcfd.bridged(5, first=setting.first)

    def watch(step: int, terms: fcfd.terms.Terms, aux: fcfd.Aux, nets: fcfd.Linked) -> None:
        if step in AT:
            values = {path: aux.values[path] for path in ("", "Labels")}
            for record in looked(nets, values, bridged, factor * setting.features):
                line = {"setting": name, "method": method, "seed": seed, "factor": factor, "step": step}
                append(file, line | record)

    training.run(setting, METHODS[method], teacher, data, factor=factor, seed=seed, device="cpu", watch=watch)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS, nargs="?", default="small-200")
    parser.add_argument("--methods", nargs="+", default=["KD + hints", "FCFD, published", "FCFD"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "study")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    file = options.out / "gradients.jsonl"
    done = {(line["setting"], line["method"], line["seed"]) for line in lines(file) if line["step"] == AT[-1]}
    factors = chosen(lines(RESULTS / "tuning.jsonl"), SETTINGS[options.setting].tuned_on)
    todo = [
        (method, REPORTED + seed)
        for seed in range(options.seeds)
        for method in options.methods
        if (options.setting, method, REPORTED + seed) not in done
    ]
    for method, seed in tqdm(todo, unit="run"):
        factor = factors.get(METHODS[method].tuned_as or method, 1.0)
        probe(options.setting, method, seed=seed, factor=factor, file=file, folder=options.runs)


if __name__ == "__main__":
    main()
