"""Identifiers of licences, as model hubs accept them."""

import difflib

from rayreid.errors import UserError, escaped

OTHER = "other"
"""Stands for every licence that has no identifier here; its text belongs beside the weights."""

_KNOWN = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1
lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
openmdw-1.0 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""

LICENCES = frozenset([*_KNOWN.split(), OTHER])
"""The identifiers, in lower case. Source: the list "Licenses" in the documentation of the Hugging Face Hub; most are
those of SPDX."""


def licence_named(text: str) -> str:
    """Return the identifier of a licence, in lower case.

    Raises:
        UserError: Model hubs do not know it; the message has the nearest identifier.
    """
    found = text.lower()
    if found in LICENCES:
        return found
    near = difflib.get_close_matches(found, sorted(LICENCES), n=1)
    hint = f"did you mean {near[0]}? Otherwise " if near else ""
    raise UserError(
        f"--license {escaped(text)}: model hubs do not know this identifier; {hint}give one like mit, apache-2.0 or "
        f"cc-by-nc-4.0, or {OTHER} for a licence without one"
    )
