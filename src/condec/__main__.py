"""Start of the ``condec`` command: Ctrl-C is answered before anything heavy is imported."""

from condec.basis.signals import end_at_once


def main() -> None:
    """Entry point of the ``condec`` command."""
    end_at_once()
    from condec import cli

    cli.main()


if __name__ == "__main__":
    main()
