def write_pages(*a: object) -> None:
    """Later."""
