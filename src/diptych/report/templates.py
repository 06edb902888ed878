"""The templates of the pages, which lie beside this file."""

import jinja2


def template(name: str) -> jinja2.Template:
    """A template by its file name; it trusts no text and no missing name."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diptych.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
