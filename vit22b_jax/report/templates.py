"""Loads templates of pages: strict, and safe for any text.

templates.environment().get_template('pairs.html').render(...)
"""

import functools
import re

import jinja2
import markupsafe

from vit22b_jax.report import charts, summary


@functools.cache
def environment() -> jinja2.Environment:
  """Returns the files of `template/`; a name that is missing is an error."""
  found = jinja2.Environment(
    loader=jinja2.PackageLoader('vit22b_jax.report', 'template'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  found.filters |= {
    'place': summary.place,
    'details': summary.details,
    'breakable': breakable,
    'look': charts.look,
  }
  return found


def breakable(name: str) -> markupsafe.Markup:
  """Returns a name that may be broken into lines behind its signs."""
  escaped = str(markupsafe.escape(name))
  return markupsafe.Markup(re.sub(r'([_/+-])', r'\1<wbr>', escaped))
