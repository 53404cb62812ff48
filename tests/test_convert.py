"""`fe.convert`: the tables of any model of torch, coded; bytes, answers, choices, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb.codecs.base import codec_by_name
from featemb.conversion.coded import CodedBag, CodedEmbedding
from featemb.memory import tensor_bytes


class Net(nn.Module):
    """Every kind of table that torch has: padded, pooled, tied, shared, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(700, 16, padding_idx=0)
        self.items = nn.EmbeddingBag(1500, 8, mode="mean", padding_idx=3)
        self.first = nn.Embedding(700, 1)
        self.tied = nn.Embedding(700, 16, padding_idx=5)
        self.tied.weight = self.user.weight
        self.twice = nn.ModuleList([self.user, self.user])
        self.out = nn.Linear(16 + 8 + 1 + 16 + 16, 1)

    def forward(self, users: Tensor, bags: Tensor) -> Tensor:
        vectors = (
            self.user(users),
            self.items(bags),
            self.first(users),
            self.tied(users),
            self.twice[1](users),
        )
        return self.out(torch.cat(vectors, 1))[:, 0]


def net() -> Net:
    torch.manual_seed(0)
    made = Net().eval()
    with torch.no_grad():
        made.user.weight[5] = 0.0
    return made


USERS, BAGS = torch.arange(0, 700, 7), torch.arange(300).view(100, 3) * 5
# pq and rq store the smallest tables as fp32, and fp8, int8 ... have their bound in the codec
ALL = [name for name in fe.codecs() if name != "weighted"]


def held(model: nn.Module) -> int:
    """Bytes of a model's tensors, shared ones once, found without the library's own counting."""
    every = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return sum(tensor_bytes(one) for one in every.values())


@pytest.mark.parametrize("codec", ALL)
def test_every_codec_keeps_its_bound_and_its_bytes(codec: str) -> None:
    model = net()
    small = fe.convert(model, codec)
    report = fe.conversion(small)
    assert [one.name for one in report.tables] == ["user", "items", "first"]
    assert report.before == 4 * (700 * 16 + 1500 * 8 + 700)
    assert report.rest == 4 * (57 + 1)
    assert held(small) == report.after + report.rest
    sizes = [codec_by_name(codec).stored_bytes(*shape) for shape in [(700, 16), (1500, 8)]]
    assert [one.after for one in report.tables[:2]] == sizes
    for name in ("user", "first"):
        true = model.get_submodule(name).weight.detach()
        bound = codec_by_name(codec).error_bound(true)
        error = (small.get_submodule(name).weight - true).abs()
        assert bool((error <= bound.expand_as(true) + 1e-12).all())
    assert small(USERS, BAGS).shape == model(USERS, BAGS).shape


def test_the_model_itself_is_left_as_it_is() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    wanted = model(USERS, BAGS)
    small = fe.convert(model.train(), "int4")
    assert model.training
    assert not small.training
    assert isinstance(model.user, nn.Embedding)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert (small(USERS, BAGS) - wanted).abs().max() < 0.5
    assert small.out.weight.requires_grad


def test_in_place_gives_the_same_without_a_copy() -> None:
    model = net()
    wanted = fe.convert(model, "int8")(USERS, BAGS)
    linear = model.out
    small = fe.convert(model, "int8", inplace=True)
    assert small is model
    assert small.out is linear
    assert torch.equal(small(USERS, BAGS), wanted)
    assert fe.conversion(small).before == 4 * (700 * 16 + 1500 * 8 + 700)


def test_shared_and_tied_tables_are_coded_once_and_stay_shared() -> None:
    model = net()
    small = fe.convert(model, "int8")
    assert small.user is small.twice[0] is small.twice[1]
    assert small.tied is not small.user
    assert small.tied.table is small.user.table
    (user, *_) = fe.conversion(small).tables
    assert user.others == ("tied", "twice.0", "twice.1")
    moved = copy.deepcopy(small)
    assert moved.tied.table is moved.user.table is not small.user.table


