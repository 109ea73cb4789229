"""Tables worked out by hand from the equations, for the pieces of the reference that decide who sees what.

Every expected number is a literal found on paper: a test that repeated the formula would repeat its mistake.
`sizes(l, d, l')` names the block sizes in the paper's order.
"""

import pytest
import torch

from trisparse.config import SparseConfig
from trisparse.reference.blocks import forced_blocks, visible_compressed, visible_selected, visible_window
from trisparse.reference.score import block_importance, group_importance
from trisparse.reference.select import top_blocks

PAPER = SparseConfig()
INT_MIN = -(2**31)
INT_MAX = 2**31 - 1
NAN = float("nan")


def sizes(compress_block: int, compress_stride: int, select_block: int, **others: int) -> SparseConfig:
    return SparseConfig(
        compress_block=compress_block, compress_stride=compress_stride, select_block=select_block, **others
    )


def slots(num_selected: int, num_initial: int = 0, num_local: int = 0) -> SparseConfig:
    """Blocks of four tokens everywhere, so that token 19 is the last of block 4."""
    return sizes(4, 4, 4, num_selected=num_selected, num_initial=num_initial, num_local=num_local)


def importance(probabilities: list[float], num_blocks: int, config: SparseConfig) -> list[float]:
    return block_importance(torch.tensor(probabilities, dtype=torch.float64), num_blocks, config).tolist()


def chosen(scores: list[float], position: int, config: SparseConfig) -> list[int]:
    """The ids of one query in one group."""
    row = torch.tensor(scores, dtype=torch.float64).reshape(1, 1, 1, -1)
    return top_blocks(row, torch.tensor([position]), config)[0, 0, 0].tolist()


def seen_tokens(ids: list[int], position: int, tokens: int, config: SparseConfig) -> list[int]:
    """The tokens that one query in one group attends through `ids`."""
    row = torch.tensor(ids, dtype=torch.int32).reshape(1, 1, 1, -1)
    visible = visible_selected(row, torch.tensor([position]), tokens, config)[0, 0, 0]
    return [token for token, seen in enumerate(visible.tolist()) if seen]


def rows(table: str) -> list[list[bool]]:
    """A mask drawn with `x` and `.`, one word per row."""
    return [[mark == "x" for mark in word] for word in table.split()]


@pytest.mark.parametrize(
    ("tokens", "compressed", "selection"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (31, 0, 1),
        (32, 1, 1),
        (47, 1, 1),
        (48, 2, 1),
        (63, 2, 1),
        (64, 3, 1),
        (65, 3, 2),
        (128, 7, 2),
        (129, 7, 3),
        (8192, 511, 128),
        (65536, 4095, 1024),
    ],
)
def test_block_counts_of_the_paper_sizes(tokens, compressed, selection):
    """Guards against T // d, a missing + 1, and floor instead of ceil for the selection blocks."""
    assert PAPER.num_compressed(tokens) == compressed
    assert PAPER.num_select_blocks(tokens) == selection


@pytest.mark.parametrize(
    ("tokens", "compressed", "selection"),
    [(5, 0, 1), (6, 1, 1), (8, 1, 1), (9, 2, 1), (12, 3, 1), (13, 3, 2)],
)
def test_block_counts_of_sizes_that_are_no_powers_of_two(tokens, compressed, selection):
    """Guards against shifts in place of divisions."""
    config = sizes(6, 3, 12)
    assert config.num_compressed(tokens) == compressed
    assert config.num_select_blocks(tokens) == selection


@pytest.mark.parametrize(("tokens", "activated"), [(8192, 2048), (16384, 2560), (32768, 3584), (65536, 5632)])
def test_default_sizes_activate_the_tokens_of_table_4(tokens, activated):
    """Guards against defaults that are not the paper's (Table 4 counts s/16 + 16*64 + 512)."""
    raw = PAPER.num_selected * PAPER.select_block + PAPER.window
    assert raw == 1536
    assert tokens // PAPER.compress_stride + raw == activated
    # Table 4 counts a compressed key per stride; the last stride of a sequence starts no complete block
    assert PAPER.num_compressed(tokens) + raw == activated - 1


