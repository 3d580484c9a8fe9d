"""What was found, as data, as JSON and as a page to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .battery import Comparison
from .draws import Cost
from .power import ENOUGH, Power

__all__ = ["DIFFERENT", "NOT_DIFFERENT", "Verdict"]

DIFFERENT, NOT_DIFFERENT = "difference found", "no difference found"
FORMAT, VERSION = "diffpolicy_spec.certificate", 1


@dataclass(frozen=True)
class Verdict:
    """The outcome of a certification.

    Attributes:
        sampler, reference: the `SamplerConfig`s that were compared, as plain data, as they were bound.
        checkpoint: its name and the SHA-256 of each of its files; None for a policy that is not from a file.
        observations: O, how many.
        source: where the observations are from, in words.
        chunks: n, per observation and sampler.
        chunk: (Tp, Da).
        alpha: the chance that samplers of equal law are called different, at most.
        tests: the battery's comparisons.
        power: the smallest effects it would have seen; empty if that was not measured.
        null_splits: (differences found, splits made) between halves of the sequential chunks; None: not measured.
        cost: of the candidate, reference_cost: of the reference (both its halves).
        seed: all noise follows from it.
        seconds: wall-clock of everything.
        environment: versions, device, threads, commit.
    """

    sampler: Mapping[str, Any]
    reference: Mapping[str, Any]
    checkpoint: Mapping[str, Any] | None
    observations: int
    source: str
    chunks: int
    chunk: tuple[int, int]
    alpha: float
    tests: tuple[Comparison, ...]
    power: tuple[Power, ...]
    null_splits: tuple[int, int] | None
    cost: Cost
    reference_cost: Cost
    seed: int
    seconds: float
    environment: Mapping[str, Any]

    @property
    def different(self) -> bool:
        """Whether any comparison came out different."""
        return any(test.different for test in self.tests)

    @property
    def verdict(self) -> str:
        """"difference found" or "no difference found"; equality is never proved."""
        return DIFFERENT if self.different else NOT_DIFFERENT

    @property
    def said(self) -> str:
        """The verdict in words and numbers."""
        if self.different:
            names = ", ".join(test.test for test in self.tests if test.different)
            text = (
                f"Difference found, by: {names}. Samplers of equal law are called different with a probability of at "
                f"most {self.alpha:g}."
            )
        else:
            text = (
                f"No difference found by {len(self.tests)} tests at an overall false-alarm rate of {self.alpha:g}. "
                "That does not prove the laws equal."
            )
        if self.power:
            seen = [p.said for p in self.power if p.size is not None]
            unseen = [p.said for p in self.power if p.size is None]
            if seen:
                text += f" In at least {100 * ENOUGH:.0f} % of repetitions this battery sees: {'; '.join(seen)}."
            text += "".join(f" It does not reliably see {said.removeprefix('not even ')}." for said in unseen)
        if self.null_splits is not None:
            found, made = self.null_splits
            text += f" Between halves of the sequential chunks it found a difference in {found} of {made} splits."
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        power = [{**asdict(p), "said": p.said} for p in self.power]
        return {"format": FORMAT, "version": VERSION, "verdict": self.verdict, "said": self.said} | asdict(self) | {
            "power": power
        }

    def to_markdown(self) -> str:
        """A page: the verdict, its table, what was run."""
        lines = [f"**{self.verdict.capitalize()}**", "", self.said, ""]
        lines += ["| test | p | threshold | different | seen |", "| --- | ---: | ---: | --- | --- |"]
        for t in self.tests:
            different = "yes" if t.different else "no"
            lines.append(f"| {t.test} | {t.p:.2g} | {t.threshold:.2g} | {different} | {t.detail} |")
        lines += ["", "| sampler | calls | rows | chunks drawn | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
        for config, cost in ((self.sampler, self.cost), (self.reference, self.reference_cost)):
            lines.append(
                f"| {describe(config)} | {cost.calls:.1f} | {cost.rows:.0f} | {cost.chunks} | {cost.seconds:.0f} |"
            )
        lines += ["", *(f"- {line}" for line in self._facts())]
        return "\n".join(lines) + "\n"

    def _facts(self) -> list[str]:
        facts = [
            f"{self.observations} observations ({self.source}), {self.chunks} chunks of {self.chunk[0]} x "
            f"{self.chunk[1]} each and sampler; seed {self.seed}; {self.seconds:.0f} s",
        ]
        for p in self.power:
            tried = ", ".join(f"{size:g}: {seen}/{made}" for size, seen, made in sorted(p.tried))
            facts.append(f"power, {p.effect}, size: splits in which it was seen: {tried}")
        if self.checkpoint is not None:
            digests = ", ".join(f"{name} {digest[:16]}" for name, digest in self.checkpoint["sha256"].items())
            facts.append(f"checkpoint {self.checkpoint['name']}: {digests}")
        device, commit = self.environment.get("device"), self.environment.get("commit")
        facts.append(f"device: {device}; torch {self.environment['versions'].get('torch')}; commit {commit}")
        return facts


def describe(config: Mapping[str, Any]) -> str:
    """A sampler in one line."""
    set_ = {"steps": config["num_inference_steps"], "eta": config["eta"], **config["options"]}
    said = ", ".join(f"{key} {value}" for key, value in set_.items() if value is not None)
    return f"{config['method']} ({said})" if said else str(config["method"])
