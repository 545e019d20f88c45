"""Train a projection head on frozen features with DP-SGD: python tools/train_private_head.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.dp.private_head_command import train_private_head_command

if __name__ == "__main__":
    sys.exit(cli.run(train_private_head_command))