@pytest.mark.parametrize(
    ("position", "seen"),
    [(0, "..."), (30, "..."), (31, "x.."), (46, "x.."), (47, "xx."), (62, "xx."), (63, "xxx"), (64, "xxx")],
)
def test_compressed_block_appears_with_its_last_token(position, seen):
    """Guards against a strict comparison and against blocks seen before they are complete."""
    assert visible_compressed(torch.tensor([position]), 3, PAPER).tolist() == rows(seen)


@pytest.mark.parametrize(("position", "seen"), [(2, "..."), (3, "x.."), (6, "x.."), (7, "xx."), (11, "xxx")])
def test_compressed_blocks_without_overlap(position, seen):
    """Guards against a visibility rule that holds only where the stride is half the block."""
    assert visible_compressed(torch.tensor([position]), 3, sizes(4, 4, 4)).tolist() == rows(seen)


def test_compressed_blocks_of_sizes_that_are_no_powers_of_two():
    """Guards against masks built by shifts, and against mixing up the two axes of the mask."""
    positions = torch.tensor([4, 5, 7, 8, 10, 11])
    expected = rows("... x.. x.. xx. xx. xxx")
    assert visible_compressed(positions, 3, sizes(6, 3, 12)).tolist() == expected


def test_more_compressed_rows_than_the_query_sees():
    """Guards against a chunk that reads the compressed keys of its future."""
    positions = torch.tensor([31, 47])
    assert visible_compressed(positions, 6, PAPER).tolist() == rows("x..... xx....")


def test_compressed_blocks_of_a_chunk_far_from_the_start():
    """Guards against counting positions from the chunk instead of from the sequence."""
    visible = visible_compressed(torch.tensor([1000, 1006, 1007]), 200, PAPER)
    assert visible.sum(dim=1).tolist() == [61, 61, 62]
    assert visible[0, :61].all()


def test_no_compressed_rows_give_an_empty_mask():
    """Guards against an error for sequences shorter than one block."""
    visible = visible_compressed(torch.tensor([0, 1, 2]), 0, PAPER)
    assert visible.shape == (3, 0)
    assert visible.dtype == torch.bool


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, "x.... .x... ..x.. ...x. ....x"),
        (2, "x.... xx... .xx.. ..xx. ...xx"),
        (3, "x.... xx... xxx.. .xxx. ..xxx"),
        (5, "x.... xx... xxx.. xxxx. xxxxx"),
        (9, "x.... xx... xxx.. xxxx. xxxxx"),
    ],
)
def test_window_is_exactly_as_wide_as_it_says(window, expected):
    """Guards against w + 1 tokens, a window without the query's own token, and a lost causal edge."""
    config = SparseConfig(window=window)
    assert visible_window(torch.arange(5), 5, config).tolist() == rows(expected)


def test_window_of_a_chunk_in_the_middle():
    """Guards against a window that counts from the first query row, or sees tokens after the last."""
    config = SparseConfig(window=2)
    assert visible_window(torch.tensor([3, 4]), 7, config).tolist() == rows("..xx... ...xx..")


def test_window_of_the_paper_around_its_width():
    """Guards against an edge that is off by one only once the window is full."""
    visible = visible_window(torch.tensor([510, 511, 512, 600]), 700, PAPER)
    assert visible.sum(dim=1).tolist() == [511, 512, 512, 512]
    assert visible.int().argmax(dim=1).tolist() == [0, 0, 1, 89]


def test_paper_sizes_weigh_overlap_1_2_2_2_1():
    """Guards against eq. 9 as printed (scores the block before) and read as +m+n (a stride too late)."""
    probabilities = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]
    # 2*1 + 2*2 + 2*4 + 8, then 8 + 2*16 + 2*32 + 2*64 + 128, then 128 + 2*256 + 2*512 + 2*1024
    assert importance(probabilities, 3, PAPER) == [22.0, 360.0, 3712.0]


@pytest.mark.parametrize(
    ("compressed", "expected"),
    [
        (0, [2.0, 0.0, 0.0]),
        (1, [2.0, 0.0, 0.0]),
        (2, [2.0, 0.0, 0.0]),
        (3, [1.0, 1.0, 0.0]),
        (4, [0.0, 2.0, 0.0]),
        (6, [0.0, 2.0, 0.0]),
        (7, [0.0, 1.0, 1.0]),
        (8, [0.0, 0.0, 2.0]),
        (10, [0.0, 0.0, 2.0]),
        (11, [0.0, 0.0, 1.0]),
    ],
)
def test_each_compressed_block_scores_the_blocks_it_overlaps(compressed, expected):
    """Guards against a straddling block that counts for one side only, and against wrapping at j = 0."""
    probabilities = [0.0] * 12
    probabilities[compressed] = 1.0
    assert importance(probabilities, 3, PAPER) == expected


