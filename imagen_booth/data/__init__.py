"""Photos and images: decoding, checking, batches."""

from PIL import PngImagePlugin

# Pillow refuses a whole PNG for one text chunk or colour profile above 1 MiB, but image
# editors and workflow tools write larger ones. Its limit for all chunks together stays.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
