"""Large numbers with three digits and a prefix."""


def in_bytes(count: float) -> str:
    """``10.3 MiB`` for 10_804_528."""
    return f"{scaled(count, 1024)}{'i' * (count >= 1024)}B"


def in_flops(count: float) -> str:
    """``10.8 MFLOP`` for 10_804_528."""
    return f"{scaled(count, 1000)}FLOP"


def scaled(number: float, step: int) -> str:
    """``10.8 M`` for 10_804_528.

    Args:
        step: Ratio of two successive prefixes, 1000 or 1024.
    """
    for prefix in ("", "k" if step == 1000 else "K", "M", "G", "T", "P"):
        if number < step * 0.9995 or prefix == "P":
            break
        number /= step
    digits = f"{number:.3g}" if number < 1000 else f"{number:.0f}"
    return f"{digits} {prefix}"
