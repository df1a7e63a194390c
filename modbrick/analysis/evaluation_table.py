"""Results of an evaluation by domain, as a table for people."""

from __future__ import annotations

from rich.table import Table

from modbrick.training.evaluation import EvaluationResult


def evaluation_table(result: EvaluationResult) -> Table:
    """Returns the results by domain, for people."""
    rows = Table()
    rows.add_column("domain")
    for name in ("loss", "perplexity", "bits per byte", "tokens", "bytes", "documents"):
        rows.add_column(name, justify="right")
    for name, domain in [*result.domains.items(), ("all", result.total)]:
        rows.add_row(
            name,
            f"{domain.loss:.4f}",
            f"{domain.perplexity:.2f}",
            f"{domain.bits_per_byte:.4f}",
            _of(domain.tokens, domain.all_tokens),
            f"{domain.bytes:,}",
            _of(domain.documents, domain.all_documents),
        )
    return rows


def _of(seen: int, there: int) -> str:
    return f"{seen:,}" if seen == there else f"{seen:,} of {there:,}"