@pytest.mark.parametrize(
    ("config", "probabilities", "expected"),
    [
        # l'/d = 2, l/d = 2: weights 1, 2, 1
        (sizes(32, 16, 32), [1, 2, 4, 8, 16], [4, 18, 40]),
        # l'/d = 2, l/d = 1: weights 1, 1
        (sizes(16, 16, 32), [1, 2, 4, 8, 16], [3, 12, 16]),
        # l'/d = 4, l/d = 1: weights 1, 1, 1, 1
        (sizes(16, 16, 64), [1, 2, 4, 8, 16, 32], [15, 48]),
        # l'/d = 4, l/d = 4: weights 1, 2, 3, 4, 3, 2, 1
        (sizes(64, 16, 64), [1, 2, 4, 8, 16], [26, 98]),
        # l'/d = 4, l/d = 2 with a stride that is no power of two
        (sizes(6, 3, 12), [1, 2, 4, 8, 16, 32, 64], [22, 232]),
        # l'/d = 3, l/d = 3: weights 1, 2, 3, 2, 1
        (sizes(9, 3, 9), [1, 2, 4, 8, 16], [11, 66, 16]),
    ],
    ids=["32/16/32", "16/16/32", "16/16/64", "64/16/64", "6/3/12", "9/3/9"],
)
def test_importance_of_other_ratios(config, probabilities, expected):
    """Guards against weights written for 32/16/64 alone."""
    assert importance([float(value) for value in probabilities], len(expected), config) == expected


def test_equal_sizes_make_importance_the_probability():
    """Guards against any shift or doubling where eq. 9 is the identity."""
    assert importance([0.5, 0.25, 0.125, 0.125], 4, sizes(16, 16, 16)) == [0.5, 0.25, 0.125, 0.125]


def test_blocks_that_no_compressed_block_reaches_score_exactly_zero():
    """Guards against reading past the last compressed block, and against a last block without a score."""
    assert importance([0.75, 0.25, 0.0], 2, PAPER) == [2.0, 0.0]
    assert importance([0.5, 0.5], 4, sizes(16, 16, 16)) == [0.5, 0.5, 0.0, 0.0]


def test_last_block_scores_what_little_overlaps_it():
    """Guards against dropping the incomplete last block when only a straddling block reaches it."""
    assert importance([0.0, 0.0, 0.0, 0.5], 2, PAPER) == [0.5, 0.5]


def test_no_compressed_blocks_score_every_block_zero():
    """Guards against an error for sequences shorter than one compressed block."""
    assert importance([], 1, PAPER) == [0.0]
    assert importance([], 0, PAPER) == []


def test_more_compressed_blocks_than_the_wanted_blocks_hold():
    """Guards against a chunk whose scores depend on compressed blocks past its last selection block."""
    probabilities = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]
    assert importance(probabilities, 1, PAPER) == [22.0]
    assert importance(probabilities, 2, PAPER) == [22.0, 360.0]


def test_importance_keeps_leading_dimensions():
    """Guards against scores that leak between tokens or heads, as a flattened convolution would let them."""
    probabilities = torch.zeros(2, 1, 2, 5, dtype=torch.float64)
    probabilities[0, 0, 0, 4] = 1.0
    probabilities[1, 0, 1, 0] = 3.0
    scores = block_importance(probabilities, 2, PAPER)
    assert scores.tolist() == [[[[0.0, 2.0], [0.0, 0.0]]], [[[0.0, 0.0], [6.0, 0.0]]]]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (1, [[63.0, 6300.0]]),
        (2, [[7.0, 700.0], [56.0, 5600.0]]),
        (3, [[3.0, 300.0], [12.0, 1200.0], [48.0, 4800.0]]),
        (6, [[1.0, 100.0], [2.0, 200.0], [4.0, 400.0], [8.0, 800.0], [16.0, 1600.0], [32.0, 3200.0]]),
    ],
)
def test_group_importance_sums_neighbouring_heads(groups, expected):
    """Guards against h % G instead of h // M, a mean for a sum, and a sum over blocks."""
    heads = [[1.0, 100.0], [2.0, 200.0], [4.0, 400.0], [8.0, 800.0], [16.0, 1600.0], [32.0, 3200.0]]
    scores = torch.tensor([[heads]], dtype=torch.float64)
    assert group_importance(scores, groups).tolist() == [[expected]]


