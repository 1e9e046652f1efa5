"""A teacher with few bits, trained to be read by the teacher: `python -m benchmarks.quantised --publish`.

The student is the teacher with fake-quantised weights, by torch's operator, a scale for an output channel.
It learns from few images without labels, by each of `METHODS`, for three seeds. The networks are of one
architecture, so the student's features go into the teacher's full-precision tail as they are.

Nothing was chosen by a result: all terms have the weight 1, and there was one rate and one number of steps.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fcfd
from fcfd import losses, recipes, schedules
from fcfd.bridges import identity

from .common import environment, publish, show, spread
from .data import Data, batches, digits
from .demo import ROOT
from .networks import network, sgd, train

TEACHER_STEPS = 200
IMAGES, BATCH, STEPS, RATE = 200, 50, 150, 0.02
CROSSED = ("stttt", "ssttt", "ssstt", "sssst")
LOGITS = fcfd.scaled(recipes.kd(5, temperature=1.0), {"label": 0.0})
READ = recipes.function(5, CROSSED, temperature=1.0)

METHODS: dict[str, dict[str, fcfd.Term]] = {
    "logits alone": LOGITS,
    "and the tail's logits": LOGITS | fcfd.scaled(READ, {"feature": 0.0, "pooled": 0.0}),
    "and its features": LOGITS | READ,
}


def quantised(params: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Parameters with every weight matrix or kernel rounded to so many bits, its gradient passed on."""
    most = 2 ** (bits - 1) - 1
    return {name: _rounded(x, most) if x.ndim > 1 else x for name, x in params.items()}


def _rounded(weight: Tensor, most: int) -> Tensor:
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-8) / most
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)


def distil(
    method: str | None, teacher: nn.Sequential, data: Data, *, bits: int, seed: int, progress: tqdm
) -> tuple[float, float]:
    """Accuracy on the test, and the divergence from the teacher there; without a method only rounded."""
    student = copy.deepcopy(teacher)
    networks = {"t": fcfd.split(list(teacher.eval())), "s": fcfd.split(list(student.train()))}
    nets = fcfd.link(networks, example=data.images[:2], paths=CROSSED, bridges=identity)
    optimizer = sgd(student.parameters())
    for step, batch in enumerate(batches(IMAGES, BATCH, STEPS if method else 0, seed=seed)):
        optimizer.param_groups[0]["lr"] = schedules.cosine(step, steps=STEPS, start=RATE)
        params = nets.params | {"s": quantised(nets.params["s"], bits)}
        loss, aux = fcfd.objective(
            METHODS[method or ""], nets.stages, params, nets.buffers, {"": data.images[batch]}
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(student, aux.buffers["s"])
        progress.update()
    with torch.no_grad():
        rounded = quantised(dict(student.named_parameters()), bits)
        found = torch.func.functional_call(student.eval(), rounded, (data.test_images,))
        wanted = teacher(data.test_images)
        right = (found.argmax(1) == data.test_labels).double().mean().item()
        return right, losses.kl(found, wanted, temperature=1.0).mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--bits", type=int, nargs="+", default=[2, 3])
    command.add_argument("--publish", action="store_true", help="write the results where the pages read them")
    options = command.parse_args(arguments)
    data, rows = digits(), []
    runs = options.seeds * (TEACHER_STEPS + STEPS * len(METHODS) * len(options.bits))
    with tqdm(total=runs, desc="quantised", disable=None) as progress:
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            teacher = network(8, convolutions=1, first_stride=1)
            train(teacher, data.images, data.labels, steps=TEACHER_STEPS, rate=0.1, progress=progress)
            for bits in options.bits:
                for method in (None, *METHODS):
                    right, apart = distil(method, teacher, data, bits=bits, seed=seed, progress=progress)
                    rows.append(
                        {
                            "bits": bits,
                            "method": method or "rounded only",
                            "seed": seed,
                            "accuracy": right,
                            "divergence": apart,
                        }
                    )
    show("Few bits", ("bits", "student learns by", "accuracy, %", "divergence, nats"), summary(rows))
    if options.publish:
        publish(ROOT / "benchmarks" / "results", "quantised-digits", rows, environment=environment("cpu"))


def summary(rows: Sequence[Mapping[str, float | str]]) -> list[tuple[str, ...]]:
    """Mean ± deviation over seeds, a row for each method and number of bits."""
    found: list[tuple[str, ...]] = []
    for bits, method in dict.fromkeys((row["bits"], row["method"]) for row in rows):
        own = [row for row in rows if (row["bits"], row["method"]) == (bits, method)]
        accuracy = spread([100 * float(row["accuracy"]) for row in own], ".1f")
        divergence = spread([float(row["divergence"]) for row in own], ".3f")
        found.append((str(bits), str(method), accuracy, divergence))
    return found


if __name__ == "__main__":
    main()
