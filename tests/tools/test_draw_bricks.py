"""The committed picture is what its text gives, and its addresses are those of a model."""

from __future__ import annotations

import jax
import pytest

from modbrick.bricks import LoRA, attach
from modbrick.config import families
from modbrick.decoder.functional import parameter_table
from tools.draw_bricks import TEXT, draw, read

TOLD = TEXT.read_text(encoding="utf-8")
SAID = read(TOLD)
EXPERTS = {bank.name: bank.experts for bank in SAID.banks}
CONFIG = families.moduleformer(
    vocabulary=8,
    width=8,
    layers=SAID.open + 1,
    heads=1,
    attention_width=8,
    feed_forward_width=8,
    attention_experts=EXPERTS["attention"],
    feed_forward_experts=EXPERTS["feed_forward"],
    router_width=8,
)


def test_the_picture_is_what_the_text_gives() -> None:
    picture = TEXT.with_suffix(".svg").read_text(encoding="utf-8")
    assert picture == draw(TOLD), "draw it again: python -m tools.draw_bricks"


def test_a_model_has_these_bricks_and_sites() -> None:
    addresses = [address for _, address, _ in SAID.points]
    assert set(addresses) <= set(parameter_table(CONFIG).bricks())

    def lora(key, site):
        return LoRA.initial(key, site.input_width, site.output_width, rank=1)

    makers = {f"layer.*.{site}": lora for _, site in SAID.plugs}
    assert attach(CONFIG, makers, key=jax.random.key(0)).segments


def test_as_many_experts_are_chosen_as_a_token_has() -> None:
    assert {len(bank.chosen) for bank in SAID.banks} == {2}


def test_a_line_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing that this picture has: plugg LoRA"):
        read("plugg LoRA at attention.query")
