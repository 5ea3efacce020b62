"""
The models in the cache, those that --model has fetched or converted:

    qwen-ms cache                                    # list them
    qwen-ms cache --delete Qwen/Qwen-1_8B-Chat       # delete one, all its revisions; without a question

A model that was deleted is fetched and converted again when it is named again, as the hub then has it.
"""
import argparse
import time

from qwen_mindspore.checkpoint.hub import HUBS
from qwen_mindspore.checkpoint.model_cache import entries, remove
from qwen_mindspore.cli.command import run_command
from qwen_mindspore.common.files import cache_folder
from qwen_mindspore.common.progress import say
from qwen_mindspore.common.text import closest, readable_bytes

NAME = "cache"
HEADER = ("NAME", "REVISION", "WHAT", "SIZE", "LAST USED")
COMMIT_LENGTH = 7  # as git shortens them


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delete", nargs="+", default=[], metavar="NAME", help="as the list has them")
    parser.add_argument("--revision", metavar="R", help="with --delete: this one alone")
    parser.add_argument("--hub", choices=list(HUBS), help="with --delete: what was fetched from there alone")
    args = parser.parse_args(argv)
    if (args.revision or args.hub) and not args.delete:
        parser.error(f"--{'revision' if args.revision else 'hub'} goes with --delete")
    return args


def table(found):
    """The lines of a list of Entry."""
    rows = [HEADER, *((entry.name, revision_of(entry), entry.what, readable_bytes(entry.size),
                       time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))) for entry in found)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def revision_of(entry):
    """As the user said it, with the commit that it was; of another hub than the default one, with that."""
    if entry.info["hub"] not in HUBS:
        return "-"
    revision, commit = entry.info["revision"], entry.info["commit"]
    hub = "" if entry.info["hub"] == next(iter(HUBS)) else f", {entry.info['hub']}"
    same = commit.startswith(revision)
    names = ", ".join([revision, *entry.info.get("aliases", [])])
    return (revision[:12] if same else f"{names} ({commit[:COMMIT_LENGTH]})") + hub


def chosen(args, found):
    """
    The entries that --delete means.

    Raises:
        ValueError: A name that is not there.
    """
    doomed = []
    for name in args.delete:
        of_name = [entry for entry in found if entry.name == name
                   and (args.revision is None or args.revision in entry.revisions)
                   and args.hub in (None, entry.info["hub"])]
        if not of_name:
            near = closest(name, [entry.name for entry in found])
            hint = f"did you mean {near}?" if near else "qwen-ms cache lists what is"
            revision = f" of revision {args.revision}" if args.revision else ""
            raise ValueError(f"--delete {name}: nothing{revision} in the cache; {hint}")
        doomed += of_name
    return list(dict.fromkeys(doomed))


def main(argv=None):
    """The command: the list is all that it prints on standard output. Returns the exit code."""
    args = parse_args(argv)

    def work(answers):
        found = entries()
        for entry in chosen(args, found):
            size = entry.size
            remove(entry)
            say(NAME, f"{entry.name}, {revision_of(entry)}: deleted, {readable_bytes(size)}")
        if not args.delete and found:
            print("\n".join(table(found)), file=answers)
            say(NAME, f"{readable_bytes(sum(entry.size for entry in found))} in {cache_folder('hub')}")
        elif not args.delete:
            say(NAME, f"no models in {cache_folder('hub')}")

    return run_command(NAME, work)
