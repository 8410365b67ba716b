"""How answers look: plain in a pipe, with words wrapped on any terminal, as Markdown where a terminal obeys escapes.

view_of(...)  the view for this output
"""

from edgellm.cli.screen.view import PlainView, View, WrappedView, view_of

__all__ = ["PlainView", "View", "WrappedView", "view_of"]
