"""Reading YAML in which no key may be given twice: PyYAML would keep the last value and drop the others silently."""

from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from rayreid.errors import UserError, one_line

_MERGE = "tag:yaml.org,2002:merge"  # "<<"
_LONGEST = 300  # characters of a parser's message, which may repeat the document


def parse_yaml(text: str, source: str) -> Any:
    """Return the content of a YAML document.

    Args:
        text: The document.
        source: The file or override that the text is from, for messages.

    Raises:
        UserError: The text is not valid YAML, or a mapping has a key twice; the message names both lines.
    """
    try:
        return _checked(yaml.SafeLoader(text), source)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-02-30
        raise UserError(f"{source}: not valid YAML ({one_line(error, 'all', _LONGEST)})") from None


def _checked(loader: yaml.SafeLoader, source: str) -> Any:
    node = loader.get_single_node()
    if node is None:
        return None
    _refuse_circle(node, set(), set())
    for mapping in _mappings(node):
        _refuse_repetition(loader, mapping, source)
    return loader.construct_document(node)


def _refuse_circle(node: yaml.Node, above: set[int], sound: set[int]) -> None:
    """Refuse a value that contains itself by an alias: nothing that walks through it would ever end."""
    if id(node) in above:
        raise yaml.YAMLError(f"the value in line {node.start_mark.line + 1} contains itself by an alias")
    if id(node) in sound or not isinstance(node, yaml.CollectionNode):
        return
    above.add(id(node))
    for entry in node.value:
        for child in entry if isinstance(entry, tuple) else (entry,):
            _refuse_circle(child, above, sound)
    above.remove(id(node))
    sound.add(id(node))


def _mappings(root: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Yield every mapping of a document once, in the document's order; aliases may repeat it or form a circle."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [value for _, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def _refuse_repetition(loader: yaml.SafeLoader, mapping: yaml.MappingNode, source: str) -> None:
    first: dict[Hashable, yaml.Mark] = {}
    for node, _ in mapping.value:
        if not isinstance(node, yaml.ScalarNode):
            continue
        key, mark = _MERGE if node.tag == _MERGE else loader.construct_object(node), node.start_mark
        if not isinstance(key, Hashable):  # a scalar tagged as a list; PyYAML names it as an error
            continue
        if key in first:
            remedy = "write <<: [*one, *other]" if key == _MERGE else "keep one, or merge the two"
            raise UserError(
                f"{source}: key {node.value!r} is given twice, in line {first[key].line + 1} and in line "
                f"{mark.line + 1}; {remedy}"
            )
        first[key] = mark
