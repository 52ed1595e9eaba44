"""From a table to the numbers that kernels read."""

import torch

from turret_adapters.site_weights import SiteWeights, num_sites, site_index, weight_at
from turret_adapters.spec import UNLAYERED, Module
from turret_kernels.entries import Entries


def test_every_site_has_a_row_of_its_own():
    layered = [(layer, m) for m in Module if m not in UNLAYERED for layer in range(3)]
    found = {site_index(layer, module) for layer, module in layered}
    found |= {site_index(-1, module) for module in UNLAYERED}
    assert len(found) == len(layered) + len(UNLAYERED)
    assert max(found) < num_sites(3)


def test_the_column_holds_the_table():
    weights = SiteWeights({"q_proj": 0.5, "up_proj": (0.0, 2.0, -1.0), "lm_head": 3.0}, 3)
    for layer, module, want in (
        (0, Module.Q, 0.5),
        (2, Module.Q, 0.5),
        (0, Module.UP, 0.0),
        (2, Module.UP, -1.0),
        (-1, Module.HEAD, 3.0),
        (1, Module.DOWN, 1.0),
    ):
        assert weights.column[site_index(layer, module)] == want


def test_a_number_stays_a_number():
    assert SiteWeights.of(0.5, 3) == 0.5
    assert SiteWeights.of({"q_proj": 0.5}, 3) == SiteWeights({"q_proj": 0.5}, 3)


def test_entries_have_one_weight_or_one_per_site():
    one = torch.ones(1, dtype=torch.int32)
    entries = Entries(one, torch.tensor([0.5]), one, one)
    assert weight_at(entries, 1, Module.Q).tolist() == [0.5]
    entries.by_site = SiteWeights({"q_proj": 0.25}, 2).column[:, None]
    assert weight_at(entries, 1, Module.Q).tolist() == [0.25]
    assert weight_at(entries, 1, Module.K).tolist() == [1.0]
