"""List the project's configs by name.

Examples:
    tokendetr list
    tokendetr list dynamic --weights    # names with this word in them, and with trained weights
"""

from collections.abc import Sequence

from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.config.files import config_files, shipped_weights
from tokendetr.errors import ConfigError


@program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("word", nargs="?", default="", help="only names with this word in them")
    parser.add_argument("--weights", action="store_true", help="only those with trained weights")
    parser.add_argument("--paths", action="store_true", help="with their files")
    args = parser.parse_args(arguments)
    found = [(name, path) for name, path in sorted(config_files().items()) if args.word in name]
    if not found:
        raise ConfigError(f"no config has {args.word!r} in its name")
    for name, path in found:
        trained = shipped_weights(path) is not None
        if args.weights and not trained:
            continue
        mark = "  (with trained weights)" if trained and not args.weights else ""
        print(f"{name}{mark}  {path}" if args.paths else f"{name}{mark}")


if __name__ == "__main__":
    main()
