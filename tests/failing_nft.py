"""The program with an nft that fails as often as a file beside the state directory says.

failing_nft.py ARGUMENTS OF ctrport
"""

from __future__ import annotations

import sys
from pathlib import Path

from ctrport import watch
from ctrport.cli import main
from ctrport.errors import KernelError
from ctrport.firewall.nft import LibNft


class FailingNft(LibNft):
    """libnftables, but for what the file says."""

    def apply(self, script: str) -> None:
        switch = Path(sys.argv[sys.argv.index("--state") + 1]).with_name("fail")
        left = int(switch.read_text()) if switch.exists() else 0
        if left > 0:
            switch.write_text(str(left - 1))
            raise KernelError("nftables refused to change ctrport: Error: Device or resource busy")
        super().apply(script)


if __name__ == "__main__":
    watch.LibNft = FailingNft  # type: ignore[misc]
    main()
