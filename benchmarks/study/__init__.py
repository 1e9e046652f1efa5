"""Does function consistency pay? One student and one teacher, many methods, paired by seed, on real data.

* `settings`: what is compared on what, as data. `networks`, `pictures`, `mails`: students, and data sets.
* `methods`: every method as a function from a moment of training to terms.
* `training`: one run. `driver`: many, each a line of a file.
* `probes`: gradients and functional distance. `cost`: what a step costs. `report`: tables and figures.
"""
