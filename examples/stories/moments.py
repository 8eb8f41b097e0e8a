"""Cut moments out of stories: a name is finished, a quotation closed, a pronoun chosen.

    python examples/stories/moments.py ../shared/data/stories examples/stories/moments.npz
    python examples/stories/moments.py ../shared/data/stories examples/stories/pronouns.npz pronoun

Every moment is the 48 characters before it; its label is the character that came. Ids say which
kind, and the row of the story: `name-12`, `quote-3`, `pronoun-8`. The same on every machine.
"""

import re
import sys
from pathlib import Path

import numpy as np

from condec import load_model

LENGTH, MOST = 48, 40
MOMENTS = {
    "name": re.compile(r"named [A-Z][a-z]+(?=[a-z][ .,!])"),  # but for its last letter
    "quote": re.compile(r'"[A-Z][^"]{8,40}[.!?,](?=")'),
    "pronoun": re.compile(r"[.!] (?=(?:He|She) )"),
}


def main(stories: str, out: str, *kinds: str) -> None:
    names = load_model(f"huggingface:{stories}").label_names or ()
    tokens = np.load(Path(stories) / "stories_500.npz")["tokens"]
    found: dict[str, tuple[np.ndarray, int]] = {}
    for kind in kinds or MOMENTS:
        moments = {}
        for row, story in enumerate(tokens):
            # One character a token; whatever is longer stands for one sign.
            text = "".join(n if len(n) == 1 else "\0" for n in (names[t] for t in story))
            ends = [one.end() for one in MOMENTS[kind].finditer(text) if one.end() >= LENGTH]
            if ends:
                moments[f"{kind}-{row}"] = (story[ends[0] - LENGTH : ends[0]], int(story[ends[0]]))
        found |= dict(list(moments.items())[:MOST])
    np.savez(
        out,
        ids=np.array(list(found)),
        tokens=np.stack([window for window, _ in found.values()]),
        labels=np.array([label for _, label in found.values()]),
    )
    print({kind: sum(one.startswith(kind) for one in found) for kind in kinds or MOMENTS})


if __name__ == "__main__":
    main(*sys.argv[1:])
