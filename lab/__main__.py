"""`python -m diffusion_blend.lab` is `diffusion-blend`; what `accelerate launch -m` starts."""

import sys

from .cli import main

sys.exit(main())