def test_padding_of_zeros_stays_exactly_zero() -> None:
    """Masks look for it: FuxiCTR pools what is not zero."""
    model = nn.ModuleDict({"a": nn.Embedding(300, 8, padding_idx=7)})
    for codec in ("pq(parts=2)", "binary", "int2(scales=table)", "svd"):
        small = fe.convert(model, codec)
        found = small["a"](torch.tensor([[7, 8], [7, 7]]))
        assert not found[0, 0].any()
        assert not found[1].any()
        assert found[0, 1].any()
        assert not small["a"].weight[7].any()
    with torch.no_grad():
        model["a"].weight[7] = 1.0  # a padding row that somebody trained is a row as any
    assert fe.convert(model, "int8")["a"](torch.tensor(7)).sub(1).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_answers_keep_the_type_of_the_table(dtype: torch.dtype) -> None:
    table = nn.Embedding(200, 16, dtype=dtype)
    small = fe.convert(nn.Sequential(table), "int8")
    ids = torch.arange(200)
    assert small(ids).dtype == dtype
    assert (small(ids) - table(ids)).abs().max() < 0.05
    assert fe.conversion(small).before == 200 * 16 * dtype.itemsize


def test_a_change_of_type_changes_answers_and_not_codes() -> None:
    small = fe.convert(nn.Sequential(nn.Embedding(200, 4)), "int8")
    ids = torch.arange(200)
    wanted = small(ids)
    codes = [one.dtype for one in small[0].table.rows.buffers()]
    assert torch.equal(copy.deepcopy(small).half()(ids), wanted.half())
    assert torch.equal(copy.deepcopy(small).double().float()(ids), wanted)
    twice = copy.deepcopy(small).half()
    assert [one.dtype for one in twice[0].table.rows.buffers()] == codes
    assert torch.equal(twice.float()(ids), wanted)


def test_max_norm_is_applied_to_the_rows() -> None:
    table = nn.Embedding(300, 8, max_norm=1.5, norm_type=2.0)
    ids = torch.arange(300)
    small = fe.convert(nn.Sequential(copy.deepcopy(table)), "fp32")
    assert torch.equal(small(ids), table(ids))
    assert float(small(ids).norm(dim=1).max()) < 1.5 + 1e-5
    bag = nn.EmbeddingBag(300, 8, max_norm=1.0, mode="sum")
    small = fe.convert(nn.Sequential(copy.deepcopy(bag)), "fp32")
    assert torch.allclose(small(ids.view(50, 6)), bag(ids.view(50, 6)), atol=1e-6)


