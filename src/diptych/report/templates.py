"""The templates of the pages, which lie beside this file."""

import jinja2


def template(name: str, package: str = "diptych.report") -> jinja2.Template:
    """A template by its file name; it trusts no text and no missing name.

    Args:
        name: of the file.
        package: that it lies in; what it includes may lie beside this file.
    """
    packages = dict.fromkeys((package, "diptych.report"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(one, ".") for one in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
