"""Components and maps of tokens, against closed forms and planted groups."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fakes import FakeTokenizer
from pyratok.config import TextHeadConfig
from pyratok.model.pyratok import PyraTok
from pyratok.tasks.embedding import affinities, pca, pca_pictures, token_map, token_vectors, tsne
from tiny import CONFIG, LAPQ, random_video, tiny_pyratok


@pytest.fixture
def model() -> PyraTok:
    return tiny_pyratok(config=replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPCA:
    def test_it_finds_the_axes_and_their_shares(self) -> None:
        rotation = torch.linalg.qr(noise(5, 5)).Q
        points = noise(4000, 5, seed=1) * torch.tensor([8.0, 4.0, 2.0, 0.1, 0.1]) @ rotation + 3
        found = pca(points, 3)
        cosines = (found.components * rotation[:3]).sum(1)
        torch.testing.assert_close(cosines.abs(), torch.ones(3), atol=1e-2, rtol=0)
        torch.testing.assert_close(found.explained, torch.tensor([64.0, 16, 4]) / 84.02, atol=0.03, rtol=0)

    def test_all_components_keep_all_distances(self) -> None:
        points = noise(20, 6)
        found = pca(points, 6)
        torch.testing.assert_close(torch.cdist(found.coordinates, found.coordinates), torch.cdist(points, points))
        torch.testing.assert_close(found.components @ found.components.T, torch.eye(6), atol=1e-5, rtol=0)
        assert float(found.explained.sum()) == pytest.approx(1)
        assert (found.explained.diff() <= 0).all()

    def test_the_sign_does_not_depend_on_the_order_of_the_points(self) -> None:
        points = noise(50, 4)
        torch.testing.assert_close(pca(points.flip(0)).coordinates.flip(0), pca(points).coordinates)

    def test_equal_points_explain_nothing(self) -> None:
        found = pca(torch.ones(5, 4))
        assert not found.coordinates.any()
        assert not found.explained.any()

    @pytest.mark.parametrize("k", [0, 4])
    def test_impossible_numbers_are_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=f"for {k}"):
            pca(noise(9, 3), k)


class TestPictures:
    @pytest.mark.parametrize("space", ["words", "text"])
    def test_a_pixel_per_token(self, model: PyraTok, space: str) -> None:
        tokens = model.encode(random_video(frames=9))
        pictures = pca_pictures(model, tokens, space)  # type: ignore[arg-type]
        assert [picture.shape for picture in pictures] == [(*ids.shape[1:], 3) for ids in tokens.levels]
        for picture in pictures:
            assert picture.min() == 0
            assert picture.max() == 1

    def test_equal_tokens_have_equal_colours(self, model: PyraTok) -> None:
        """Halves of the first level with one word each become two colours, their mean grey apart."""
        tokens = model.encode(random_video())
        ids = torch.zeros_like(tokens.levels[0])
        ids[:, :, 1:] = 0xFFFF
        picture = pca_pictures(model, replace(tokens, levels=(ids,)))[0]
        assert torch.equal(picture[:, 0], picture[:1, :1, :1].expand(5, 1, 2, 3)[:, 0])
        assert set(picture[..., 0].unique().tolist()) == {0.0, 1.0}
        assert set(picture[..., 2].unique().tolist()) == {0.5}, "nothing varies there"

    def test_padding_is_left_out_also_of_a_part(self, model: PyraTok) -> None:
        tokens = model.encode(random_video(frames=11, height=20, width=37))
        assert [p.shape[:3] for p in pca_pictures(model, tokens)] == [(11, 2, 3), (6, 3, 5), (4, 3, 5), (4, 3, 5)]
        part = model.encode(random_video(frames=13)).time_slice(2, 4)
        assert [p.shape[0] for p in pca_pictures(model, part)] == [8, 4, 2, 2]

    def test_what_the_decoder_reads(self, model: PyraTok) -> None:
        tokens = model.encode(random_video())
        assert token_vectors(model, tokens, 1, "words").shape == (*tokens.levels[1].shape[1:], LAPQ.width)
        wanted = model.lapq.pyramid(model.signs_of(tokens))[2][0].movedim(0, -1)
        torch.testing.assert_close(token_vectors(model, tokens, 2, "words"), wanted)
        torch.testing.assert_close(token_vectors(model, tokens, 2, "text"), model.text_space(tokens, 2)[0])

    def test_other_tokenizers_show_their_signs(self) -> None:
        fake = FakeTokenizer()
        tokens = fake.encode(random_video())
        assert token_vectors(fake, tokens, 0, "words").unique().tolist() == [-1, 1]
        with pytest.raises(ValueError, match="has no text head"):
            pca_pictures(fake, tokens, "text")

    def test_bad_input_is_refused(self, model: PyraTok) -> None:
        with pytest.raises(ValueError, match="words or text, got 'pixels'"):
            pca_pictures(model, model.encode(random_video()), "pixels")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"got 2; take one by tokens\.select"):
            pca_pictures(model, model.encode(random_video(2)))
        with pytest.raises(ValueError, match="were made by"):
            pca_pictures(tiny_pyratok(seed=1), model.encode(random_video()))


class TestTSNE:
    @pytest.mark.parametrize("perplexity", [2.0, 5.0, 12.0])
    def test_every_point_has_as_many_neighbours(self, perplexity: float) -> None:
        p = affinities(noise(40, 3) * torch.linspace(0.1, 10, 40)[:, None], perplexity)
        torch.testing.assert_close(p.sum(1), torch.ones(40))
        assert not p.diagonal().any()
        entropy = -torch.xlogy(p, p).sum(1)
        torch.testing.assert_close(entropy, torch.full((40,), math.log(perplexity)), atol=1e-3, rtol=0)

    def test_groups_stay_groups(self) -> None:
        group = torch.arange(60) % 3
        points = noise(60, 8) * 0.3 + 6 * torch.eye(3, 8)[group]
        found = tsne(points, perplexity=10, steps=300)
        distances = torch.cdist(found, found).fill_diagonal_(math.inf)
        assert torch.equal(group[distances.argmin(1)], group)
        same = group[:, None] == group
        assert distances[~same].min() > distances[same & distances.isfinite()].max()

    def test_the_same_points_give_the_same_map(self) -> None:
        points = noise(20, 4)
        first = tsne(points, steps=50)
        torch.manual_seed(7)
        assert torch.equal(first, tsne(points, steps=50))
        assert first.isfinite().all()

    @pytest.mark.parametrize(
        "points", [torch.ones(6, 3), noise(4, 1), torch.cat([torch.zeros(5, 2), torch.ones(5, 2)])]
    )
    def test_extremes_stay_finite(self, points: Tensor) -> None:
        found = tsne(points, steps=100)
        assert found.shape == (len(points), 2)
        assert found.isfinite().all()

    def test_bad_input_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got \[3, 2\]"):
            tsne(noise(3, 2))
        with pytest.raises(ValueError, match=r"from 1 up, got 0\.5"):
            tsne(noise(9, 2), perplexity=0.5)


class TestTokenMap:
    def test_tokens_of_all_levels_in_one_plane(self, model: PyraTok) -> None:
        tokens = model.encode(random_video(frames=9))
        found = token_map(model, tokens, max_tokens=60, perplexity=5)
        assert found.points.shape == (60, 2)
        assert found.level.bincount().tolist() == [15] * 4
        for level in range(4):
            cells = found.cell[found.level == level]
            assert len(cells.unique(dim=0)) == 15
            assert (cells.amax(0) < torch.tensor(tokens.levels[level].shape[1:])).all()

    def test_drawn_by_the_seed(self, model: PyraTok) -> None:
        tokens = model.encode(random_video())
        first, again, other = (token_map(model, tokens, max_tokens=40, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first.points, again.points)
        assert not torch.equal(first.cell, other.cell)
        with pytest.raises(ValueError, match="max_tokens = 3"):
            token_map(model, tokens, max_tokens=3)