BAG_CASES = [
    {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    for mode in ("sum", "mean", "max")
    for padding in (None, 4)
    for last in (False, True)
]


@pytest.mark.parametrize("options", BAG_CASES, ids=str)
def test_bags_pool_as_torch_does(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    bag = nn.EmbeddingBag(60, 8, **options)
    small = fe.convert(nn.Sequential(bag), "fp32")[0]
    assert isinstance(small, CodedBag)
    ids = torch.tensor([1, 4, 4, 9, 4, 59, 2, 4, 7])
    # an empty bag, and one of padding alone
    offsets = torch.tensor([0, 3, 3, 4, 5, *([9] if options["include_last_offset"] else [])])
    assert torch.allclose(small(ids, offsets), bag(ids, offsets))
    assert torch.allclose(small(ids, offsets.int()), bag(ids, offsets))
    assert torch.allclose(small(ids.view(3, 3)), bag(ids.view(3, 3)))
    if options["mode"] == "sum":
        weights = torch.linspace(-1, 1, 9)
        assert torch.allclose(
            small(ids, offsets, per_sample_weights=weights),
            bag(ids, offsets, per_sample_weights=weights),
        )
    none = torch.empty(0, dtype=torch.int64)
    starts = torch.zeros(3, dtype=torch.int64)
    assert not small(none, starts).any()
    assert small(none, starts).shape == bag(none, starts).shape


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("codec", ["int8", "int4", "int2(scales=row)"])
def test_bags_of_integer_rows_are_sums_of_their_vectors(codec: str, last: bool, mode: str) -> None:
    """One kernel reads and adds them."""
    bag = nn.EmbeddingBag(60, 20, mode=mode, include_last_offset=last)
    small = fe.convert(nn.Sequential(bag), codec)[0]
    same = nn.EmbeddingBag(60, 20, mode=mode, include_last_offset=last)
    same.weight = nn.Parameter(small.weight)
    ids = torch.tensor([1, 4, 4, 9, 4, 59, 2, 4, 7])
    offsets = torch.tensor([0, 3, 3, 4, 5, *([9] if last else [])])
    assert torch.allclose(small(ids, offsets), same(ids, offsets), atol=1e-6)
    assert torch.allclose(small(ids.view(3, 3)), same(ids.view(3, 3)), atol=1e-6)
    weights = torch.linspace(-1, 1, 9)
    if mode == "sum":
        assert torch.allclose(small(ids, offsets, weights), same(ids, offsets, weights), atol=1e-6)
    else:
        with pytest.raises(NotImplementedError, match="sum"):
            small(ids, offsets, weights)
    for wrong in ([1, 3], [0, 5, 3], [0, 10]):
        with pytest.raises(fe.SchemaError, match="must begin with 0, never fall"):
            small(ids, torch.tensor(wrong))
    with pytest.raises(ValueError, match="offsets"):
        small(ids)
    with pytest.raises(ValueError, match="offsets"):
        small(ids.view(3, 3), offsets)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (0,), (0, 4)])
@pytest.mark.parametrize("codec", ["int8", "pq(parts=2)", "binary"])
def test_ids_of_any_shape(shape: tuple[int, ...], codec: str) -> None:
    table = nn.Embedding(400, 8)
    small = fe.convert(nn.Sequential(table), codec)
    ids = torch.randint(0, 400, shape)
    assert small(ids).shape == table(ids).shape
    assert torch.equal(small(ids.int()), small(ids))


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("wrong", [-1, 400])
def test_an_id_out_of_range_is_an_error(codec: str, wrong: int) -> None:
    small = fe.convert(nn.ModuleDict({"user": nn.Embedding(400, 4)}), codec)
    with pytest.raises(fe.IdError, match=rf"'user': id {wrong} .*0 <= id < 400"):
        small["user"](torch.tensor([1, wrong]))
    bag = fe.convert(nn.Sequential(nn.EmbeddingBag(400, 4)), codec)
    with pytest.raises(IndexError):  # what torch raises
        bag(torch.tensor([[1, wrong]]))


def test_ids_must_be_integers() -> None:
    small = fe.convert(nn.Sequential(nn.Embedding(40, 4)), "int8")
    with pytest.raises(fe.SchemaError, match="int64"):
        small(torch.tensor([1.0]))


def test_state_dicts_load_into_a_model_converted_alike() -> None:
    first, second = fe.convert(net(), "pq(parts=2)"), fe.convert(Net(), "pq(parts=2)")
    assert not torch.equal(first(USERS, BAGS), second(USERS, BAGS))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(USERS, BAGS), second(USERS, BAGS))


def test_the_net_can_be_trained_on_after_conversion() -> None:
    small = fe.convert(net(), "int8").train()
    small(USERS, BAGS).sum().backward()
    assert small.out.weight.grad is not None
    assert [name for name, _ in small.named_parameters()] == ["out.weight", "out.bias"]


def test_a_table_alone_is_a_model_too() -> None:
    table = nn.Embedding(300, 8)
    small = fe.convert(table, "int8")
    assert isinstance(small, CodedEmbedding)
    assert fe.conversion(small).after == fe.conversion(small).tables[0].after < 300 * 8 * 4
    assert isinstance(table, nn.Embedding)


