"""API pages with the comments of fields: where a field has no docstring, the comment
above it, or behind it, is its description.
"""

import griffe


class FieldComments(griffe.Extension):
  """Gives attributes the comments of their source as docstrings."""

  def on_attribute_instance(self, *, attr, **kwargs):
    """Called by griffe for every attribute that it has read."""
    del kwargs
    if attr.docstring is not None or attr.lineno is None:
      return
    if not isinstance(attr.parent, griffe.Class):
      return
    lines = attr.filepath.read_text(encoding='utf-8').splitlines()
    comment = []
    number = attr.lineno - 2
    while number >= 0 and lines[number].lstrip().startswith('# '):
      comment.insert(0, lines[number].strip().removeprefix('# '))
      number -= 1
    line = lines[attr.lineno - 1]
    if not comment and '  # ' in line:
      comment = [line.split('  # ', 1)[1].strip()]
    if comment:
      text = ' '.join(comment)
      attr.docstring = griffe.Docstring(
        text[0].upper() + text[1:], parent=attr, lineno=attr.lineno
      )
