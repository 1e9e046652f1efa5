"""How griffe reads the docstrings of this library: two of their headings have other names there.

The page of `fcfd.losses` shows it in sections, and each has the docstring of its file; the module's own would
stand in every section.
"""

from typing import Any

import griffe


class Headings(griffe.Extension):
    """`Example:` holds examples, and the `Args:` of a record are its attributes."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the headings of one object."""
        if obj.docstring is None:
            return
        if obj.path == "fcfd.losses":
            obj.docstring = None
            return
        text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
        if obj.is_class:
            text = text.replace("\nArgs:\n", "\nAttributes:\n")
        obj.docstring.value = text