def test_choosing_by_name_and_size() -> None:
    model = net()

    def coded(**options: Any) -> dict[str, str | None]:
        return {one.name: one.codec for one in fe.conversion(fe.convert(model, **options)).tables}

    assert coded(codec="int8", tables="us*") == {"user": "int8", "items": None, "first": None}
    assert coded(codec="int8", tables=["tied"])["user"] == "int8"  # any of its names
    assert coded(codec="int8", skip=["items"]) == {"user": "int8", "items": None, "first": "int8"}
    assert coded(codec="int8", min_bytes="40 kB")["first"] is None
    assert coded(codec={"items": "pq(parts=2)", "*": "int4"}) == {
        "user": "int4",
        "items": "pq(parts=2)",
        "first": "int4",
    }
    assert coded(codec={"items": "int2"}) == {"user": None, "items": "int2", "first": None}
    small = fe.convert(model, "int8", skip="items")
    assert isinstance(small.items, nn.EmbeddingBag)
    reasons = {one.name: one.reason for one in fe.conversion(small).tables}
    assert reasons == {"user": "", "items": "skipped", "first": ""}


def test_a_codec_that_saves_nothing_leaves_the_table() -> None:
    model = nn.ModuleDict({"short": nn.Embedding(50, 2, dtype=torch.float16)})
    small = fe.convert(model, "int8(scales=row)")
    (one,) = fe.conversion(small).tables
    assert one.codec is None
    assert "would take 500 bytes" in one.reason
    assert one.after == one.before == 200


