"""Privacy-preserving person re-identification: an extension of torchreid."""

__version__ = "0.1.0"
