"""Networks that are no parts: described only by what has been seen to make the same network."""

import copy
import dataclasses
import io
import itertools
import json
import random
import socket
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from wae_lightning import WAE, networks
from wae_lightning.checkpoints import build_bounded
from wae_lightning.lightning import Trainer
from wae_lightning.parts import Part, describe

D = 3
HERE = [__name__]


class Kept(nn.Module):
    """Keeps its arguments, as most do; prints; draws random numbers of all three kinds."""

    def __init__(self, size, hidden=(5, 4), *, dropout=0.1, bias=True):
        super().__init__()
        self.size, self.hidden, self.dropout = size, hidden, dropout
        sizes = [size, *hidden, size]
        self.layers = nn.Sequential(*itertools.starmap(nn.Linear, itertools.pairwise(sizes)), nn.Dropout(dropout))
        self.bias = nn.Parameter(torch.randn(size)) if bias else None
        self.gain = parametrizations.weight_norm(nn.Linear(size, size))
        print("made", random.random(), np.random.rand())

    def forward(self, x):
        return self.gain(self.layers(x)) + (0 if self.bias is None else self.bias)


class Kinds(nn.Module):
    """Arguments of every kind, one kept in private, one as a property."""

    def __init__(self, size, /, inner, width=2, *more, **options):
        super().__init__()
        self._size, self.inner, self.more, self.options = size, inner, more, options
        self.layer = nn.Linear(size, width)

    @property
    def width(self):
        return self.layer.out_features


class Lambda(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor
        self.layer = nn.Linear(D, D)
        self.layer.register_forward_hook(lambda module, inputs, output: output * factor)


class Tied(nn.Module):
    """Two layers with one weight, settings in an object, and numbers that no checkpoint holds."""

    def __init__(self, size=D):
        super().__init__()
        self.size, self.settings = size, Settings(size)
        self.a, self.b = nn.Linear(size, size), nn.Linear(size, size)
        self.b.weight = self.a.weight
        self.register_buffer("mask", torch.arange(size), persistent=False)
        self.recurrent = nn.GRU(size, size)


@dataclasses.dataclass
class Settings:
    size: int = D


class OfSettings(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings


class Lost(nn.Module):
    """Does not keep its argument."""

    def __init__(self, slope=0.1):
        super().__init__()
        self.layer, self.activation = nn.Linear(D, D), nn.LeakyReLU(slope)


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("directions", torch.randn(D), persistent=False)


class Once(nn.Module):
    made = 0

    def __init__(self):
        super().__init__()
        Once.made += 1
        if Once.made % 2 == 0:
            raise SystemExit(3)


class Fetching(nn.Module):
    def __init__(self):
        super().__init__()
        self.failed = None
        try:
            socket.create_connection(("127.0.0.1", 1), timeout=1)
        except OSError as error:
            self.failed = str(error)


def changed(network, **attributes):
    for name, value in attributes.items():
        setattr(network, name, value)
    return network


ONE = nn.Linear(D, D)
ACTIVATION = nn.ReLU()
RECOVERED = {
    "kept": lambda: Kept(D),
    "others": lambda: Kept(np.int64(D), [7], dropout=np.float32(0.5), bias=False),
    "kinds": lambda: Kinds(D, Kept(2), 4, 5, 6, colour="red", layers=[1, 2]),
    "lambda": lambda: Lambda(3.0),
    "tied": lambda: Tied(4),
    "default": Lost,
    "evaluated": lambda: Kept(D).eval(),
    "layer": lambda: nn.Linear(D, 2, bias=False),
    "sequence": lambda: nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.GELU(), nn.Unflatten(1, (2, 2, 2))),
    "names": lambda: nn.Sequential(OrderedDict(a=nn.Linear(D, 2), b=Kept(2))),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(D, D), nn.Sequential(Kept(D))), nn.LayerNorm(D)),
    "one activation twice": lambda: nn.Sequential(nn.Linear(D, D), ACTIVATION, nn.Linear(D, D), ACTIVATION),
    "containers": lambda: nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2)]), "b": nn.Sequential()}),
    "images": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, padding="valid", padding_mode="zeros"), nn.BatchNorm2d(4, affine=False), nn.PReLU(4),
        nn.ConvTranspose2d(4, 2, (4, 2), stride=2, bias=False), nn.GroupNorm(1, 2), nn.Upsample(scale_factor=2),
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((1, None)), nn.PixelShuffle(1), nn.ZeroPad2d(1), nn.InstanceNorm2d(2),
    ),
    "ours inside": lambda: nn.Sequential(networks.Critic(D), nn.Sigmoid()),
}  # fmt: skip
MARKED = {
    "lost": lambda: Lost(0.2),
    "no default": lambda: OfSettings(Settings()),
    "random": Drawn,
    "once": Once,
    "network": Fetching,
    "a changed layer": lambda: changed(Lost(), activation=nn.Tanh()),
    "a changed number": lambda: changed(nn.Sequential(nn.LeakyReLU()), inplace=True),
    "a changed layer in a sequence": lambda: nn.Sequential(nn.Flatten(), changed(Lost(), layer=nn.Linear(D, 2))),
    "our own, changed": lambda: nn.Sequential(changed(networks.Critic(D), layers=nn.Linear(D, 1))),
    "frozen": lambda: Kept(D).requires_grad_(False),
    "evaluated in part": lambda: changed(Kept(D), training=False),
    "one layer twice": lambda: nn.Sequential(ONE, ONE),
    "tied afterwards": lambda: nn.Sequential(nn.Linear(D, D), changed(nn.Linear(D, D), weight=ONE.weight), ONE),
    "a function of today": lambda: changed(Lost(), forward=lambda x: x),
    "parametrized": lambda: parametrizations.spectral_norm(nn.Linear(D, D)),
    "lazy": lambda: nn.LazyLinear(D),
    "double": lambda: nn.Linear(D, D).double(),
    "large": lambda: nn.Linear(10**4, 1001, device="meta"),
    "put together": lambda: changed(nn.Module(), layer=nn.Linear(D, D)),
}


