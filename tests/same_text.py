"""Checks that what the training scripts share is the same text in all of them; with --write, copies it.

    python tests/same_text.py            # names what differs; exit status 1 if anything does
    python tests/same_text.py --write    # copies it from ppo_vanilla.py into the other scripts

Shared are: every function and class whose first line ends in "# shared", the options from `seed` to `reward_scale`, and
everything below the line that begins with "# Bookkeeping, shared". To change shared text, change ppo_vanilla.py, then
copy. A script need not have all shared functions, but what it has is marked and the same.
"""

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "ppo_vanilla.py"
DEFINITION = r"(?:^@.+\n)*^(?:def|class) {name}\b(?:.+\n|\n+(?= ))+"  # with decorators, to the last indented line
OPTIONS = r"^    seed: .+\n(?:.*\n)*?^    reward_scale: .+\n"
BOOKKEEPING = r"^# Bookkeeping, shared(?:.*\n)+"


def shared_parts(source):
    """source text -> {what: pattern that finds it}"""
    names = re.findall(r"^(?:def|class) (\w+)\b.*# shared$", source, re.MULTILINE)
    return {name: DEFINITION.format(name=name) for name in names} | {"options": OPTIONS, "bookkeeping": BOOKKEEPING}


def updated(source, text):
    """The text of another script with all that it shares with `source` copied, and the names of what differed."""
    parts, differing = shared_parts(source), []
    for name, pattern in parts.items():
        wanted = re.search(pattern, source, re.MULTILINE).group()
        found = re.search(pattern, text, re.MULTILINE)
        if found is None and name in ("options", "bookkeeping"):
            raise ValueError(f"there are no shared {name}")
        if found and found.group() != wanted:
            differing.append(name)
            text = text[: found.start()] + wanted + text[found.end() :]
    unknown = set(re.findall(r"^(?:def|class) (\w+)\b.*# shared$", text, re.MULTILINE)) - parts.keys()
    return text, differing + [f"{name} (marked as shared, but not in {SOURCE.name})" for name in sorted(unknown)]


def main(write=False):
    """Names what differs in the other scripts, or copies it. Returns whether nothing differs (any more)."""
    source, same = SOURCE.read_text(), True
    for path in sorted(SOURCE.parent.glob("ppo_*.py")):
        text, differing = updated(source, path.read_text())
        if write:
            path.write_text(text)
        for name in differing:
            copied = write and "(" not in name
            print(f"{path.name}: {name} {'copied from' if copied else 'differs from'} {SOURCE.name}")
            same &= copied
    return same


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--write"]):
        print(f"error: the only option is --write, got {' '.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if main(write="--write" in sys.argv) else 1)
