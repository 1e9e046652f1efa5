"""Bad input, call by call: what is refused, with which class of error, and how its text begins.

Every row is a call and, under it, what it raises. The calls see a teacher and a student of four stages that
are linked (`nets`), what they were linked from (`cut`), a batch (`images`, `labels`), logits (`z`), terms,
values and some modules. Nothing of that is changed by a call. What the losses between tensors refuse is in
`tests/families`.
"""

from typing import Any

import pytest
import torch
from torch import nn

import fcfd
from fcfd import losses, recipes, schedules
from fcfd.terms import Term

from .nets import batch, pair
from .purity import assert_unchanged, snapshot

ROWS = r"""
fcfd.merge_buffers({"s": {}}, {"s": None})
    TypeError: merge_buffers: written['s'] is of type NoneType; give a flat dict of tensors by name.
fcfd.merge_buffers({"s": None}, {})
    TypeError: merge_buffers: buffers['s'] is of type NoneType; give a flat dict of tensors by name.
fcfd.joined(cut["s"].stages, (1.0, 4))
    TypeError: joined: a depth of ends 1.0 must be a whole number.
fcfd.bridge((2, 3), (2, 3), rectified=None)
    TypeError: bridge: rectified is of type NoneType; give whether the target is taken after a ReLU.
fcfd.stage(linear, protect="no")
    TypeError: stage: protect is of type str; give whether the module runs on a copy of its input.
fcfd.link(cut, example=images, first=4)
    ValueError: link: first is 4; networks of 4 stages have features at 1 to 3.
fcfd.link(cut, example=images, first=0)
    ValueError: link: first 0 must be at least 1.
fcfd.link(cut, example=images, first=None)
    TypeError: link: first None must be a whole number.
fcfd.evaluate({"a": Term(lambda x, y: x.argmax(1), "ssss", "tttt")}, {"ssss": z, "tttt": z})
    ValueError: evaluate: term 'a': its loss returned
fcfd.evaluate({"a": Term(lambda x, y: x[:0], "ssss", "tttt")}, {"ssss": z, "tttt": z})
    ValueError: evaluate: term 'a': its loss returned [0,
fcfd.evaluate({"a": Term(lambda x, y: x + 0j, "ssss", "tttt")}, {"ssss": z, "tttt": z})
    ValueError: evaluate: term 'a': its loss returned
fcfd.evaluate({"a": Term(losses.kl, (), "tttt")}, {"ssss": z, "tttt": z})
    ValueError: evaluate: term 'a' reads an empty tuple of paths; give one.
fcfd.step("")
    ValueError: step: the empty path is the batch; no step computes it.
fcfd.step("ss>tt")
    ValueError: step: write 'sst' for 'ss>tt': one name for one value.
fcfd.step("s>s")
    ValueError: step: 's>s' bridges network 's' into itself.
fcfd.step(">t")
    ValueError: step: '>t' has no stage before '>'; a bridge reads what a stage returned.
fcfd.step("ss>>t")
    ValueError: step: 'ss>>t' has no stage before '>'; a bridge reads what a stage returned.
fcfd.step("S")
    ValueError: step: 'S' ends the path 'S', which must end in a network: one letter a-z.
fcfd.step("s1t0")
    ValueError: expand: 's1t0' repeats 't' 0 times; write 1 to 1000.
fcfd.step(None)
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.step(3)
    TypeError: expand: a path is a string such as 'ssttt', not int.
fcfd.step(b"ss")
    TypeError: expand: a path is a string such as 'ssttt', not bytes.
fcfd.step(["ss"])
    TypeError: expand: a path is a string such as 'ssttt', not list.
fcfd.expand(None)
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.expand("3s")
    ValueError: expand: in '3s' a number stands behind '3', which is no network.
fcfd.expand("s>3t")
    ValueError: expand: in 's>3t' a number stands behind '>', which is no network.
fcfd.expand("s1234")
    ValueError: expand: 's1234' repeats 's' 1234 times; write 1 to 1000.
fcfd.plan("ssttt")
    ValueError: plan: paths is the string 'ssttt'; give a tuple of paths: ('ssttt',).
fcfd.plan(None)
    TypeError: plan: paths is of type NoneType; give a tuple of paths.
fcfd.plan(3)
    TypeError: plan: paths is of type int; give a tuple of paths.
fcfd.plan([None])
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.plan(["ss>tt"])
    ValueError: step: write 'sst' for 'ss>tt': one name for one value.
fcfd.plan(["Labels"])
    ValueError: step: 'L' ends the path 'L', which must end in a network: one letter a-z.
fcfd.prefixes("ss>")
    ValueError: step: '>' ends the path 'ss>', which must end in a network: one letter a-z.
fcfd.prefixes(None)
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.depth("s>")
    ValueError: step: '>' ends the path 's>', which must end in a network: one letter a-z.
fcfd.depth("Labels")
    ValueError: step: 'L' ends the path 'L', which must end in a network: one letter a-z.
fcfd.depth(None)
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.pure("st", 2)
    ValueError: pure: a network is one letter a-z, not 'st'.
fcfd.pure("S", 2)
    ValueError: pure: a network is one letter a-z, not 'S'.
fcfd.pure(None, 2)
    ValueError: pure: a network is one letter a-z, not None.
fcfd.pure("s", -1)
    ValueError: pure: depth -1 must be at least 0.
fcfd.pure("s", 1.5)
    TypeError: pure: depth 1.5 must be a whole number.
fcfd.pure("s", None)
    TypeError: pure: depth None must be a whole number.
fcfd.counterpart("")
    ValueError: counterpart: the batch, '', is of no network.
fcfd.counterpart(None)
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.is_bridged(None)
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.crosses(3)
    TypeError: expand: a path is a string such as 'ssttt', not int.
fcfd.crossings(0)
    ValueError: crossings: depth 0 must be at least 1.
fcfd.crossings(-2)
    ValueError: crossings: depth -2 must be at least 1.
fcfd.crossings(None)
    TypeError: crossings: depth None must be a whole number.
fcfd.crossings("5")
    TypeError: crossings: depth '5' must be a whole number.
fcfd.crossings(5.0)
    TypeError: crossings: depth 5.0 must be a whole number.
fcfd.crossings(True)
    TypeError: crossings: depth True must be a whole number.
fcfd.crossings(5, "st")
    ValueError: crossings: directions is a string; give a tuple of pairs: ('st',).
fcfd.crossings(5, ("s",))
    ValueError: crossings: direction 's' is no pair of two networks such as 'st'.
fcfd.crossings(5, ("sst",))
    ValueError: crossings: direction 'sst' is no pair of two networks such as 'st'.
fcfd.crossings(5, ("ss",))
    ValueError: crossings: direction 'ss' is no pair of two networks such as 'st'.
fcfd.crossings(5, (None,))
    ValueError: crossings: direction None is no pair of two networks such as 'st'.
fcfd.crossings(5, None)
    TypeError: crossings: directions is of type NoneType; give a tuple of pairs such as ('st', 'ts').
fcfd.crossings(5, first=0)
    ValueError: crossings: first 0 must be at least 1.
fcfd.crossings(5, first=None)
    TypeError: crossings: first None must be a whole number.
fcfd.bridged(0)
    ValueError: bridged: depth 0 must be at least 1.
fcfd.bridged(5, first=0)
    ValueError: bridged: first 0 must be at least 1.
fcfd.bridged(5, "st")
    ValueError: bridged: directions is a string; give a tuple of pairs: ('st',).
fcfd.draw("ssttt", 1, seed=0, step=0)
    ValueError: draw: paths is the string 'ssttt'; give a tuple of paths: ('ssttt',).
fcfd.draw(None, 1, seed=0, step=0)
    TypeError: draw: paths is a NoneType; give a tuple or list of paths.
fcfd.draw(nets.crossings, 9, seed=0, step=0)
    ValueError: draw: cannot draw 9 of 4 paths without replacement.
fcfd.draw(nets.crossings, -1, seed=0, step=0)
    ValueError: draw: cannot draw -1 of 4 paths without replacement.
fcfd.draw(nets.crossings, 1.5, seed=0, step=0)
    TypeError: draw: count 1.5 must be a whole number.
fcfd.draw(nets.crossings, None, seed=0, step=0)
    TypeError: draw: count None must be a whole number.
fcfd.draw(nets.crossings, 1, seed="0", step=0)
    TypeError: draw: seed '0' must be a whole number.
fcfd.draw(nets.crossings, 1, seed=0, step=None)
    TypeError: draw: step None must be a whole number.
fcfd.draw(iter(nets.crossings), 1, seed=0, step=0)
    TypeError: draw: paths is a tuple_iterator; give a tuple or list of paths.
fcfd.draw(nets.crossings + nets.crossings, 1, seed=0, step=0)
    ValueError: draw: path 'sttt' is given twice.
schedules.constant(None)
    TypeError: constant: step None must be a number.
schedules.constant(0, value=None)
    TypeError: constant: value None must be a number.
schedules.constant(0, value=float("nan"))
    ValueError: constant: value nan must be finite.
schedules.linear_warmup(0, steps=0)
    ValueError: linear_warmup: steps 0 must be above 0.
schedules.linear_warmup(0, steps=-3)
    ValueError: linear_warmup: steps -3 must be above 0.
schedules.linear_warmup(-5, steps=3)
    ValueError: linear_warmup: step -5 must be at least 0.
schedules.linear_warmup(0, steps=float("nan"))
    ValueError: linear_warmup: steps nan must be above 0.
schedules.linear_warmup(float("nan"), steps=3)
    ValueError: linear_warmup: step nan must be at least 0.
schedules.linear_warmup(None, steps=3)
    TypeError: linear_warmup: step None must be a number.
schedules.linear_warmup("1", steps=3)
    TypeError: linear_warmup: step '1' must be a number.
schedules.linear_warmup(0, steps=3, end=float("inf"))
    ValueError: linear_warmup: end inf must be finite.
schedules.cosine(0, steps=0)
    ValueError: cosine: steps 0 must be above 0.
schedules.cosine(float("nan"), steps=3)
    ValueError: cosine: step nan must be finite.
schedules.cosine(0, steps=None)
    TypeError: cosine: steps None must be a number.
schedules.cosine(0, steps=3, start=None)
    TypeError: cosine: start None must be a number.
schedules.piecewise_constant(0, boundaries=(3,), values=(1.0,))
    ValueError: piecewise_constant: 1 values and boundaries [3]; give increasing boundaries and one
schedules.piecewise_constant(0, boundaries=(3, 2), values=(1.0, 2.0, 3.0))
    ValueError: piecewise_constant: 3 values and boundaries [3, 2]; give increasing boundaries and one
schedules.piecewise_constant(float("nan"), boundaries=(3,), values=(1.0, 2.0))
    ValueError: piecewise_constant: step nan must be at least 0.
schedules.piecewise_constant(0, boundaries=3, values=(1.0, 2.0))
    TypeError: piecewise_constant: boundaries is of type int; give a tuple of numbers.
schedules.piecewise_constant(0, boundaries=(3,), values=(1.0, float("nan")))
    ValueError: piecewise_constant: values nan must be finite.
schedules.piecewise_constant(0, boundaries=(float("nan"),), values=(1.0, 2.0))
    ValueError: piecewise_constant: boundaries nan must be finite.
fcfd.scaled(terms, {"nothing": 1.0})
    ValueError: scaled: no term is of the kind 'nothing'; there are label, kl/student.
fcfd.scaled(terms, None)
    TypeError: scaled: weights None must be a number.
fcfd.scaled(terms, "2")
    TypeError: scaled: weights '2' must be a number.
fcfd.scaled(terms, torch.ones(2))
    ValueError: scaled: weights [2] must be a number, or a tensor of one, [].
fcfd.scaled(terms, float("nan"))
    ValueError: scaled: weights nan must be finite.
fcfd.scaled(None, 1.0)
    TypeError: scaled: terms is of type NoneType; give a recipe: {name: Term}.
fcfd.scaled([1], 1.0)
    TypeError: scaled: terms is of type list; give a recipe: {name: Term}.
fcfd.scaled({"a": 1}, 2.0)
    TypeError: scaled: terms['a'] is of type int; give a Term.
fcfd.replaced(terms, {"nothing": losses.kl})
    ValueError: replaced: no term is of the kind 'nothing'; there are label, kl/student.
fcfd.replaced(terms, {"kl": None})
    TypeError: replaced: losses['kl'] is of type NoneType; give a function.
fcfd.replaced(terms, None)
    TypeError: replaced: losses is of type NoneType; give a dict of losses by kind: {'kl': loss}.
fcfd.replaced(None, {})
    TypeError: replaced: terms is of type NoneType; give a recipe: {name: Term}.
fcfd.reads([None])
    TypeError: reads: a term is of type NoneType; give terms, as those of a recipe: recipe.values().
fcfd.reads(terms)
    TypeError: reads: a term is of type str; give terms, as those of a recipe: recipe.values().
fcfd.reads(None)
    TypeError: reads: terms is of type NoneType; give terms, as those of a recipe: recipe.values().
fcfd.evaluate(terms, values)
    ValueError: evaluate: term 'label' reads 'ssss', which is missing; add the path to the plan.
fcfd.evaluate(None, values)
    TypeError: evaluate: terms is of type NoneType; give a recipe: {name: Term}.
fcfd.evaluate(terms, None)
    TypeError: evaluate: values is of type NoneType; give what a walk returned, by path.
fcfd.evaluate({"a": Term(None, "s", "t")}, {"s": z, "t": z})
    TypeError: evaluate: the loss of term 'a' is of type NoneType; give a function.
fcfd.evaluate({"a": Term(losses.kl, None, "t")}, {"s": z, "t": z})
    TypeError: evaluate: a path of term 'a' is of type NoneType; give a string or a tuple.
fcfd.evaluate({"a": Term(losses.kl, "s", "t")}, {"s": z, "t": None})
    ValueError: evaluate: term 'a', 's' towards 't': TypeError: kl: target is of type NoneType and must
fcfd.evaluate({"a": Term(losses.kl, "s", "t")}, {"s": z, "t": (z, z)})
    ValueError: evaluate: term 'a', 's' towards 't': TypeError: kl: target is of type tuple and must be
fcfd.evaluate({"a": Term(losses.kl, "s", "t")}, {"s": z, "t": z[:2]})
    ValueError: evaluate: term 'a', 's' towards 't': kl: prediction [4, 10] and target [2, 10] must
fcfd.evaluate({"a": Term(losses.kl, ("s", "ss"), "t")}, {"s": z, "ss": z, "t": z})
    ValueError: evaluate: term 'a', ('s', 'ss') towards 't': TypeError: kl() takes 2 positional
fcfd.evaluate({"a": Term(losses.cross_entropy, "s", "Labels")}, {"s": z})
    ValueError: evaluate: term 'a' reads 'Labels', which is missing; give it with the batch.
fcfd.evaluate({"a": Term(losses.cross_entropy, "s", "Labels")}, {"s": z, "Labels": padded})
    ValueError: evaluate: term 'a', 's' towards 'Labels': IndexError: Target -100 is out of bounds
fcfd.evaluate({"a": Term(losses.cross_entropy, "s", "Labels")}, {"s": z, "Labels": beyond})
    ValueError: evaluate: term 'a', 's' towards 'Labels': IndexError: Target 30 is out of bounds
fcfd.weighted_sum({}, {})
    ValueError: weighted_sum: there is no term to add up.
fcfd.weighted_sum(terms, {})
    ValueError: weighted_sum: parts['label'] must be a scalar, as fcfd.evaluate returns it.
fcfd.weighted_sum(None, {})
    TypeError: weighted_sum: terms is of type NoneType; give a recipe: {name: Term}.
fcfd.weighted_sum({"a": Term(losses.kl, "s", "t", "2")}, {"a": z.sum()})
    TypeError: weighted_sum: the weight of term 'a' '2' must be a number.
fcfd.weighted_sum({"a": Term(losses.kl, "s", "t", None)}, {"a": z.sum()})
    TypeError: weighted_sum: the weight of term 'a' None must be a number.
fcfd.weighted_sum({"a": Term(losses.kl, "s", "t", torch.ones(3))}, {"a": z.sum()})
    ValueError: weighted_sum: the weight of term 'a' [3] must be a number, or a tensor of one, [].
fcfd.weighted_sum({"a": Term(losses.kl, "s", "t")}, {"a": z})
    ValueError: weighted_sum: parts['a'] must be a scalar, as fcfd.evaluate returns it.
fcfd.weighted_sum({"a": Term(losses.kl, "s", "t")}, {"a": None})
    ValueError: weighted_sum: parts['a'] must be a scalar, as fcfd.evaluate returns it.
fcfd.walk("sstt", *nets.columns, values)
    TypeError: walk: plan is the string 'sstt'; give fcfd.plan(('sstt',)).
fcfd.walk(None, *nets.columns, values)
    TypeError: walk: plan is of type NoneType; give the paths that fcfd.plan returns.
fcfd.walk(("s",), None, None, None, values)
    TypeError: walk: stages is of type NoneType; give a dict by column: {'s': ..., 't': ...}.
fcfd.walk(("s",), nets.stages, nets.params, nets.buffers, None)
    TypeError: walk: values is of type NoneType; give what is known, by path: {'': batch}.
fcfd.walk(("s",), nets.stages, nets.params, nets.buffers, {})
    ValueError: walk: path 's' reads the batch, values[''], which is missing.
fcfd.walk(("s",), nets.stages, nets.params, nets.buffers, images)
    TypeError: walk: values is of type Tensor; give what is known, by path: {'': batch}.
fcfd.walk(("s",), nets.stages, nets.params, nets.buffers, {"": None})
    ValueError: walk: path 's': entry 0 of column 's' cannot run on tuple (no tensor) from '':
fcfd.walk(("s",), nets.stages, nets.params, nets.buffers, {"": images.numpy()})
    ValueError: walk: path 's': entry 0 of column 's' cannot run on tuple (no tensor) from '':
fcfd.walk(("s",), nets.stages, nets.params, nets.buffers, {"": images.float()})
    ValueError: walk: path 's': entry 0 of column 's' cannot run on [4, 3, 8, 8] from '': Input type
fcfd.walk(("s",), nets.stages, nets.params, nets.buffers, {"": images[0, 0]})
    ValueError: walk: path 's': entry 0 of column 's' cannot run on [8, 8] from '': Expected 3D
fcfd.walk(("x",), *nets.columns, values)
    ValueError: walk: path 'x' needs network 'x'; there are 't', 's', 's>t', 't>s'.
fcfd.walk(("sss",), *nets.columns, values)
    ValueError: walk: path 'sss' reads 'ss', which is not known and not earlier in the plan; walk
fcfd.walk(("s", "s&t"), *nets.columns, values)
    ValueError: walk: path 's&t' needs bridges 's&t'; there are 't', 's', 's>t', 't>s'.
fcfd.walk(("s",), {"s": (None,)}, {"s": {}}, {"s": {}}, values)
    ValueError: walk: path 's' needs a bridge 's' after stage 0, which was not built; name the path
fcfd.walk(("s",), {"s": (3,)}, {"s": {}}, {"s": {}}, values)
    ValueError: walk: path 's': entry 0 of column 's' cannot run on [4, 3, 8, 8] from '': TypeError:
fcfd.walk(("s",), {"s": None}, {"s": {}}, {"s": {}}, values)
    TypeError: walk: stages['s'] is of type NoneType; give a tuple of stages.
fcfd.walk(("s",), nets.stages, {"s": None}, nets.buffers, values)
    TypeError: walk: params['s'] is of type NoneType; give a flat dict of tensors by name.
fcfd.walk(("s",), nets.stages, {}, nets.buffers, values)
    ValueError: walk: path 's' needs params['s'], which is missing.
fcfd.walk(("s",), nets.stages, {"s": {}}, nets.buffers, values)
    ValueError: walk: path 's': entry 0 of column 's' cannot run on [4, 3, 8, 8] from '': stage: params
fcfd.walk(("s",), nets.stages, nets.params, {"s": {}}, values)
    ValueError: walk: path 's': entry 0 of column 's' cannot run on [4, 3, 8, 8] from '': stage:
fcfd.walk(("s",), nets.stages, nets.params, {}, values)
    ValueError: walk: path 's' needs buffers['s'], which is missing.
fcfd.merge_buffers({}, {"s": {"a": z}})
    ValueError: merge_buffers: path 's' wrote to 's', which buffers lacks.
fcfd.merge_buffers(None, {})
    TypeError: merge_buffers: buffers is of type NoneType; give a dict by column.
fcfd.merge_buffers({"s": {}}, {"S": {}})
    ValueError: step: 'S' ends the path 'S', which must end in a network: one letter a-z.
fcfd.objective(terms, *nets.columns, {"": images})
    ValueError: evaluate: term 'label' reads 'Labels', which is missing; give it with the batch.
fcfd.objective({}, *nets.columns, values)
    ValueError: weighted_sum: there is no term to add up.
fcfd.objective(None, *nets.columns, values)
    TypeError: objective: terms is of type NoneType; give a recipe: {name: Term}.
fcfd.objective([Term(losses.kl, "s", "t")], *nets.columns, values)
    TypeError: objective: terms is of type list; give a recipe: {name: Term}.
recipes.kd(0)
    ValueError: kd: depth 0 must be at least 1.
recipes.kd(None)
    TypeError: kd: depth None must be a whole number.
recipes.kd(4.0)
    TypeError: kd: depth 4.0 must be a whole number.
recipes.kd(4, teacher="s")
    ValueError: kd: student and teacher are both 's'; no network teaches itself.
recipes.kd(4, student="st")
    ValueError: kd: student is 'st'; a network is one letter a-z.
recipes.kd(4, temperature=0)
    ValueError: kd: temperature 0 must be above 0.
recipes.kd(4, temperature=-1.0)
    ValueError: kd: temperature -1.0 must be above 0.
recipes.kd(4, temperature=float("nan"))
    ValueError: kd: temperature nan must be above 0.
recipes.kd(4, temperature=None)
    TypeError: kd: temperature None must be a number.
recipes.kd(4, temperature="4")
    TypeError: kd: temperature '4' must be a number.
recipes.hints("ss>t")
    ValueError: hints: paths is the string 'ss>t'; give a tuple of paths: ('ss>t',).
recipes.hints(("ss",))
    ValueError: hints: path 'ss' does not end in a bridge; write 'ss>t' or the like.
recipes.hints(None)
    TypeError: hints: paths is a NoneType; give a tuple or list of paths.
recipes.hints(("ss>t", "ss>t"))
    ValueError: hints: path 'ss>t' is given twice.
recipes.appearance(4, ("ssss>t",))
    ValueError: appearance: path 'ssss>t' runs 4 stages; of 4, features to bridge are at depths 1 to 3.
recipes.appearance(4, ("sst",))
    ValueError: appearance: path 'sst' does not end in a bridge; write 'sst>t' or the like.
recipes.appearance(4, "ss>t")
    ValueError: appearance: paths is the string 'ss>t'; give a tuple of paths: ('ss>t',).
recipes.appearance(None, ("s>t",))
    TypeError: appearance: depth None must be a whole number.
recipes.function(4, "sstt")
    ValueError: function: paths is the string 'sstt'; give a tuple of paths: ('sstt',).
recipes.function(4, ("sst",))
    ValueError: function: path 'sst' runs 3 stages; a path to the logits runs 4.
recipes.function(4, ("ssss",))
    ValueError: function: path 'ssss' stays in one network; a crossed path has two.
recipes.function(4, ("ss>t",))
    ValueError: function: path 'ss>t' runs 2 stages; a path to the logits runs 4.
recipes.function(4, ("sssss",))
    ValueError: function: path 'sssss' runs 5 stages; a path to the logits runs 4.
recipes.function(4, ("sstt", "sstt"))
    ValueError: function: path 'sstt' is given twice.
recipes.function(4, iter(("sstt",)))
    TypeError: function: paths is a tuple_iterator; give a tuple or list of paths.
recipes.function(4, ("sstt",), temperature=0.0)
    ValueError: function: temperature 0.0 must be above 0.
recipes.function(4, ("sstt",), teacher="tt")
    ValueError: pure: a network is one letter a-z, not 'tt'.
recipes.fcfd(4, "sstt", ())
    ValueError: fcfd: paths is the string 'sstt'; give a tuple of paths: ('sstt',).
recipes.fcfd(4, (), "s>t")
    ValueError: fcfd: paths is the string 's>t'; give a tuple of paths: ('s>t',).
recipes.fcfd(4, (), ("ss",))
    ValueError: fcfd: path 'ss' does not end in a bridge; write 'ss>t' or the like.
recipes.fcfd(0, (), ())
    ValueError: fcfd: depth 0 must be at least 1.
recipes.fcfd(4, None, None)
    TypeError: fcfd: paths is a NoneType; give a tuple or list of paths.
recipes.simkd(1)
    ValueError: simkd: depth 1 must be at least 2.
recipes.simkd(4, teacher="s")
    ValueError: simkd: student and teacher are both 's'; no network teaches itself.
recipes.srrl(1)
    ValueError: srrl: depth 1 must be at least 2.
recipes.srrl(4, student="t")
    ValueError: srrl: student and teacher are both 't'; no network teaches itself.
recipes.fula("ssss")
    ValueError: fula: path 'ssss' stays in one network; a stitch leads into another.
recipes.fula("ss>")
    ValueError: step: '>' ends the path 'ss>', which must end in a network: one letter a-z.
recipes.fula("sstt", weights=(1.0,))
    ValueError: fula: 1 weights for the 3 values ['ss>t', 'sst', 'sstt']; give one each.
recipes.fula("sstt", weights=(1.0, float("nan"), 1.0))
    ValueError: fula: a weight nan must be finite.
recipes.fula(None)
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
recipes.hybrid_assistant(2)
    ValueError: hybrid_assistant: depth 2 must be at least 3.
recipes.hybrid_assistant(4, at=3)
    ValueError: hybrid_assistant: at is 3; of 4 stages the student has 1 to 2.
recipes.hybrid_assistant(4, at=0)
    ValueError: hybrid_assistant: at is 0; of 4 stages the student has 1 to 2.
recipes.hybrid_assistant(4, teacher="s")
    ValueError: hybrid_assistant: student and teacher are both 's'; no network teaches itself.
recipes.hybrid_assistant(4, temperature=0.0)
    ValueError: hybrid_assistant: temperature 0.0 must be above 0.
recipes.hybrid_assistant(4, gamma=None)
    TypeError: hybrid_assistant: gamma None must be a number.
recipes.multi_teacher({})
    ValueError: multi_teacher: there is no recipe; give one for each teacher by its letter.
recipes.multi_teacher(None)
    TypeError: multi_teacher: recipes is of type NoneType; give a dict of recipes by the teacher's
recipes.multi_teacher({"a": None})
    TypeError: multi_teacher: terms is of type NoneType; give a recipe: {name: Term}.
recipes.multi_teacher(("a", "b"))
    TypeError: multi_teacher: recipes is of type tuple; give a dict of recipes by the teacher's letter.
losses.fcfd(*nets.columns, images, labels, paths="sstt")
    ValueError: fcfd: paths is the string 'sstt'; give a tuple of paths: ('sstt',).
losses.fcfd(*nets.columns, images, labels, paths=None)
    TypeError: fcfd: paths is a NoneType; give a tuple or list of paths.
losses.fcfd(*nets.columns, images, labels, paths=("sst",))
    ValueError: fcfd: path 'sst' runs 3 stages; a path to the logits runs 4.
losses.fcfd(*nets.columns, images, labels, paths=("ssss",))
    ValueError: fcfd: path 'ssss' stays in one network; a crossed path has two.
losses.fcfd(*nets.columns, images, labels, paths=("sssttt",))
    ValueError: fcfd: path 'sssttt' runs 6 stages; a path to the logits runs 4.
losses.fcfd(*nets.columns, images, labels, paths=("ssxx",))
    ValueError: walk: path 'ss>x' needs bridges 's>x'; there are 't', 's', 's>t', 't>s'.
losses.fcfd(*nets.columns, images, labels, paths=("sstt", "sstt"))
    ValueError: fcfd: path 'sstt' is given twice.
losses.fcfd(*nets.columns, images, labels, paths=iter(("sstt",)))
    TypeError: fcfd: paths is a tuple_iterator; give a tuple or list of paths.
losses.fcfd(*nets.columns, images, labels, paths=(), student="q")
    ValueError: fcfd: there is no network 'q'; stages has 't', 's', 's>t', 't>s'.
losses.fcfd(*nets.columns, images, labels, paths=(), teacher="q")
    ValueError: fcfd: there is no network 'q'; stages has 't', 's', 's>t', 't>s'.
losses.fcfd(*nets.columns, images, labels, paths=(), teacher="s")
    ValueError: fcfd: student and teacher are both 's'; no network teaches itself.
losses.fcfd(*nets.columns, images, labels, paths=(), temperature=0)
    ValueError: kd: temperature 0 must be above 0.
losses.fcfd(*nets.columns, images, labels, paths=(), temperature=-4.0)
    ValueError: kd: temperature -4.0 must be above 0.
losses.fcfd(*nets.columns, images, labels, paths=(), temperature=None)
    TypeError: kd: temperature None must be a number.
losses.fcfd(*nets.columns, images, labels, paths=(), feature_weight=None)
    TypeError: scaled: weights['feature/s>t'] None must be a number.
losses.fcfd(*nets.columns, images, labels, paths=(), feature_weight=float("nan"))
    ValueError: scaled: weights['feature/s>t'] nan must be finite.
losses.fcfd(*nets.columns, images, labels, paths=(), feature_weight="5")
    TypeError: scaled: weights['feature/s>t'] '5' must be a number.
losses.fcfd(*nets.columns, images, labels, paths=(), feature_weight=torch.ones(2))
    ValueError: scaled: weights['feature/s>t'] [2] must be a number, or a tensor of one, [].
losses.fcfd(*nets.columns, images, labels, paths=(), label_weight=float("inf"))
    ValueError: scaled: weights['label'] inf must be finite.
losses.fcfd(*nets.columns, images, labels, paths=(), change=3)
    TypeError: fcfd: change is of type int; give a function.
losses.fcfd(*nets.columns, images, labels, paths=(), change=lambda terms: None)
    TypeError: fcfd: change: terms is of type NoneType; give a recipe: {name: Term}.
losses.fcfd(*nets.columns, images[:0], labels[:0], paths=())
    ValueError: fcfd: the batch [0, 3, 8, 8] is empty.
losses.fcfd(*nets.columns, images.to(torch.uint8), labels, paths=())
    ValueError: fcfd: images [4, 3, 8, 8] are torch.uint8; make them floats, normalised, first.
losses.fcfd(*nets.columns, images.float(), labels, paths=())
    ValueError: walk: path 's': entry 0 of column 's' cannot run on [4, 3, 8, 8] from '': Input type
losses.fcfd(*nets.columns, images.numpy(), labels, paths=())
    TypeError: fcfd: images is of type ndarray and holds no tensor; give a batch.
losses.fcfd(*nets.columns, None, labels, paths=())
    TypeError: fcfd: images is of type NoneType and holds no tensor; give a batch.
losses.fcfd(*nets.columns, images, None, paths=())
    ValueError: evaluate: term 'label', 'ssss' towards 'Labels': TypeError: cross_entropy: labels is of
losses.fcfd(*nets.columns, images, labels.numpy(), paths=())
    ValueError: evaluate: term 'label', 'ssss' towards 'Labels': TypeError: cross_entropy: labels is of
losses.fcfd(*nets.columns, images, labels.tolist(), paths=())
    ValueError: evaluate: term 'label', 'ssss' towards 'Labels': TypeError: cross_entropy: labels is of
losses.fcfd(*nets.columns, images, labels[:2], paths=())
    ValueError: evaluate: term 'label', 'ssss' towards 'Labels': cross_entropy: labels [2] of
losses.fcfd(*nets.columns, images, labels.double(), paths=())
    ValueError: evaluate: term 'label', 'ssss' towards 'Labels': TypeError: cross_entropy: labels [4]
losses.fcfd(*nets.columns, images, labels.bool(), paths=())
    ValueError: evaluate: term 'label', 'ssss' towards 'Labels': TypeError: cross_entropy: labels [4]
losses.fcfd(*nets.columns, images, labels - 100, paths=())
    ValueError: evaluate: term 'label', 'ssss' towards 'Labels': IndexError: Target -99 is out of bounds
losses.fcfd(*nets.columns, images, {"Label": labels}, paths=())
    ValueError: evaluate: term 'label' reads 'Labels', which is missing; give it with the batch.
losses.fcfd(None, None, None, images, labels, paths=())
    TypeError: fcfd: stages is of type NoneType; give a dict of columns, as fcfd.link makes:
losses.fcfd(nets, nets.params, nets.buffers, images, labels, paths=())
    TypeError: fcfd: stages is of type Linked; give a dict of columns, as fcfd.link makes:
losses.fcfd(nets.stages, None, nets.buffers, images, labels, paths=())
    TypeError: fcfd: params is of type NoneType; give a dict by column: {'s': ..., 't': ...}.
losses.fcfd(nets.stages, student.state_dict(), nets.buffers, images, labels, paths=())
    ValueError: walk: path 's' needs params['s'], which is missing.
losses.fcfd(shorter, nets.params, nets.buffers, images, labels, paths=())
    ValueError: fcfd: network 's' has 4 stages, 't' has 3; cut them alike.
losses.function(*nets.columns, images, paths=())
    ValueError: function: there is no path; give at least one, as fcfd.draw does.
losses.function(*nets.columns, images, paths="sstt")
    ValueError: function: paths is the string 'sstt'; give a tuple of paths: ('sstt',).
losses.function(*nets.columns, images, paths=("ssss",))
    ValueError: function: path 'ssss' stays in one network; a crossed path has two.
losses.function(*nets.columns, images, paths=("sst",))
    ValueError: function: path 'sst' runs 3 stages; a path to the logits runs 4.
losses.function(*nets.columns, None, paths=("sstt",))
    TypeError: function: images is of type NoneType and holds no tensor; give a batch.
losses.function(*nets.columns, images, paths=("sstt",), feature_weight=0.0, path_weight=0.0)
    ValueError: weighted_sum: there is no term to add up.
losses.appearance(*nets.columns, images, student="q")
    ValueError: appearance: there is no network 'q'; stages has 't', 's', 's>t', 't>s'.
losses.appearance(*nets.columns, images[:0])
    ValueError: appearance: the batch [0, 3, 8, 8] is empty.
losses.appearance(*nets.columns, None)
    TypeError: appearance: images is of type NoneType and holds no tensor; give a batch.
losses.appearance({k: v for k, v in nets.stages.items() if len(k) == 1}, nets.params, nets.buffers, images)
    ValueError: appearance: no bridge was built from 's' to 't'; link some.
fcfd.link({}, example=images)
    ValueError: link: networks is empty; give {'t': fcfd.split(teacher), 's': fcfd.split(student)}.
fcfd.link(None, example=images)
    TypeError: link: networks is of type NoneType; give a dict by letter: {'t': fcfd.split(teacher),
fcfd.link(cut)
    TypeError: link() missing 1 required keyword-only argument: 'example'
fcfd.link(cut, example=None)
    ValueError: walk: path 't': entry 0 of column 't' cannot run on tuple (no tensor) from '':
fcfd.link(cut, example=images.numpy())
    ValueError: walk: path 't': entry 0 of column 't' cannot run on tuple (no tensor) from '':
fcfd.link(cut, example=images.float())
    ValueError: walk: path 't': entry 0 of column 't' cannot run on [4, 3, 8, 8] from '': Input type
fcfd.link({"t": teacher, "s": student}, example=images)
    TypeError: link: networks['t'] is a ModuleList; split it first: {'t': fcfd.split(model)}.
fcfd.link({"t": cut["t"]}, example=images)
    ValueError: link: there is no network 's', only 't'.
fcfd.link({"t": cut["t"], "S": cut["s"]}, example=images)
    ValueError: pure: a network is one letter a-z, not 'S'.
fcfd.link({"t": cut["t"], "st": cut["s"]}, example=images)
    ValueError: pure: a network is one letter a-z, not 'st'.
fcfd.link(cut, example=images, student="t")
    ValueError: link: student and teacher are both 't'; link a network to another one.
fcfd.link(cut, example=images, teacher="q")
    ValueError: link: there is no network 'q', only 't', 's'.
fcfd.link(cut, example=images, paths="sstt")
    ValueError: link: paths is the string 'sstt'; give a tuple of paths: ('sstt',).
fcfd.link(cut, example=images, paths=("ss>tt",))
    ValueError: step: write 'sst' for 'ss>tt': one name for one value.
fcfd.link(cut, example=images, paths=("sssst",))
    ValueError: link: path 'ssss>t' is too long: networks of 4 stages have features to bridge at depths
fcfd.link(cut, example=images, paths=("sq",))
    ValueError: link: path 's>q' needs network 'q', which is not given.
fcfd.link(cut, example=images, paths=(None,))
    TypeError: expand: a path is a string such as 'ssttt', not NoneType.
fcfd.link(cut, example=images, paths=iter(()))
    TypeError: link: paths is a tuple_iterator; give a tuple or list of paths.
fcfd.link(cut, example=images, bridges={"ss>t": None})
    TypeError: link: bridges['ss>t'] is of type NoneType; give a Module.
fcfd.link(cut, example=images, bridges={"ss>t": other_width})
    ValueError: link: your bridge 'ss>t' returns [4, 7, 4, 4]; the feature there is [4, 8, 4, 4].
fcfd.link(cut, example=images, bridges={"ss>t": other_source})
    ValueError: link: your bridge 'ss>t' cannot read the feature: Given groups=1, weight of size [8, 5,
fcfd.link(cut, example=images, bridges={"ss>q": nn.Identity()})
    ValueError: link: no path needs your bridge 'ss>q', only 's>t', 'ss>t', 't>s', 'tt>s', 'sss>t'.
fcfd.link(cut, example=images, bridges={"sst": nn.Identity()})
    ValueError: link: no path needs your bridge 'sst', only 's>t', 'ss>t', 't>s', 'tt>s', 'sss>t'.
fcfd.link(cut, example=images, bridges=[nn.Identity()])
    TypeError: link: bridges is of type list; give a dict of Module by path.
fcfd.link(cut, example=images, bridges={"ss>t": lambda x: x})
    TypeError: link: bridges['ss>t'] is of type function; give a Module.
fcfd.link(cut, example=images, paths=("ss&tt",))
    ValueError: link: 'ss&t' needs a bridge that sees its target: pass bridges={'ss&t': ...}.
fcfd.link(cut, example=images, layouts={"q": "b c h w"})
    ValueError: link: layouts names 'q', which is no network and no feature; there are 't', 's', 't',
fcfd.link(cut, example=images, layouts={"s": "b c"})
    ValueError: layout 'b c': a feature [4, 3, 8, 8] does not have these axes.
fcfd.link(cut, example=images, layouts={"s": None})
    TypeError: link: layouts['s'] is of type NoneType; give a str.
fcfd.link(cut, example=images, layouts="b c h w")
    TypeError: link: layouts is of type str; give a dict of str by path.
fcfd.bridge(None, (2, 3))
    TypeError: bridge: source is of type NoneType; give the shape of a feature, as
fcfd.bridge((2, 3), None)
    TypeError: bridge: target is of type NoneType; give the shape of a feature, as
fcfd.bridge((2,), (2, 3))
    ValueError: bridge: no bridge leads from [2] to [2, 3]. Maps [batch, channels, height, width] and
fcfd.bridge((2, 3, 4, 4), (2, 5))
    ValueError: bridge: no bridge leads from [2, 3, 4, 4] to [2, 5]. Maps [batch, channels, height,
fcfd.bridge((2, 3, 4, 4, 4, 4), (2, 3, 4, 4, 4, 4))
    ValueError: bridge: no bridge leads from [2, 3, 4, 4, 4, 4] to [2, 3, 4, 4, 4, 4]. Maps [batch,
fcfd.bridge((2, 15, 6), (2, 3, 4, 4))
    ValueError: bridge: 15 tokens are no grid of 4·4 or its ratio, with at most five class tokens.
fcfd.bridge((2, 0), (2, 3))
    ValueError: bridge: a size of source 0 must be at least 1.
fcfd.bridge((2, 3.5), (2, 3))
    TypeError: bridge: a size of source 3.5 must be a whole number.
fcfd.bridge((2, 3), (2, -3))
    ValueError: bridge: a size of target -3 must be at least 1.
fcfd.bridge((2, 3, 4, 4), (2, 5, 4, 4), layouts="b c h w")
    TypeError: bridge: layouts is of type str; give a pair: (of the source, of the target).
fcfd.bridge((2, 3, 4, 4), (2, 5, 4, 4), layouts=("b c", None))
    ValueError: layout 'b c': a feature [2, 3, 4, 4] does not have these axes.
fcfd.bridge((2, 3, 4, 4), (2, 5, 4, 4), layouts=("b c h h", None))
    ValueError: layout 'b c h h': name every axis once, 'b' the batch and 'c' the channels.
fcfd.bridge(images, images)
    TypeError: bridge: source is of type Tensor; give the shape of a feature, as tuple(feature.shape).
fcfd.layouts.parse(None)
    TypeError: parse: a layout is a pattern such as 'b c t', not NoneType.
fcfd.layouts.parse("b t")
    ValueError: layout 'b t': name every axis once, 'b' the batch and 'c' the channels.
fcfd.layouts.parse("b c ...")
    ValueError: layout 'b c ...': '...' is no axis; write names such as 'b c h w'.
fcfd.layouts.into_form(images, fcfd.layouts.parse("b c t"))
    ValueError: layout 'b c t': a feature [4, 3, 8, 8] does not have these axes.
fcfd.layouts.into_form(None, fcfd.layouts.parse("b c t"))
    TypeError: layout: the feature is of type NoneType; give a tensor.
fcfd.layouts.grid(5, ratio=1.0)
    ValueError: layout: 5 tokens may be 1 + 2·2 or 4 + 1·1; state one, as in 'b (1 + h=14 w) c'.
fcfd.layouts.grid(61, layout=fcfd.layouts.parse("b (1 + h=7 w) c"))
    ValueError: layout 'b (h w) c' with {'h': 7}: 61 tokens are no such grid.
fcfd.match([(2, 3)], [(2, 3), (2, 3)])
    ValueError: match: the longer network has 1 features, the shorter 2; exchange them.
fcfd.match(None, [])
    TypeError: match: longer is of type NoneType; give the shapes of a network's features.
fcfd.match([(2, 3)], [()])
    ValueError: match: shorter has [], which is no shape of a feature.
fcfd.match([(2, 0, 3, 3)], [(2, 3, 0, 0)])
    ValueError: match: longer has [2, 0, 3, 3], which is no shape of a feature.
fcfd.joined(nets.stages["s"], (1, 2))
    ValueError: joined: ends [1, 2] must increase from at least 1 to 4, the number of stages of a
fcfd.joined(nets.stages["s"], (2, 1, 4))
    ValueError: joined: ends [2, 1, 4] must increase from at least 1 to 4, the number of stages of a
fcfd.joined(nets.stages["s"], ())
    ValueError: joined: ends [] must increase from at least 1 to 4, the number of stages of a network
fcfd.joined(None, (1,))
    TypeError: joined: stages is of type NoneType; give a column: the tuple of a network's stages.
fcfd.joined(nets.stages["s"], None)
    TypeError: joined: ends is of type NoneType; give the depth at which each new stage ends.
fcfd.compiled(nets)
    TypeError: compiled: stages is a Linked; give one of its columns: network.stages, or
fcfd.compiled(teacher)
    TypeError: compiled: stages is of type ModuleList; give a column: the tuple of a network's stages.
fcfd.compiled(None)
    TypeError: compiled: stages is of type NoneType; give a column: the tuple of a network's stages.
fcfd.compiled((3,))
    TypeError: compiled: stages[0] is of type int; give a function.
fcfd.compiled(cut["s"])
    TypeError: compiled: stages is a Network; give one of its columns: network.stages, or
fcfd.checkpointed(nets)
    TypeError: checkpointed: stages is a Linked; give one of its columns: network.stages, or
fcfd.checkpointed(None)
    TypeError: checkpointed: stages is of type NoneType; give a column: the tuple of a network's
fcfd.checkpointed(("s",))
    TypeError: checkpointed: stages[0] is of type str; give a function.
fcfd.checkpointed(cut["s"])
    TypeError: checkpointed: stages is a Network; give one of its columns: network.stages, or
fcfd.lean(nets)
    TypeError: lean: stages is a Linked; give one of its columns: network.stages, or
fcfd.lean(None)
    TypeError: lean: stages is of type NoneType; give a column: the tuple of a network's
fcfd.lean((), recompute="all")
    TypeError: lean: recompute is of type str; give True or False.
fcfd.lean(("s",))
    TypeError: lean: stages[0] is of type str; give a function.
fcfd.transforms.laid_out(nets.stages["s"], None)
    TypeError: laid_out: layouts is of type NoneType; give the layout of each stage's feature, or None.
fcfd.transforms.laid_out(nets.stages["s"], ("b c h w",))
    TypeError: laid_out: a layout is of type str; give a parsed layout, or None.
fcfd.terms.entry("a", losses.kl)(z, z)
    ValueError: entry: the prediction is one tensor and has no entry 'a'.
fcfd.terms.entry("a", losses.kl)({"b": z}, {"a": z})
    ValueError: entry: dict has no entry 'a'.
fcfd.terms.multi_level(losses.kl)([z], {"a": z})
    ValueError: multi_level: the prediction holds 1 tensors as list, the target 1 as dict. Bridge to
fcfd.terms.multi_level(losses.kl)([], [])
    ValueError: multi_level: prediction and target hold no tensor.
fcfd.terms.multi_level(None)
    TypeError: multi_level: loss is of type NoneType; give a function.
fcfd.bridges.MaskedMix(nn.Identity(), keep=1.5)
    ValueError: MaskedMix: keep 1.5 must be at least 0 and at most 1.
fcfd.bridges.MaskedMix(nn.Identity(), keep=float("nan"))
    ValueError: MaskedMix: keep nan must be at least 0 and at most 1.
fcfd.bridges.MaskedMix(None)
    TypeError: MaskedMix: bridge is of type NoneType; give a module that leads to the target's feature.
fcfd.bridges.MatchStatistics()(z)
    TypeError: MatchStatistics: its input is of type Tensor; give the pair (feature, seen).
fcfd.frozen(None)
    TypeError: frozen: tensors is of type NoneType; give a dict of tensors:
fcfd.frozen([z])
    TypeError: frozen: tensors is of type list; give a dict of tensors: dict(model.named_parameters()).
fcfd.frozen({"a": None})
    TypeError: frozen: tensors['a'] is of type NoneType; give a tensor.
fcfd.frozen(teacher)
    TypeError: frozen: tensors is of type ModuleList; give a dict of tensors:
fcfd.stage(None)
    TypeError: stage: a NoneType is no torch.nn.Module. Build the model, and pass that.
fcfd.stage(torch.relu)
    TypeError: stage: a builtin_function_or_method is no torch.nn.Module. Build the model, and pass
fcfd.stage(nn.Linear)
    TypeError: stage: the class Linear is no torch.nn.Module. Build the model, and pass that.
fcfd.stage(linear, prefix=None)
    TypeError: stage: prefix is of type NoneType; give what stands before the names in the dict, as
fcfd.stage(linear)({}, {}, z)
    ValueError: stage: params lacks 'weight' and 1 more. Pass the network's whole dict of params; it
fcfd.stage(linear)(None, {}, z)
    TypeError: stage: params is of type NoneType; give the network's whole dict of params.
fcfd.write_buffers_(teacher, {"nothing": z})
    ValueError: write_buffers_: ModuleList has no buffer 'nothing'.
fcfd.write_buffers_(teacher, None)
    TypeError: write_buffers_: buffers is of type NoneType; give what a walk returned for it:
fcfd.write_buffers_(None, {})
    TypeError: write_buffers_: module is of type NoneType; give the module that has the buffers.
fcfd.write_buffers_(norm, {"running_mean": torch.ones(3)})
    ValueError: write_buffers_: buffer 'running_mean' is [2], the new value [3].
fcfd.write_buffers_(norm, {"running_mean": None})
    TypeError: write_buffers_: buffers['running_mean'] is of type NoneType; give a tensor.
fcfd.write_buffers_(norm, {"running_mean": torch.ones(2, dtype=torch.complex64)})
    TypeError: write_buffers_: buffer 'running_mean' is of torch.float32, which cannot hold
fcfd.write_buffers_(norm, {"running_mean": torch.ones(2), "running_var": torch.ones(3)})
    ValueError: write_buffers_: buffer 'running_var' is [2], the new value [3].
fcfd.stage("resnet18")
    TypeError: stage: a str is no torch.nn.Module. Build the model, and pass that.
fcfd.stage(lazy)
    ValueError: stage: LazyLinear is lazy and has no shapes yet. Run it once on a batch first.
fcfd.frozen({"a": 3})
    TypeError: frozen: tensors['a'] is of type int; give a tensor.
fcfd.frozen(3)
    TypeError: frozen: tensors is of type int; give a dict of tensors: dict(model.named_parameters()).
fcfd.write_buffers_(norm, {"num_batches_tracked": torch.tensor(0.5)})
    TypeError: write_buffers_: buffer 'num_batches_tracked' is of torch.int64, which cannot hold
fcfd.write_buffers_(norm, [torch.ones(2)])
    TypeError: write_buffers_: buffers is of type list; give what a walk returned for it:
fcfd.write_buffers_("norm", {})
    TypeError: write_buffers_: module is of type str; give the module that has the buffers.
fcfd.split("resnet18")
    TypeError: split: 'resnet18' is no model. Pass a module, or a list of modules and functions.
fcfd.split(None)
    TypeError: split: a NoneType is no model. Pass a module, or a list of modules and functions.
fcfd.split(3)
    TypeError: split: a int is no model. Pass a module, or a list of modules and functions.
fcfd.split([])
    ValueError: split: an empty list has no stages. Pass a model, or a list of modules.
fcfd.split([None])
    TypeError: split: entry 0 of the list is None, and not a module or a function.
fcfd.split([linear, None])
    TypeError: split: entry 1 of the list is None, and not a module or a function.
fcfd.split([linear, "head"])
    TypeError: split: entry 1 of the list is 'head', and not a module or a function.
fcfd.split([nn.Linear])
    TypeError: split: entry 0 of the list is <class 'torch.nn.modules.linear.Linear'>, and not a
fcfd.split(nn.Linear)
    TypeError: split: the class Linear is no model. Pass a module, or a list of modules and functions.
fcfd.split(linear.state_dict())
    TypeError: split: a OrderedDict is no model. Pass a module, or a list of modules and functions.
fcfd.split({"a": linear})
    TypeError: split: a dict is no model. Pass a module, or a list of modules and functions.
fcfd.split([linear, linear], at=["0"])
    ValueError: split: a list of modules is a model in stages; it takes no names and no example.
fcfd.split([linear, linear], example=z)
    ValueError: split: a list of modules is a model in stages; it takes no names and no example.
fcfd.split([lazy])
    ValueError: split: LazyLinear is lazy and has no shapes yet. Run it once on a batch first.
fcfd.split(lazy, example=z)
    ValueError: split: LazyLinear is lazy and has no shapes yet. Run it once on a batch first.
fcfd.split(model, at=["0", "0"], example=x)
    ValueError: split: the boundary '0' is given twice.
fcfd.split(model, at=["nothing"], example=x)
    ValueError: split: Sequential has no module 'nothing'. Near: '0', '1'.
fcfd.split(model, at="0", example=x)
    TypeError: split: at='0'; pass a number of stages, or a list of names: at=['0'].
fcfd.split(model, at=0, example=x)
    ValueError: split: at=0 stages; a model has at least one.
fcfd.split(model, at=-1, example=x)
    ValueError: split: at=-1 stages; a model has at least one.
fcfd.split(model, at=2.5, example=x)
    TypeError: split: at=2.5; pass a number of stages, or a list of names: at=[2.5].
fcfd.split(model, at=[None], example=x)
    TypeError: split: a boundary is of type NoneType; give a name, or a tuple of names.
fcfd.split(model, at=[()], example=x)
    ValueError: split: a boundary is an empty tuple; name the modules where a stage ends.
fcfd.split(model, at=20, example=x)
    ValueError: split: Sequential has 0 resolutions and 0 blocks, which do not tell 19 boundaries. Pass
fcfd.split(model, at=["0"], example="x")
    ValueError: split: Sequential does not run on the example (TypeError: linear(): argument 'input'
fcfd.split(model, at=["0"], example=x[:, :2])
    ValueError: split: Sequential does not run on the example (RuntimeError: mat1 and mat2 shapes
fcfd.split(model, at=["0"], example=x.numpy())
    ValueError: split: Sequential does not run on the example (TypeError: linear(): argument 'input'
fcfd.split(torch.nn.DataParallel(model), at=["0"], example=x)
    ValueError: split: DataParallel wraps a model. Split its `module`, and distribute the training step.
"""


