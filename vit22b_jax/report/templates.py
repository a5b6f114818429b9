"""Templates of pages: strict, and safe for any text.

templates.environment().get_template('pairs.html').render(...)
"""

import jinja2

from vit22b_jax.report import workdir


def environment() -> jinja2.Environment:
  """Finds the files in `template/`; a name that is missing is an error."""
  found = jinja2.Environment(
    loader=jinja2.PackageLoader('vit22b_jax.report', 'template'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  found.filters |= {'place': workdir.place, 'details': workdir.details}
  return found
