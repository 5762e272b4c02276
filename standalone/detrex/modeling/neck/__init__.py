"""Modules between backbone and transformer."""

from detrex.modeling.neck.channel_mapper import ChannelMapper

__all__ = ["ChannelMapper"]
