"""Encoders, decoders and critics: plain ``nn.Module`` classes without Lightning."""

from wae_lightning.networks.convolutional import ConvDecoder, ConvEncoder

__all__ = ["ConvDecoder", "ConvEncoder"]