class Own(nn.Embedding):
    """Not an embedding any more: its answers are others."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def refused() -> dict[str, tuple[nn.Module, str]]:
    tied = nn.ModuleDict({"emb": nn.Embedding(30, 8), "out": nn.Linear(8, 30, bias=False)})
    tied["out"].weight = tied["emb"].weight
    hooked = nn.ModuleDict({"emb": nn.Embedding(30, 8)})
    hooked["emb"].register_forward_hook(lambda *_: None)
    computed = nn.ModuleDict({"emb": nn.Embedding(30, 8)})
    nn.utils.parametrizations.weight_norm(computed["emb"])
    overlapping = nn.ModuleDict({"emb": nn.Embedding(30, 8), "start": nn.Embedding(15, 8)})
    overlapping["start"].weight = nn.Parameter(overlapping["emb"].weight.data[:15])
    return {
        "tied": (tied, r"'emb'.*tied to 'out.weight'.*skip"),
        "own forward": (nn.ModuleDict({"emb": Own(30, 8)}), "'emb'.*Own has a forward of its own"),
        "hooks": (hooked, "'emb'.*forward hooks"),
        "computed": (computed, "'emb'.*computed from other parameters"),
        "overlapping": (overlapping, "'start'.*shares memory with 'emb'"),
    }


@pytest.mark.parametrize("case", ["tied", "own forward", "hooks", "computed", "overlapping"])
def test_what_cannot_be_converted_is_refused_with_a_reason(case: str) -> None:
    model, message = refused()[case]
    with pytest.raises(fe.ConfigError, match=message):
        fe.convert(model, "int8")
    model["other"] = nn.Embedding(40, 8)
    skipped = ["emb", "start"] if case == "overlapping" else "emb"
    small = fe.convert(model, "int8", skip=skipped)
    assert isinstance(small["other"], CodedEmbedding)
    assert type(small["emb"]) is type(model["emb"])


def test_wrong_arguments() -> None:
    model = net()
    for options, message in (
        ({"codec": "int9"}, "unknown codec 'int9'; did you mean"),
        ({"tables": "nobody*"}, "no table is named 'nobody\\*'; tables: 'user'"),
        ({"codec": {"nobody": "int8"}}, "no table is named 'nobody'"),
        ({"codec": ["int8", "int4"]}, "need a budget or a ratio"),
        ({"codec": {"*": "int8"}, "ratio": 4}, "a text or a list of texts"),
        ({"budget": "1MB", "ratio": 2}, "not both"),
        ({"ratio": 0.5}, "at least 1, got 0.5"),
        ({"budget": "much"}, "cannot read the budget 'much'"),
        ({"min_bytes": "1GB"}, "no embedding table to convert"),
        ({"counts": {"nobody": [1]}}, "no table 'nobody'"),
    ):
        with pytest.raises(fe.ConfigError, match=message):
            fe.convert(model, **options)  # type: ignore[arg-type]
    with pytest.raises(fe.ConfigError, match="no embedding table to convert"):
        fe.convert(nn.Linear(2, 2), "int8")
    with pytest.raises(fe.DataError, match="counts of 'first' must be 700 numbers"):
        fe.convert(model, counts={"first": torch.ones(3)})
    with pytest.raises(fe.ConfigError, match=r"not what featemb.convert returned"):
        fe.conversion(model)


def test_numbers_that_do_not_fit_the_format_name_the_table() -> None:
    model = nn.ModuleDict({"user": nn.Embedding(20, 4)})
    with torch.no_grad():
        model["user"].weight[3, 1] = 1e6
    with pytest.raises(fe.DataError, match="table 'user': row 3 exceeds the range of fp16"):
        fe.convert(model, "fp16")
    with torch.no_grad():
        model["user"].weight[3, 1] = torch.nan
    with pytest.raises(fe.DataError, match="table 'user': row 3"):
        fe.convert(model, "int8")
    assert isinstance(model["user"], nn.Embedding)


def test_compiled_models_are_refused_and_others_that_cannot_be_copied() -> None:
    with pytest.raises(fe.ConfigError, match="compiled"):
        fe.convert(torch.compile(net()), "int8")
    model = net()
    model.stream = (number for number in range(3))  # a generator has no copy
    with pytest.raises(fe.ConfigError, match=r"Net cannot be copied.*inplace=True"):
        fe.convert(model, "int8")
    assert isinstance(fe.convert(model, "int8", inplace=True).user, CodedEmbedding)


def test_optimizers_are_left_out() -> None:
    model = net()
    model.optimizer = torch.optim.Adam(model.parameters())
    model.terms = [list(model.user.parameters())]  # as DeepCTR-Torch keeps its penalties
    model(USERS, BAGS).sum().backward()
    model.optimizer.step()
    small = fe.convert(model, "int8")
    assert repr(small.optimizer) == "NoOptimizer()"
    assert [list(one.shape) for one in small.terms[0]] == [[0, 16]]
    assert isinstance(model.optimizer, torch.optim.Adam)


def test_counts_weigh_rows() -> None:
    model = nn.ModuleDict({"user": nn.Embedding(2000, 8)})
    counts = torch.ones(2000)
    counts[:20] = 1e6
    true = model["user"].weight.detach()
    plain, weighed = (
        fe.convert(model, "pq(parts=2, bits=5)", counts=given)["user"].weight
        for given in (None, {"user": counts})
    )
    assert (weighed - true)[:20].square().mean() < (plain - true)[:20].square().mean() / 2


def test_torch_compile_and_export_of_a_converted_model() -> None:
    small = fe.convert(net(), {"user": "int4", "items": "pq(parts=2)", "first": "fp16"})
    wanted = small(USERS, BAGS)
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(USERS, BAGS), wanted, atol=1e-6)
    with pytest.raises(RuntimeError, match="an id is out of range"):
        compiled(USERS + 700, BAGS)
    batch = torch.export.Dim("batch", min=2, max=4096)
    shapes = ({0: batch}, {0: batch})
    program = torch.export.export(small, (USERS, BAGS), dynamic_shapes=shapes)
    assert torch.allclose(program.module()(USERS[:9], BAGS[:9]), wanted[:9], atol=1e-6)
    with pytest.raises((RuntimeError, IndexError), match="out of range"):
        program.module()(USERS + 700, BAGS)
