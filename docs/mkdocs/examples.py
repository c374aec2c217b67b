import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
SETTING = re.compile(r" *# doctest: .*")


class Examples(griffe.Extension):
    """Shows a docstring's `>>>` lines as code; griffe reads them only below a heading `Examples:`, Markdown as a quotation."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(lambda m: f"```pycon\n{SETTING.sub('', m[0])}\n```", obj.docstring.value)
