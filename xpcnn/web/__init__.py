"""A local page that shows what a network makes of a drawing or a picture, live: `xpcnn serve`.

It needs Starlette, uvicorn and Pillow (`pip install ".[web]"`). `inspection` asks the network, `uploads` reads
pictures that nobody vouches for, `guard` turns away whom the page is not for, `app` holds the three together, `server`
binds it to an address.
"""

from xpcnn.web.app import create_app
from xpcnn.web.inspection import Inspector
from xpcnn.web.server import serve

__all__ = ["Inspector", "create_app", "serve"]