def test_group_importance_keeps_tokens_apart():
    """Guards against a reshape that mixes the token and the head axis."""
    scores = torch.tensor([[[[1.0], [2.0]], [[10.0], [20.0]], [[100.0], [200.0]]]], dtype=torch.float64)
    assert group_importance(scores, 1).tolist() == [[[[3.0]], [[30.0]], [[300.0]]]]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, [0]),
        (63, [0]),
        (64, [0, 1]),
        (127, [0, 1]),
        (128, [0, 2, 1]),
        (191, [0, 2, 1]),
        (192, [0, 3, 2]),
        (65535, [0, 1023, 1022]),
    ],
)
def test_forced_blocks_of_the_paper(position, expected):
    """Guards against blocks counted twice where initial and local coincide, and against block -1."""
    assert list(forced_blocks(position, PAPER)) == expected


@pytest.mark.parametrize(
    ("position", "num_initial", "num_local", "expected"),
    [
        (200, 0, 2, [3, 2]),
        (10, 0, 2, [0]),
        (200, 1, 0, [0]),
        (0, 1, 0, [0]),
        (200, 0, 0, []),
        (64, 3, 0, [0, 1]),
        (64, 3, 2, [0, 1]),
        (192, 3, 2, [0, 1, 2, 3]),
        (256, 3, 2, [0, 1, 2, 4, 3]),
        (64, 0, 4, [1, 0]),
        (64, 1, 4, [0, 1]),
        (320, 1, 4, [0, 5, 4, 3, 2]),
        (256, 1, 1, [0, 4]),
    ],
)
def test_forced_blocks_of_other_counts(position, num_initial, num_local, expected):
    """Guards against counts written for 1 + 2, future initial blocks, and local blocks before the first."""
    config = SparseConfig(num_initial=num_initial, num_local=num_local)
    assert list(forced_blocks(position, config)) == expected


@pytest.mark.parametrize(("position", "expected"), [(47, [0]), (48, [0, 1]), (95, [0, 1]), (96, [0, 2, 1])])
def test_forced_blocks_of_a_size_that_is_no_power_of_two(position, expected):
    """Guards against shifts in place of divisions."""
    assert list(forced_blocks(position, sizes(16, 16, 48))) == expected


@pytest.mark.parametrize(
    ("scores", "num_selected", "expected"),
    [
        ([1, 5, 3, 4, 2], 1, [1]),
        ([1, 5, 3, 4, 2], 2, [1, 3]),
        ([1, 5, 3, 4, 2], 4, [1, 2, 3, 4]),
        ([5, 1, 2, 3, 4], 3, [0, 3, 4]),
    ],
)
def test_highest_scores_win_and_come_back_ascending(scores, num_selected, expected):
    """Guards against ids left in the order of their scores."""
    assert chosen(scores, 19, slots(num_selected)) == expected


@pytest.mark.parametrize(
    ("scores", "num_selected", "expected"),
    [
        ([1, 3, 2, 3, 3], 2, [1, 3]),
        ([2, 5, 2, 2, 1], 2, [0, 1]),
        ([0, 0, 0, 7, 0], 3, [0, 1, 3]),
        ([4, 4, 4, 4, 4], 1, [0]),
        ([4, 4, 4, 4, 4], 3, [0, 1, 2]),
        ([0, 0, 0, 0, 0], 4, [0, 1, 2, 3]),
    ],
)
def test_ties_go_to_the_lower_index(scores, num_selected, expected):
    """Guards against a top-k that orders equal scores as it likes."""
    assert chosen(scores, 19, slots(num_selected)) == expected


def test_ties_among_many_blocks_go_to_the_lower_index():
    """Guards against a top-k that is stable for short rows only."""
    expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 198, 199]
    assert chosen([0.0] * 200, 12799, PAPER) == expected


