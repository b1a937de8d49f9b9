"""A forecast as a flowchart in Mermaid's language, which Markdown viewers draw."""

from rayreid.console import clock
from rayreid.errors import escaped
from rayreid.masking import masked
from rayreid.pipeline.forecast.forecast import Forecast, Step
from rayreid.pipeline.forecast.standings import State

_COLOURS = {
    State.REUSED: "fill:#d7f0d7,stroke:#3a7d3a,color:#111",
    State.RESUMED: "fill:#fff2c9,stroke:#a67c00,color:#111",
    State.MADE: "fill:#d6e9f8,stroke:#2b6a99,color:#111",
}


def mermaid_of(forecast: Forecast) -> str:
    """Return the graph of all artifacts, each coloured by what a run would do about it."""
    lines = ["flowchart LR"]
    for step in forecast.steps:
        lines.append(f'    {_node(step.artifact.id)}["{_label(step, len(forecast.labels))}"]:::{step.standing.state}')
    known = {step.artifact.id for step in forecast.steps}
    for step in forecast.steps:
        for identifier in sorted({one.id for one in step.artifact.inputs.values()} & known):
            lines.append(f"    {_node(identifier)} --> {_node(step.artifact.id)}")
    lines += [f"    classDef {state} {colours}" for state, colours in _COLOURS.items()]
    return "\n".join(lines) + "\n"


def _node(identifier: str) -> str:
    return f"a{identifier}"  # a name that begins with a digit, or is a word of the language, would be misread


def _label(step: Step, experiments: int) -> str:
    whose = step.users[0] if len(step.users) == 1 and experiments > 1 else ""
    time = f"about {clock(step.estimate.seconds.likely)}" if step.estimate else ""
    parts = (whose, f"{step.role}: {step.standing.state}", time, str(step.artifact))
    return "<br/>".join(_quoted(part) for part in parts if part)


def _quoted(text: str) -> str:
    """Return a text in which what Mermaid would read as its own language is written by number."""
    return "".join(one if one.isalnum() or one in " _-./:=,%()" else f"#{ord(one)};" for one in escaped(masked(text)))