@pytest.mark.parametrize("make", RECOVERED.values(), ids=RECOVERED.keys())
def test_what_is_recovered_is_the_same_network(make, capsys):
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    capsys.readouterr()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    description = json.loads(json.dumps(describe(network)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert capsys.readouterr() == ("", "")
    again = build_bounded(description, network.state_dict(), HERE)
    again.load_state_dict(network.state_dict())
    assert describe(again) == description
    lists = str.maketrans("()", "[]")  # tuples become lists
    assert repr(again).translate(lists) == repr(network).translate(lists)
    if isinstance(network, Kept | nn.Sequential) and len(list(network.parameters())):
        x = torch.randn(2, 1, 20, 20) if isinstance(next(network.children()), nn.Conv2d) else torch.randn(2, D)
        torch.testing.assert_close(again.eval()(x), network.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", MARKED.values(), ids=MARKED.keys())
def test_what_is_not_seen_to_come_back_is_marked(make):
    assert set(describe(make())) == {"unrecorded"}


def test_every_difference_is_seen():
    """Whatever is changed in a network of each kind, at any depth, it is no longer taken for what it was made with."""
    seen = 0
    for make in map(RECOVERED.get, ("kept", "kinds", "lambda", "tied", "names", "ours inside")):
        for place, _ in make().named_modules():
            for name in ("training", "p", "dropout", "factor", "in_features", "_size", "new"):
                network = make()
                module = network.get_submodule(place)
                if name == "new" or hasattr(module, name):
                    setattr(module, name, 0.25 if name != "training" else False)
                    description = describe(network)
                    if "unrecorded" not in description:  # it may be what another argument makes
                        again = build_bounded(description, network.state_dict(), HERE)
                        assert getattr(again.get_submodule(place), name) == 0.25
                    seen += 1
    assert seen > 50


def test_models_of_such_networks_come_back(tmp_path):
    decoder = nn.Sequential(Kept(D), nn.Linear(D, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    model = WAE(nn.Sequential(nn.Flatten(), nn.Linear(16, D), Kept(D, ())), decoder, latent_dim=D).eval()
    file = io.BytesIO()
    torch.save({"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, file)
    with pytest.raises(ValueError, match=r"model.encoder.args.2: it names 'test_recovery.Kept', .*trust=\[\.\.\.\]"):
        WAE.load_from_checkpoint(file)
    model.save_pretrained(tmp_path)
    x = torch.rand(2, 1, 4, 4)
    for loaded in (WAE.load_from_checkpoint(file, trust=HERE).eval(), WAE.from_pretrained(tmp_path, trust=HERE)):
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
        assert describe(loaded) == describe(model)


def test_networks_that_share_weights_are_not_recorded_as_two():
    layer = nn.Linear(16, 16)
    encoder, decoder = nn.Sequential(nn.Flatten(), layer), nn.Sequential(layer, nn.Unflatten(1, (1, 4, 4)))
    model = WAE(encoder, decoder, latent_dim=16)
    file = io.BytesIO()
    torch.save({"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, file)
    message = r"encoder was torch.nn.Sequential, whose weights are also those of decoder, .* \(encoder=\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        WAE.load_from_checkpoint(file)
    parts = copy.deepcopy({"encoder": encoder, "decoder": decoder})
    loaded = WAE.load_from_checkpoint(file, **parts)
    assert loaded.encoder[1] is loaded.decoder[0]
    shared = type("Holder", (nn.Module, Part), {"__init__": lambda self, a, b: nn.Module.__init__(self)})(ONE, [ONE])
    assert shared._made_with["init_args"].keys() == {"a", "b"}
    assert all("unrecorded" in value for value in shared._made_with["init_args"].values())


@pytest.mark.parametrize("place", ["encoder.2", "decoder.layers.1", "decoder.new"])
def test_a_layer_that_was_exchanged_afterwards_is_not_replaced_by_the_original(tmp_path, place):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, D), nn.Identity())
    layers = nn.Sequential(nn.Linear(D, 784), nn.Sigmoid())
    decoder = nn.Sequential(OrderedDict(layers=layers, shape=nn.Unflatten(1, (1, 28, 28))))
    model = WAE(encoder, decoder, latent_dim=D)
    setattr(model.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2], nn.Tanh())
    trainer = Trainer(logger=False, barebones=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    model.save_pretrained(tmp_path)
    message = f"{place} was a Tanh, and what is recorded makes a .*\\({place.partition('.')[0]}=\\.\\.\\.\\)"
    for load, source in ((WAE.load_from_checkpoint, tmp_path / "model.ckpt"), (WAE.from_pretrained, tmp_path)):
        with pytest.raises(ValueError, match=message):
            load(source)
    loaded = WAE.load_from_checkpoint(tmp_path / "model.ckpt", encoder=model.encoder, decoder=model.decoder)
    assert loaded.encoder is model.encoder