def test_scores_apart_by_one_bit_are_no_tie():
    """Guards against fp64 scores compared in fp32."""
    assert chosen([1.0, 1.0000000000000002, 1.0, 0.0, 0.0], 19, slots(1)) == [1]


@pytest.mark.parametrize(
    ("scores", "position", "expected"),
    [
        ([1, 2], 7, [0, 1, -1, -1]),
        ([0, 0], 7, [0, 1, -1, -1]),
        ([9], 0, [0, -1, -1, -1]),
        ([1, 2, 3], 8, [0, 1, 2, -1]),
        ([1, 2, 3, 4], 15, [0, 1, 2, 3]),
    ],
)
def test_slots_without_a_candidate_are_minus_one_at_the_end(scores, position, expected):
    """Guards against padding sorted to the front, and against repeats or future blocks in spare slots."""
    assert chosen(scores, position, slots(4)) == expected


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (3, [0, -1]),
        (4, [0, 1]),
        (7, [0, 1]),
        (8, [0, 2]),
        (11, [0, 2]),
        (12, [2, 3]),
        (15, [2, 3]),
        (16, [3, 4]),
    ],
)
def test_blocks_after_the_own_are_no_candidates(position, expected):
    """Guards against selecting the future because its score is higher."""
    assert chosen([2, 1, 3, 8, 9], position, slots(2)) == expected


@pytest.mark.parametrize(
    ("scores", "num_selected", "expected"),
    [
        ([0, 9, 8, 0, 0], 3, [0, 3, 4]),
        ([0, 1000, 8, 0, 0], 4, [0, 1, 3, 4]),
        ([0, 8, 1000, 0, 0], 4, [0, 2, 3, 4]),
        ([5, 8, 8, 5, 5], 4, [0, 1, 3, 4]),
        ([7, 1, 2, 7, 7], 4, [0, 2, 3, 4]),
        ([0, 0, 0, 0, 0], 5, [0, 1, 2, 3, 4]),
    ],
)
def test_forced_blocks_come_first_whatever_they_score(scores, num_selected, expected):
    """Guards against forcing by a finite bonus, and against forced blocks that take a free slot twice."""
    assert chosen(scores, 19, slots(num_selected, num_initial=1, num_local=2)) == expected


@pytest.mark.parametrize(
    ("position", "expected"), [(0, [0, -1, -1]), (4, [0, 1, -1]), (8, [0, 1, 2]), (12, [0, 2, 3])]
)
def test_forced_blocks_alone_at_early_positions(position, expected):
    """Guards against coinciding forced blocks that leave a repeat or a future block in the slots."""
    assert chosen([1, 9, 1, 1], position, slots(3, num_initial=1, num_local=2)) == expected


@pytest.mark.parametrize(
    ("num_initial", "num_local", "expected"),
    [(0, 0, [1, 2]), (1, 0, [0, 1]), (0, 1, [1, 4]), (2, 0, [0, 1]), (0, 2, [3, 4])],
)
def test_either_kind_of_forced_block_may_be_absent(num_initial, num_local, expected):
    """Guards against the own block or block 0 being forced unasked."""
    assert chosen([1, 9, 8, 2, 3], 19, slots(2, num_initial, num_local)) == expected


@pytest.mark.parametrize(
    ("scores", "position", "num_selected", "expected"),
    [
        ([NAN, 1, 2, NAN, 0], 19, 2, [1, 2]),
        ([NAN, 1, 2, NAN, 0], 19, 3, [1, 2, 4]),
        ([NAN, 1, 2, NAN, 0], 19, 4, [0, 1, 2, 4]),
        ([0, NAN, 0, 0, 0], 19, 4, [0, 2, 3, 4]),
        ([NAN, NAN, NAN, NAN, NAN], 19, 3, [0, 1, 2]),
        ([NAN, NAN, 5, 5, 5], 7, 2, [0, 1]),
        ([NAN, NAN, 5, 5, 5], 7, 3, [0, 1, -1]),
        ([1, 2, NAN, NAN, NAN], 7, 2, [0, 1]),
    ],
)
def test_nan_ranks_below_every_number_but_stays_a_candidate(scores, position, num_selected, expected):
    """Guards against a sort that puts NaN on top, and against NaN blocks losing their slot to the future."""
    assert chosen(scores, position, slots(num_selected)) == expected


