"""Encoders, decoders and critics: plain ``nn.Module`` classes without Lightning."""

from wae_lightning.networks.conditional import (
    ConditionalConvDecoder,
    ConditionalConvEncoder,
    ConditionalMLPDecoder,
    ConditionalMLPEncoder,
    WhitenedPCA,
)
from wae_lightning.networks.convolutional import ConvDecoder, ConvEncoder
from wae_lightning.networks.critic import Critic
from wae_lightning.networks.flow import CouplingFlow, Flow, MixtureFlow
from wae_lightning.networks.flow_matching import FlowMatching
from wae_lightning.networks.pointnet import (
    FoldingDecoder,
    FullyConnectedDecoder,
    PointNetClassifier,
    PointNetEncoder,
    SeedDecoder,
    TNet,
)
from wae_lightning.networks.residual import ResidualDecoder, ResidualEncoder
from wae_lightning.networks.unet import AlignedConvEncoder, UNetDecoder

__all__ = [
    "AlignedConvEncoder",
    "ConditionalConvDecoder",
    "ConditionalConvEncoder",
    "ConditionalMLPDecoder",
    "ConditionalMLPEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "CouplingFlow",
    "Critic",
    "Flow",
    "FlowMatching",
    "FoldingDecoder",
    "FullyConnectedDecoder",
    "MixtureFlow",
    "PointNetClassifier",
    "PointNetEncoder",
    "ResidualDecoder",
    "ResidualEncoder",
    "SeedDecoder",
    "TNet",
    "UNetDecoder",
    "WhitenedPCA",
]