def _rows() -> list[tuple[str, str]]:
    lines = ROWS.strip().split("\n")
    return list(zip(lines[::2], map(str.strip, lines[1::2]), strict=True))


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    teacher, student, nets = pair()
    images, labels = batch()
    z = torch.randn(4, 10)
    return {
        "fcfd": fcfd,
        "losses": losses,
        "recipes": recipes,
        "schedules": schedules,
        "nn": nn,
        "torch": torch,
        "teacher": teacher,
        "student": student,
        "nets": nets,
        "images": images,
        "labels": labels,
        "z": z,
        "cut": {"t": fcfd.split(list(teacher)), "s": fcfd.split(list(student))},
        "values": {"": images, "Labels": labels},
        "terms": recipes.kd(4),
        "Term": Term,
        "padded": torch.tensor([0, 1, 2, -100]),
        "beyond": torch.tensor([0, 1, 2, 30]),
        "shorter": nets.stages | {"t": nets.stages["t"][:3]},
        "lazy": nn.LazyLinear(2),
        "model": nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        "x": torch.randn(2, 6),
        "linear": nn.Linear(2, 2),
        "norm": nn.BatchNorm1d(2),
        "other_width": nn.Conv2d(6, 7, 1).double(),
        "other_source": nn.Conv2d(5, 8, 1).double(),
    }


def test_there_are_many() -> None:
    assert len(_rows()) >= 300
    assert len({call for call, _ in _rows()}) == len(_rows())


@pytest.mark.parametrize(("call", "raised"), _rows(), ids=[call for call, _ in _rows()])
def test_it_is_refused_and_nothing_changes(call: str, raised: str, world: dict[str, Any]) -> None:
    things = [world[name] for name in ("teacher", "student", "linear", "norm", "model")]
    things += [world[name] for name in ("images", "labels", "z", "values")]
    things += [world["nets"].params, world["nets"].buffers, world["nets"].bridges]
    before = snapshot(*things)
    with pytest.raises((ValueError, TypeError)) as error:
        eval(call, dict(world))
    kind, _, text = raised.partition(": ")
    assert (type(error.value).__name__, str(error.value)[: len(text)]) == (kind, text)
    assert_unchanged(before, *things)