def test_nan_does_not_unseat_a_forced_block():
    """Guards against forcing that is applied before the NaN scores are put in their place."""
    assert chosen([NAN, 9, 8, NAN, NAN], 19, slots(3, num_initial=1, num_local=2)) == [0, 3, 4]


def test_rows_groups_and_batches_select_for_themselves():
    """Guards against a selection shared by groups, and against the own block of another row."""
    scores = torch.tensor(
        [
            [[[1, 2, 3, 9], [3, 2, 1, 9]], [[1, 2, 3, 4], [4, 3, 2, 1]]],
            [[[5, 1, 4, 9], [1, 5, 4, 9]], [[4, 1, 1, 4], [1, 4, 4, 1]]],
        ],
        dtype=torch.float64,
    )
    ids = top_blocks(scores, torch.tensor([11, 12]), slots(2))
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[[[1, 2], [0, 1]], [[2, 3], [0, 1]]], [[[0, 2], [1, 2]], [[0, 3], [1, 2]]]]


def test_ids_have_a_column_per_slot_however_few_the_blocks():
    """Guards against as many columns as blocks where the sequence is short."""
    ids = top_blocks(torch.zeros(1, 1, 2, 1), torch.tensor([5]), PAPER)
    assert ids.shape == (1, 1, 2, 16)
    assert ids[0, 0, 1].tolist() == [0, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("ids", "position", "expected"),
    [
        ([0, -1, -1], 9, [0, 1, 2, 3]),
        ([0, 2, -1], 9, [0, 1, 2, 3, 8, 9]),
        ([0, 2, -1], 8, [0, 1, 2, 3, 8]),
        ([0, 1, 2], 7, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([1], 4, [4]),
        ([0], 0, [0]),
    ],
)
def test_ids_open_their_tokens_up_to_the_query(ids, position, expected):
    """Guards against future tokens of the own block, and against a block that is off by one."""
    assert seen_tokens(ids, position, 10, slots(3)) == expected


@pytest.mark.parametrize("ids", [[2, 0, -1], [-1, 2, 0], [0, 0, 2], [2, 2, 2, 0, 0, -1], [2, -1, 0, -7]])
def test_order_and_repeats_of_ids_do_not_matter(ids):
    """Guards against reading the ids as a sorted list that ends at the first -1."""
    assert seen_tokens(ids, 9, 12, slots(3)) == [0, 1, 2, 3, 8, 9]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(-1, id="empty slot"),
        pytest.param(-2, id="counts from the end in Python"),
        pytest.param(INT_MIN, id="smallest int32"),
        pytest.param(2, id="wholly in the future"),
        pytest.param(3, id="past the last block"),
        pytest.param(1_000_000, id="far past the last block"),
        pytest.param(2**30, id="times four is zero in int32"),
        pytest.param(2**30 + 1, id="times four is four in int32"),
        pytest.param(-(2**30), id="times four is zero from below in int32"),
        pytest.param(INT_MAX, id="largest int32"),
    ],
)
def test_bad_ids_mean_no_block(bad):
    """Guards against dereferencing, clamping or wrapping an id that names no usable block."""
    assert seen_tokens([bad], 6, 12, slots(3)) == []
    assert seen_tokens([bad, 0], 6, 12, slots(3)) == [0, 1, 2, 3]


def test_the_incomplete_last_block_ends_with_the_tokens():
    """Guards against tokens past the last one, and against losing the incomplete block."""
    assert seen_tokens([2, 3], 9, 10, slots(3)) == [8, 9]


def test_the_own_block_is_not_seen_unless_selected():
    """Guards against adding the query's own block to the ids it was given."""
    assert seen_tokens([1], 9, 10, slots(3)) == [4, 5, 6, 7]


def test_rows_groups_and_batches_see_their_own_ids():
    """Guards against ids of one group, token or batch row used for another."""
    ids = torch.tensor([[[[0], [1]], [[1], [-1]]], [[[1], [0]], [[2], [2]]]], dtype=torch.int32)
    visible = visible_selected(ids, torch.tensor([3, 4]), 5, sizes(2, 2, 2))
    assert visible.dtype == torch.bool
    assert visible[0].tolist() == [rows("xx... ..xx."), rows("..xx. .....")]
    assert visible[1].tolist() == [rows("..xx. xx..."), rows("....x ....x")]
